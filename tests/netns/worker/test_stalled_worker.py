"""A worker stands still: guests of others go on, and its own are served as soon as another has its place."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.netns.program import program
from tests.netns.worker.crew import WORKER, Crew, Load, start_asking, whole
from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import SERVICE_ADDRESS


def test_a_worker_that_stands_still_is_replaced_for_the_sake_of_a_single_guest(
    hypervisor: Hypervisor,
) -> None:
    crew = Crew(hypervisor)
    other = Load(crew.guests[1])
    held = Load(crew.guests[0], callers=0, streams=1)
    stalled = crew.worker_of(crew.guests[0])
    crew.signal("STOP", stalled)
    asking = start_asking(crew.guests[0])
    other.go_on()
    assert asking.communicate()[0] == "hello"
    assert held.end()["streams"] == ["ECONNRESET"]
    assert stalled not in crew.await_workers(2, stalled)
    assert f"worker {stalled} does not answer; killed" in crew.log()
    list(whole([other]))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_storm_on_a_worker_that_stands_still_is_served_in_the_end(
    hypervisor: Hypervisor, workers: int
) -> None:
    crew = Crew(hypervisor, workers)
    crew.serve(90, "short")
    crew.signal("STOP", *crew.pids(WORKER)[:1])
    options = ("--connections", "4000", "--at-once", "1000", "--timeout", "60")
    storms = [
        guest.popen(*program("storm", *options, SERVICE_ADDRESS, "90"), stdout=subprocess.PIPE)
        for guest in crew.guests
    ]
    reports = [json.loads(storm.communicate()[0]) for storm in storms]
    assert [(each["errors"], each["completed"]) for each in reports] == [({}, 4000)] * 2


def test_a_busy_worker_is_not_taken_for_one_that_stands_still(hypervisor: Hypervisor) -> None:
    crew = Crew(hypervisor, workers=1)
    crew.serve(90, "short")
    before = crew.pids(WORKER)
    options = ("--connections", "60000", "--at-once", "1000", "--timeout", "60")
    storm = program("storm", *options, SERVICE_ADDRESS, "90")
    report = json.loads(crew.guests[0].run(*storm, timeout=200).stdout)
    assert report["errors"] == {}
    assert crew.pids(WORKER) == before
