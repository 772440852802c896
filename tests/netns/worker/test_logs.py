"""Logs of relays and workers, which cannot open a file: the daemon gives them descriptors."""

from __future__ import annotations

import re

import pytest

from tests.netns.waiting import await_equal, eventually
from tests.netns.worker.crew import DRAINING, HTTP, SPAWNER, WORKER, Crew, Load, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

LOGS = ("one_tproxy", "one_tproxy_br0")


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


def rotate(crew: Crew) -> None:
    for name in LOGS:
        log = crew.host.path(f"/var/log/{name}.log")
        log.rename(log.with_suffix(".log.1"))


def held_logs(crew: Crew, pid: int) -> set[str]:
    """Return the log files that a process has open."""
    # Descriptors come and go meanwhile, and find(1) says so.
    shown = crew.host.run("find", f"/proc/{pid}/fd", "-printf", "%l\n", check=False).stdout
    return set(re.findall(r"^/var/log/(.*)$", shown, re.MULTILINE))


def assert_lines_are_complete(crew: Crew) -> None:
    for path in crew.host.path("/var/log").glob("one_tproxy*"):
        for line in path.read_text().splitlines():
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} \d+ [A-Z]+ ", line), line


def test_all_processes_write_to_new_files_after_reopen_logs_under_load(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    crew.tproxy("restart")
    usual = ["one_tproxy", "one_tproxy_br0", SPAWNER, WORKER, WORKER, DRAINING, DRAINING]
    await_equal(lambda: sorted(crew.processes().values()), sorted(usual))  # others may still be ending
    processes = crew.processes()
    for _ in range(3):
        rotate(crew)
        done = crew.tproxy("reopen-logs")
        assert (done.stdout, done.stderr) == ("", "")
        for pid, title in processes.items():
            wanted = {f"{title}.log"} if title == "one_tproxy_br0" else {"one_tproxy.log"}
            assert held_logs(crew, pid) in (wanted, set()), title
        for load in loads:
            load.go_on(2)
    assert crew.processes() == processes
    list(whole(loads))
    for pid in crew.pids(WORKER):  # each has written a line of its own to the new file
        for guest in crew.guests:
            guest.get(SERVICE_ADDRESS, HTTP)
        crew.await_in_log(f" {pid} INFO bridge=br0 ")
    assert_lines_are_complete(crew)


def test_relay_and_workers_that_a_daemon_finds_get_the_log_as_it_is_now(crew: Crew) -> None:
    crew.kill_daemon()
    rotate(crew)
    crew.tproxy("start")
    for _ in eventually():
        if held_logs(crew, crew.relay) == {"one_tproxy_br0.log"}:
            break
    for worker in crew.pids(WORKER):
        for _ in eventually():
            if held_logs(crew, worker) == {"one_tproxy.log"}:
                break
    crew.guests[0].get(SERVICE_ADDRESS, HTTP)
    crew.await_in_log(" INFO bridge=br0 ")
    assert_lines_are_complete(crew)
