"""A worker stands still: guests of others go on, and its own are served as soon as another has its place."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.netns.program import program
from tests.netns.worker.crew import CONFIG, ECHO, WORKER, Crew, Load, start_asking, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.daemon import worker_link
from tproxy.lab.hypervisor import Hypervisor

VISITORS = 20
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}


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
    options = ("--connections", "4000", "--at-once", "1000")
    storms = [
        guest.popen(*program("storm", *options, SERVICE_ADDRESS, "90"), stdout=subprocess.PIPE)
        for guest in crew.guests
    ]
    reports = [json.loads(storm.communicate()[0]) for storm in storms]
    assert [(each["errors"], each["completed"]) for each in reports] == [({}, 4000)] * 2


def test_a_guest_with_many_connections_that_wait_is_served_in_turns_with_its_neighbour(
    hypervisor: Hypervisor,
) -> None:
    """Whoever is served last meets a bridge that is full. Without turns that would be the neighbour."""
    crew = Crew(hypervisor, workers=1)
    config = hypervisor.path(CONFIG).read_text()
    hypervisor.write(CONFIG, f"tproxy_max_connections_per_bridge: 1000\n{config}")
    crew.tproxy("refresh")
    crew.signal("STOP", *crew.pids(WORKER))
    greedy, neighbour = crew.guests
    holder = greedy.popen(*program("holder", SERVICE_ADDRESS, str(ECHO), "2000"), **PIPES)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    crew.await_connected(2000)
    visitors = [
        neighbour.popen(*program("visitor", SERVICE_ADDRESS, str(ECHO)), **PIPES) for _ in range(VISITORS)
    ]
    for each in visitors:
        assert each.stdin is not None
        print("open 1", file=each.stdin, flush=True)
    crew.await_connected(2000 + VISITORS)
    crew.signal("CONT", *crew.pids(WORKER))
    assert [json.loads(each.communicate()[0]) for each in visitors] == [{"served": 1}] * VISITORS
    holder.communicate()


def test_a_busy_worker_is_not_taken_for_one_that_stands_still(hypervisor: Hypervisor) -> None:
    crew = Crew(hypervisor, workers=1)
    crew.serve(90, "short")
    before = crew.pids(WORKER)
    options = ("--seconds", str(worker_link.PATIENCE + 2), "--at-once", "1000")
    storm = crew.guests[0].popen(*program("storm", *options, SERVICE_ADDRESS, "90"), stdout=subprocess.PIPE)
    while storm.poll() is None:
        crew.status()  # which the worker is asked for
    assert json.loads(storm.communicate()[0])["errors"] == {}
    assert crew.pids(WORKER) == before
