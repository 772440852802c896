"""Somebody removes /run/tproxy while all is well: nobody loses a connection, and commands find the daemon."""

from __future__ import annotations

import pytest

from tests.netns.waiting import eventually
from tests.netns.worker.crew import CONFIG, HTTP, WORKER, Crew, Load, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


def remove_run_directory(crew: Crew) -> None:
    crew.host.run("rm", "-rf", "/run/tproxy")


COMMANDS = {
    "hook": ("hook", "up", "--bridge", "br0", "--config", CONFIG),
    "status": ("status", "--json"),
    "start": ("start",),
    "reload": ("reload",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_next_command_brings_the_daemon_back_and_cuts_no_stream(crew: Crew, command: str) -> None:
    loads = [Load(guest) for guest in crew.guests]
    before = crew.processes()
    remove_run_directory(crew)
    for load in loads:
        load.go_on()
    crew.tproxy(*COMMANDS[command])
    assert crew.status()["pid"] == crew.daemon
    assert crew.processes() == before
    crew.dial(81, f"10.11.12.13, remote_port: {8080}")
    crew.hook_up()
    assert crew.guests[0].get(SERVICE_ADDRESS, 81) == "hello"
    assert crew.processes() == before
    list(whole(loads))


def test_a_restart_right_away_replaces_all_processes_and_cuts_no_stream(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    before = crew.processes()
    remove_run_directory(crew)
    crew.tproxy("restart")
    crew.await_workers(2, *before)
    assert not {crew.daemon, crew.relay} & set(before)
    for load in loads:
        load.go_on()
    draining = {each["pid"] for each in crew.status()["workers"] if each["draining"]}
    assert draining == {pid for pid, title in before.items() if title == WORKER}
    list(whole(loads))


def test_later_daemons_find_the_workers_at_their_new_meeting_points(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    workers = crew.pids(WORKER)
    remove_run_directory(crew)
    crew.hook_up()
    daemon = crew.daemon
    crew.kill(*crew.pids("tproxy-spawner"), daemon)
    crew.tproxy("start")
    assert crew.daemon != daemon
    assert crew.pids(WORKER) == workers
    crew.tproxy("restart")
    crew.await_workers(2, *workers)
    for load in loads:
        load.go_on()
    assert {each["pid"] for each in crew.status()["workers"] if each["draining"]} == set(workers)
    list(whole(loads))


def test_stop_ends_all_processes_without_the_directory(crew: Crew) -> None:
    remove_run_directory(crew)
    crew.tproxy("stop")
    assert crew.processes() == {}


def test_a_daemon_that_hangs_without_the_directory_is_replaced(crew: Crew) -> None:
    daemon = crew.daemon
    crew.signal("STOP", daemon)
    remove_run_directory(crew)
    crew.hook_up()
    assert crew.daemon != daemon
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"


def test_the_watcher_keeps_its_place(crew: Crew) -> None:
    crew.host.write(CONFIG, crew.host.path(CONFIG).read_text() + "tproxy_watch: true\n")
    crew.tproxy("reload")
    for _ in eventually():
        if crew.pids("tproxy-watch"):
            break
    for _ in eventually():
        if "watching bridges" in crew.log():
            break
    watcher = crew.pids("tproxy-watch")
    remove_run_directory(crew)
    crew.hook_up()
    for _ in eventually():  # until it has locked the new file: then no other watcher starts
        if crew.host.run("sh", "-c", "flock -n /run/tproxy/*/watch.lock true", check=False).returncode == 1:
            break
    again = crew.tproxy("watch", "--config", CONFIG, check=False)
    assert (again.returncode, "a watcher is running already" in again.stderr) == (1, True)
    assert crew.pids("tproxy-watch") == watcher
