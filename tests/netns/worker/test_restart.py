"""``tproxy restart``: new processes for new connections, and the old workers finish what they have."""

from __future__ import annotations

import subprocess

import pytest

from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tests.netns.worker.crew import DRAINING, WORKER, Crew, Load, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Hypervisor


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


def test_a_restart_under_load_costs_no_connection_and_old_workers_end_with_their_last_one(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    before = crew.processes()
    crew.tproxy("restart")
    old = sorted(pid for pid, title in before.items() if title == WORKER)
    crew.await_draining(*old)
    for _ in eventually():  # the old daemon may still be ending
        after = crew.processes()
        if set(before) & set(after) == set(old):
            break
    for load in loads:
        load.go_on()
    assert crew.pids(DRAINING) == old
    assert {each["pid"] for each in crew.status()["workers"] if each["draining"]} == set(old)
    list(whole(loads))
    await_equal(crew.processes, {pid: title for pid, title in after.items() if title != DRAINING})
    assert not [each for each in crew.status()["workers"] if each["draining"]]


def test_restarts_in_a_row_cost_no_connection(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    for _ in range(4):
        crew.tproxy("restart")
        loads[0].go_on(2)
    loads.append(Load(crew.guests[0]))
    for load in loads:
        load.go_on(2)
    list(whole(loads))
    crew.await_draining()
    assert len(crew.pids(WORKER)) == 2


def test_a_long_stream_from_before_a_restart_arrives_whole(crew: Crew) -> None:
    crew.serve(90, "digest", "--tell")
    upload = crew.guests[0].popen(
        *program("bulk", "upload", SERVICE_ADDRESS, "90", "4000"), stdout=subprocess.PIPE
    )
    for _ in eventually():
        if crew.service(90)["bytes_to_endpoint"]:
            break
    crew.tproxy("restart")
    assert upload.communicate()[0].split()[0] == str(4000 * 65536)


def test_stop_ends_workers_that_only_finish_their_connections(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    old = crew.worker_of(crew.guests[0])
    crew.tproxy("restart")
    crew.await_draining(old)  # of the other guest's worker nothing is left to finish
    crew.tproxy("stop")
    assert load.end()["streams"] == ["ECONNRESET"]
    assert crew.processes() == {}


@pytest.mark.parametrize(
    "daemon", ["lives", "was killed and came back", "was killed, and the bridge goes meanwhile"]
)
def test_connections_of_an_old_worker_end_when_their_bridge_is_taken_down(crew: Crew, daemon: str) -> None:
    crew.add_bridge("br1")  # the daemon stays for it
    load = Load(crew.guests[0], callers=0, streams=1)
    crew.tproxy("restart")
    if daemon != "lives":
        crew.kill_daemon()
    if daemon == "was killed and came back":
        crew.tproxy("start")
    load.go_on()
    crew.tproxy("hook", "down", "--bridge", "br0", "--force")
    if daemon == "was killed, and the bridge goes meanwhile":
        crew.tproxy("start")
    else:  # the reset reaches the guest, which is not so where the bridge's namespace is gone by then
        assert load.end()["streams"] == ["ECONNRESET"]
    crew.await_draining()
    assert len(crew.pids(WORKER)) == 2


def test_an_old_worker_ends_although_the_daemon_died_and_came_back(crew: Crew) -> None:
    load = Load(crew.guests[0])
    old = crew.worker_of(crew.guests[0])
    crew.tproxy("restart")
    crew.kill_daemon()
    crew.tproxy("start")
    load.go_on()
    crew.await_draining(old)
    list(whole([load]))
    crew.await_draining()
    assert len(crew.pids(WORKER)) == 2


def test_an_old_worker_that_a_new_daemon_took_for_one_that_serves_ends_all_the_same(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    old = crew.worker_of(crew.guests[0])
    crew.tproxy("restart")
    crew.await_draining(old)
    crew.kill_daemon()
    crew.signal("STOP", old)  # it cannot say that it only finishes
    starting = crew.start_tproxy("start")
    for _ in eventually():
        if f"worker {old} of the daemon before goes on" in crew.log():
            break
    crew.await_relay()
    crew.signal("CONT", old)
    assert starting.wait(PATIENCE) == 0
    load.go_on()
    list(whole([load]))
    crew.await_draining()
    assert len(crew.pids(WORKER)) == 2


def test_an_old_worker_that_greets_late_ends_connections_of_a_bridge_that_is_gone(crew: Crew) -> None:
    crew.add_bridge("br1")  # the daemon stays for it
    load = Load(crew.guests[0], callers=0, streams=1)
    old = crew.worker_of(crew.guests[0])
    crew.tproxy("restart")
    crew.await_draining(old)  # the other old worker has nothing to finish
    load.go_on()
    crew.kill_daemon()
    crew.signal("STOP", old)  # it cannot say that it only finishes
    crew.tproxy("hook", "down", "--bridge", "br0", "--force")
    starting = crew.start_tproxy("start")
    for _ in eventually():
        if f"worker {old} of the daemon before goes on" in crew.log():
            break
    crew.await_relay("br1")
    crew.signal("CONT", old)
    assert starting.wait(PATIENCE) == 0
    crew.await_draining()
    assert len(crew.pids(WORKER)) == 2
