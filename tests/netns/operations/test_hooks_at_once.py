"""Hooks of several bridges at once: one bridge whose relay is stuck delays no other."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def changed(lab: OneBridge, port: int) -> str:
    """Write a configuration with another service, and return its path."""
    entries = f"{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}, "
    entries += f"{{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: 8081}}"
    return lab.host.write("/run/changed.yaml", f"tproxy: [{entries}]\n")


def start_hook(lab: OneBridge, bridge: str, config: str) -> subprocess.Popen[str]:
    argv = (sys.executable, "-m", "tproxy", "hook", "up", "--bridge", bridge, "--config", config)
    return lab.host.popen(*argv, stderr=subprocess.PIPE)


def test_hooks_of_other_bridges_go_on_while_a_relay_does_not_report(lab: OneBridge) -> None:
    lab.add_bridge("br1")
    lab.host.add_bridge("br2")
    hooks: list[subprocess.Popen[str]] = []
    for _ in eventually():
        # The daemon replaces such a relay. Where that is faster than the hooks of the other bridges, as on a
        # busy machine, this is tried again.
        lab.host.run("kill", "-STOP", str(lab.pids()["one_tproxy_br0"]))
        hooks.append(start_hook(lab, "br0", changed(lab, 6000 + len(hooks))))
        lab.await_in_log("port 6", times=len(hooks))
        lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
        if hooks[-1].poll() is None:
            break
        hooks[-1].wait()
    lab.host.tproxy("hook", "up", "--bridge", "br2", "--config", lab.config)
    lab.host.run("pkill", "-CONT", "-f", "^one_tproxy_br0 *$", check=False)
    for each in hooks:
        each.communicate()
        assert each.returncode == 0
    assert lab.ask(6000 + len(hooks) - 1) == "two"


@pytest.mark.parametrize("others", [True, False])
def test_hooks_of_other_bridges_go_on_while_a_relay_does_not_end(lab: OneBridge, others: bool) -> None:
    """Also where that was the last bridge, and all processes would end."""
    if others:
        lab.add_bridge("br1")
    lab.host.add_bridge("br2")
    for number in itertools.count(1):
        # The daemon kills such a relay. Where that is faster than the other hook, as on a busy machine, this
        # is tried again.
        lab.host.run("kill", "-STOP", str(lab.pids()["one_tproxy_br0"]))
        argv = (sys.executable, "-m", "tproxy", "hook", "down", "--bridge", "br0", "--force")
        hook = lab.host.popen(*argv, stderr=subprocess.PIPE)
        lab.await_in_log("bridge br0 has no map any more", times=number)
        lab.host.tproxy("hook", "up", "--bridge", "br2", "--config", lab.config)
        in_time = hook.poll() is None
        assert (hook.communicate()[1], hook.returncode) == ("", 0)
        assert "one_tproxy_br2" in lab.titles()
        assert "one_tproxy_br0" not in lab.titles()
        if in_time:
            break
        lab.host.tproxy("hook", "down", "--bridge", "br2", "--force")
        lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)


def test_a_hook_whose_daemon_is_killed_meanwhile_starts_another_one(lab: OneBridge) -> None:
    before = lab.pids()
    lab.host.run("kill", "-STOP", str(before["one_tproxy_br0"]))
    hook = start_hook(lab, "br0", changed(lab, 6000))
    lab.await_in_log("port 6000")
    lab.host.run("kill", "-KILL", str(before["one_tproxy"]))
    lab.host.run("kill", "-CONT", str(before["one_tproxy_br0"]))
    assert hook.communicate()[1] == ""
    assert hook.returncode == 0
    assert lab.ask(6000) == "two"
    assert lab.pids()["one_tproxy"] != before["one_tproxy"]


def test_stop_waits_for_a_hook_that_waits_for_its_relay(lab: OneBridge) -> None:
    relay = str(lab.pids()["one_tproxy_br0"])
    lab.host.run("kill", "-STOP", relay)
    hook = start_hook(lab, "br0", changed(lab, 6000))
    lab.await_in_log("port 6000")
    stop = lab.host.popen(sys.executable, "-m", "tproxy", "stop", stderr=subprocess.PIPE)
    for _ in eventually():  # until it waits for the lock of all bridges, or the hook has ended
        waiting = "-> OFDLCK" in lab.host.run("cat", "/proc/locks").stdout.replace("  ", " ")
        if waiting or hook.poll() is not None:
            break
    lab.host.run("kill", "-CONT", relay, check=False)
    assert (hook.communicate()[1], hook.returncode) == ("", 0)
    assert (stop.communicate()[1], stop.returncode) == ("", 0)
    assert lab.titles() == []
