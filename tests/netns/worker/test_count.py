"""``tproxy_workers``: how many workers there are, and what happens when it changes."""

from __future__ import annotations

import re

import pytest

from tests.netns.waiting import await_equal
from tests.netns.worker.crew import ECHO, WORKER, Crew, Load, whole
from tproxy.lab.hypervisor import Hypervisor


def test_workers_come_and_go_under_load_and_no_connection_is_lost_or_not_counted(
    hypervisor: Hypervisor,
) -> None:
    crew = Crew(hypervisor, workers=1, guests=3)
    loads = [Load(guest, callers=2, streams=1) for guest in crew.guests]
    for count in (2, 3, 2, 1, 3, 1):
        crew.change_workers(count)
        crew.await_workers(count)
        for load in loads:
            load.go_on(3)
        streams = sum(each["open"] for each in crew.status()["workers"])
        assert streams >= 3
    connections = sum(report["served"] + len(report["streams"]) for report in whole(loads))
    crew.await_draining()
    assert crew.service(ECHO)["total"] == connections
    await_equal(lambda: crew.service(ECHO)["open"], 0)


def test_guests_of_one_bridge_are_spread_over_all_workers_and_each_keeps_its_own(
    hypervisor: Hypervisor,
) -> None:
    crew = Crew(hypervisor, workers=3, guests=3)
    loads = [Load(guest, callers=2, streams=2) for guest in crew.guests]
    workers = [crew.worker_of(guest) for guest in crew.guests]  # one for all connections of a guest
    assert sorted(workers) == crew.pids(WORKER)
    crew.tproxy("reload")
    for load in loads:
        load.go_on(3)
    assert [crew.worker_of(guest) for guest in crew.guests] == workers
    list(whole(loads))


def test_status_has_its_lines_as_before_and_shows_workers_where_more_is_asked_for(
    hypervisor: Hypervisor,
) -> None:
    crew = Crew(hypervisor)
    load = Load(crew.guests[0], callers=0, streams=3)
    assert re.fullmatch(r"one_tproxy: \d+\none_tproxy_br0: \d+\n", crew.tproxy("status").stdout)
    workers = crew.status()["workers"]
    assert sorted(each["pid"] for each in workers) == crew.pids(WORKER)
    (busy,) = (each for each in workers if each["open"])
    assert busy["pid"] == crew.worker_of(crew.guests[0])
    assert busy["open"] == 3
    assert busy["bridges"] == [{"bridge": "br0", "open": 3}]
    assert busy["cpu_seconds"] >= 0
    shown = crew.tproxy("status", "--verbose").stdout
    assert re.search(rf"^ *{busy['pid']} +serving +3 .* br0 \(3\)$", shown, re.MULTILINE)
    load.end()


@pytest.mark.parametrize("command", ["start", "restart"])
def test_a_daemon_that_was_killed_comes_back_with_another_number_of_workers(
    hypervisor: Hypervisor, command: str
) -> None:
    crew = Crew(hypervisor, workers=3)
    loads = [Load(guest) for guest in crew.guests]
    crew.kill_daemon()
    crew.configure(1)
    crew.tproxy(command)
    crew.await_workers(1)
    for load in loads:
        load.go_on()
    list(whole(loads))
    crew.await_draining()
