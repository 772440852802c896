"""The daemon is killed: nobody notices, and the next daemon finds relays and workers."""

from __future__ import annotations

import pytest

from tests.netns.worker.crew import ECHO, ENDPOINT, WORKER, Crew, Load, start_asking, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


@pytest.mark.parametrize("back", ["start", "reload", "hook"])
def test_a_killed_daemon_costs_no_connection_and_the_next_one_adopts_relay_and_workers(
    crew: Crew, back: str
) -> None:
    loads = [Load(guest) for guest in crew.guests]
    workers, relay, daemon = crew.pids(WORKER), crew.relay, crew.daemon
    assert len(workers) == 2
    crew.kill_daemon()
    for load in loads:
        load.go_on()
    assert "one_tproxy" not in crew.processes().values()
    crew.dial(81, f"{ENDPOINT}, remote_port: 8080")
    if back == "hook":
        crew.hook_up()
    else:
        crew.host.run("nft", f"add element ip one_tproxy ep_br0 {{ 81 : {ENDPOINT} . 8080 }}")
        crew.tproxy(back)
    assert crew.daemon != daemon
    assert (crew.pids(WORKER), crew.relay) == (workers, relay)
    for load in loads:
        load.go_on()
    assert crew.guests[0].get(SERVICE_ADDRESS, 81) == "hello"
    connections = sum(report["served"] + len(report["streams"]) for report in whole(loads))
    assert crew.service(ECHO)["total"] == connections  # also those before the daemon was killed
    assert [worker["pid"] for worker in crew.status()["workers"]] == workers


def test_a_daemon_that_is_killed_again_and_again_costs_no_connection(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    workers, relay = crew.pids(WORKER), crew.relay
    for _ in range(3):
        crew.kill_daemon()
        crew.tproxy("start")
        for load in loads:
            load.go_on(3)
    assert (crew.pids(WORKER), crew.relay) == (workers, relay)
    list(whole(loads))


@pytest.mark.parametrize("back", ["start", "restart"])
def test_guests_wait_while_neither_daemon_nor_worker_lives(crew: Crew, back: str) -> None:
    for guest in crew.guests:  # the daemon knows their ports
        assert start_asking(guest).communicate()[0] == "hello"
    crew.kill_daemon()
    crew.kill(*crew.pids(WORKER))
    asking = [start_asking(guest) for guest in crew.guests for _ in range(5)]
    crew.await_connected(len(asking))
    crew.tproxy(back)
    assert [each.communicate()[0] for each in asking] == ["hello"] * len(asking)
    crew.await_workers(2)


def test_workers_end_when_the_last_bridge_is_taken_down_without_a_daemon(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    crew.kill_daemon()
    crew.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert load.end()["streams"] == ["ECONNRESET"]
    assert crew.processes() == {}


def test_stop_ends_workers_without_a_daemon(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    crew.kill_daemon()
    crew.tproxy("stop")
    assert load.end()["streams"] == ["ECONNRESET"]
    assert crew.processes() == {}
