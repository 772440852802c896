"""A daemon that dies is started again, without a hook, a watcher or a service manager."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.waiting import await_equal, eventually
from tests.netns.worker.crew import CONFIG, HTTP, WORKER, Crew, Load, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.daemon import revival
from tproxy.lab.hypervisor import Hypervisor

SPAWNER = "tproxy-spawner"


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


def await_daemon(crew: Crew, *gone: int) -> int:
    """Wait until a daemon runs that is none of these, and answers; return its process id."""
    for _ in eventually():
        found = crew.pids("one_tproxy")
        if len(found) == 1 and not set(found) & set(gone):
            break
    for _ in eventually():
        if crew.tproxy("status", "--json", check=False).returncode == 0 and crew.status():
            break
    return found[0]


def revivals(crew: Crew) -> str:
    """The processes that start a daemon again."""
    return crew.host.run("pgrep", "-f", revival.MODULE, check=False).stdout


def await_no_revival(crew: Crew) -> None:
    for _ in eventually():
        if not revivals(crew) and len(crew.pids(SPAWNER)) <= len(crew.pids("one_tproxy")):
            return


@pytest.mark.parametrize("signal", ["KILL", "SEGV", "ABRT"])
def test_a_daemon_that_dies_comes_back_and_finds_all_as_it_was(crew: Crew, signal: str) -> None:
    loads = [Load(guest) for guest in crew.guests]
    daemon, relay, workers = crew.daemon, crew.relay, crew.pids(WORKER)
    crew.signal(signal, daemon)
    await_daemon(crew, daemon)
    await_no_revival(crew)
    assert (crew.relay, crew.pids(WORKER)) == (relay, workers)
    assert "the daemon has ended unexpectedly; starting another" in crew.log()
    crew.dial(81, "10.11.12.13, remote_port: 8080")
    crew.hook_up()
    assert crew.guests[0].get(SERVICE_ADDRESS, 81) == "hello"
    assert (crew.relay, crew.pids(WORKER)) == (relay, workers)
    list(whole(loads))


def test_the_daemon_comes_back_with_the_settings_that_it_had(hypervisor: Hypervisor) -> None:
    crew = Crew(hypervisor, workers=3)
    text = crew.host.path(CONFIG).read_text()
    crew.host.write(CONFIG, text + "tproxy_debug_level: 0\ntproxy_watch: true\n")
    crew.tproxy("reload")
    before = crew.daemon
    crew.signal("KILL", before)
    await_daemon(crew, before)
    answer = "from tproxy.daemon import client; print(client.ping())"
    assert CONFIG in crew.host.run(sys.executable, "-c", answer).stdout
    assert len(crew.status()["workers"]) == 3


def test_a_spawner_that_dies_comes_back_and_starts_the_daemon_again(crew: Crew) -> None:
    for _ in range(2):
        before, daemon = crew.pids(SPAWNER), crew.daemon
        crew.signal("KILL", *before)
        for _ in eventually():
            found = crew.pids(SPAWNER)
            if len(found) == 1 and found != before:
                break
    crew.await_in_log("the spawner is gone; starting another")
    assert crew.daemon == daemon
    crew.signal("KILL", daemon)
    await_daemon(crew, daemon)
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"


def test_daemons_that_die_young_are_counted_and_come_back_later_and_later(crew: Crew) -> None:
    daemon = crew.daemon
    for _ in range(3):
        crew.signal("KILL", daemon)
        daemon = await_daemon(crew, daemon)
    crew.await_in_log("the daemon has ended unexpectedly, 3 in a row; starting another")
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"


def test_stop_is_not_undone(crew: Crew) -> None:
    crew.signal("KILL", crew.daemon)
    crew.tproxy("stop")
    for _ in eventually():
        if not revivals(crew):
            break
    await_equal(crew.processes, {})


def test_a_daemon_that_a_signal_tells_to_end_stays_away(crew: Crew) -> None:
    daemon = crew.daemon
    crew.signal("TERM", daemon)
    for _ in eventually():
        if not crew.pids(SPAWNER) and daemon not in crew.pids("one_tproxy"):
            break
    assert (crew.pids("one_tproxy"), revivals(crew)) == ([], "")


def test_a_daemon_that_is_a_service_is_left_to_its_manager(crew: Crew) -> None:
    before = crew.daemon
    crew.start_tproxy("daemon")
    daemon = await_daemon(crew, before)
    crew.tproxy("start")  # when this returns, the child that applies the maps has finished
    await_no_revival(crew)
    crew.signal("KILL", daemon)
    for _ in eventually():
        if not crew.pids(SPAWNER) and daemon not in crew.pids("one_tproxy"):
            break
    assert (crew.pids("one_tproxy"), revivals(crew)) == ([], "")


def test_twelve_hooks_that_come_when_the_daemon_dies_lead_to_one_daemon(crew: Crew) -> None:
    for bridge in ("br1", "br2"):
        crew.host.add_bridge(bridge)
    hook = (sys.executable, "-m", "tproxy", "hook", "up", "--config", CONFIG, "--bridge")
    crew.signal("KILL", crew.daemon)
    hooks = [
        crew.host.popen(*hook, bridge, stderr=subprocess.PIPE)
        for _ in range(4)
        for bridge in ("br0", "br1", "br2")
    ]
    assert [(each.communicate()[1], each.returncode) for each in hooks] == [("", 0)] * 12
    await_no_revival(crew)
    await_daemon(crew)
    await_equal(lambda: (len(crew.pids("one_tproxy")), len(crew.pids(SPAWNER))), (1, 1))
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"


def test_where_daemon_and_spawner_die_at_once_the_next_hook_starts_both(crew: Crew) -> None:
    kill_daemon(crew.host)
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"
    crew.hook_up()
    await_equal(lambda: (len(crew.pids("one_tproxy")), len(crew.pids(SPAWNER))), (1, 1))
