"""Processes of tproxy that die or hang: guests wait, and are served again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.one_bridge import OneBridge
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def kill_spawner(host: Hypervisor) -> None:
    """Kill the spawner, and return when it has ended, which is some time after the signal."""
    # The oldest: a process that it has just started has its title for a moment.
    pid = host.run("pgrep", "-o", "-f", "^tproxy-spawner *$").stdout.strip()
    host.run("kill", "-KILL", pid)
    for _ in eventually():
        if pid not in host.run("ps", "-eo", "pid=").stdout.split():
            break


def test_a_relay_that_dies_is_replaced(lab: OneBridge) -> None:
    before = lab.pids()
    lab.host.run("kill", "-9", str(before["one_tproxy_br0"]))
    for _ in eventually():
        if lab.pids().get("one_tproxy_br0", before["one_tproxy_br0"]) != before["one_tproxy_br0"]:
            break
    for _ in eventually():
        if lab.listeners():
            break
    assert lab.pids()["one_tproxy"] == before["one_tproxy"]
    assert lab.ask() == "one"


def test_a_spawner_that_is_killed_is_replaced(lab: OneBridge) -> None:
    """The kernel may kill it when memory is short. Bridges must get relays all the same."""
    before = lab.pids()
    kill_spawner(lab.host)
    lab.add_bridge("br1")
    for _ in eventually():
        if "tproxy-spawner" in " ".join(lab.titles()):
            break
    kill_spawner(lab.host)
    lab.host.run("kill", "-9", str(before["one_tproxy_br0"]))
    for _ in eventually():
        after = lab.pids()
        if len(after) == 3 and after["one_tproxy_br0"] != before["one_tproxy_br0"] and lab.listeners():
            break
    assert lab.ask() == "one"
    assert lab.pids()["one_tproxy"] == before["one_tproxy"]
    assert "[tproxy-spawner] <defunct>" not in lab.host.run("ps", "-ef").stdout
    lab.host.tproxy("stop")
    assert lab.titles() == []


def test_guests_are_served_while_the_daemon_is_away(lab: OneBridge) -> None:
    kill_daemon(lab.host)
    assert lab.ask() == "one"


def test_guests_wait_while_the_daemon_and_its_workers_are_away(lab: OneBridge) -> None:
    kill_daemon(lab.host)
    lab.host.run("pkill", "-KILL", "-f", "^tproxy-worker *$")
    asker = lab.guest.popen(
        *(sys.executable, "-m", "tproxy.lab.inside", "ask", SERVICE_ADDRESS, "5030", str(PATIENCE)),
        stdout=subprocess.PIPE,
    )
    established = ("ss", "-Htn", "state", "established", "sport", "=", ":5030")
    for _ in eventually():
        assert asker.poll() is None, "it was refused instead of waiting"
        if lab.host.run(*established, netns="one_tproxy_br0").stdout:
            break
    lab.host.tproxy("start")
    assert asker.communicate()[0] == "one"


@pytest.mark.parametrize("lost", ["daemon killed", "restart cut short"])
def test_the_next_hook_for_any_bridge_serves_all_of_them_again(lab: OneBridge, lost: str) -> None:
    lab.host.add_bridge("br1")
    hook = ("--bridge", "br1", "--config", lab.config)
    lab.host.tproxy("hook", "up", *hook)
    before = lab.pids()
    if lost == "daemon killed":
        kill_daemon(lab.host)
    else:
        lab.host.run(*program("restart_cut_short"))
    lab.host.tproxy("hook", "up", *hook)
    assert lab.ask() == "one"
    for _ in eventually():
        after = lab.pids()
        if lost == "daemon killed" or not set(after.values()) & set(before.values()):
            break
    lab.host.tproxy("hook", "down", *hook)
    assert lab.ask() == "one"
    assert lab.pids().items() >= {"one_tproxy": after["one_tproxy"]}.items()


def test_a_relay_that_hangs_when_the_daemon_comes_back_is_replaced(lab: OneBridge) -> None:
    before = lab.pids()
    directory = lab.host.run("readlink", f"/proc/{before['one_tproxy']}/cwd").stdout.strip()
    lab.host.run("kill", "-STOP", str(before["one_tproxy_br0"]))
    kill_daemon(lab.host)
    lab.host.popen("sh", "-c", f"cd {directory}; exec {' '.join(program('impatient_daemon'))} --stay")
    lab.await_in_log("daemon 0.1.0 started\n", times=2)
    lab.host.tproxy("start", check=False)  # it may name the relay, if that was not replaced by then
    lab.await_in_log("relay does not answer; killed")
    lab.host.tproxy("start")
    assert lab.ask() == "one"
    assert lab.pids()["one_tproxy_br0"] != before["one_tproxy_br0"]


def test_the_error_that_ends_the_daemon_is_in_its_log(lab: OneBridge) -> None:
    directory = lab.host.run("readlink", f"/proc/{lab.pids()['one_tproxy']}/cwd").stdout.strip()
    lab.host.tproxy("stop")
    broken = lab.host.popen("sh", "-c", f"cd {directory}; exec {' '.join(program('broken_daemon'))} --stay")
    lab.await_in_log("daemon 0.1.0 started\n", times=2)
    lab.host.run("kill", "-HUP", str(lab.pids()["one_tproxy"]))
    assert broken.wait(PATIENCE) == 1
    assert "ZeroDivisionError" in lab.log()
