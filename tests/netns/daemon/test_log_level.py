"""``tproxy log-level``: the level of running processes, which lasts as docs/contract.md says."""

from __future__ import annotations

import re

import pytest

from tests.netns.one_bridge import OneBridge
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

LOGS = "/var/log/one_tproxy.log", "/var/log/one_tproxy_br0.log"


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    lab = OneBridge(hypervisor)
    host = lab.host
    path = host.path(lab.config)
    path.write_text("tproxy_watch: true\ntproxy_bridges: [{bridge: br*}]\n" + path.read_text())
    host.tproxy("reload", env={"TPROXY_CONFIG": lab.config})
    lab.await_in_log("watching bridges")
    return lab


def level(lab: OneBridge, *arguments: str) -> str:
    return lab.host.tproxy("log-level", *arguments).stdout.strip()


def lines(lab: OneBridge, path: str = LOGS[0]) -> list[str]:
    return lab.host.path(path).read_text().splitlines()


def ended(lab: OneBridge) -> int:
    """Return how many connections have a line in the log, which workers write at INFO."""
    return sum("to_guest=" in line for line in lines(lab))


def test_all_processes_take_a_level_and_keep_it_across_hooks_and_reloads(lab: OneBridge) -> None:
    assert level(lab) == "info (configured: info)"
    assert level(lab, "warning") == "warning (configured: info)"
    before, of_relay = ended(lab), len(lines(lab, LOGS[1]))
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    lab.host.tproxy("reload", env={"TPROXY_CONFIG": lab.config})
    lab.nft(lab.element("add", 5031, 8081))
    lab.host.tproxy("start", env={"TPROXY_CONFIG": lab.config})
    assert [lab.ask(), lab.ask(5031)] == ["one", "two"]
    assert level(lab) == "warning (configured: info)"
    for _ in eventually():  # a guest has its answer before the connection has ended
        if not lab.status()["connections"]:
            break
    # Workers and the relay have done what they log at INFO.
    assert level(lab, "configured") == "info (configured: info)"
    assert (ended(lab), len(lines(lab, LOGS[1]))) == (before, of_relay)
    lab.ask()
    for _ in eventually():
        if ended(lab) > before:
            break
    lab.nft("delete element ip one_tproxy ep_br0 { 5031 }")
    lab.host.tproxy("start", env={"TPROXY_CONFIG": lab.config})
    assert any("port 5031 does not listen any more" in line for line in lines(lab, LOGS[1]))


def test_the_watcher_takes_the_level_and_the_next_one_too(lab: OneBridge) -> None:
    """It logs at INFO that a bridge has a guest."""

    def watcher() -> str:
        return lab.host.run("pgrep", "-f", "^tproxy-watch *$", check=False).stdout.strip()

    def attach(number: int) -> None:
        lab.host.add_bridge(f"br{number}")
        lab.host.add_guest(f"guest{number}", f"br{number}")
        for _ in eventually():
            if f"one_tproxy_br{number}" in lab.pids():
                break

    level(lab, "warning")
    attach(1)
    first = watcher()
    lab.host.run("kill", "-KILL", first)
    for _ in eventually():
        if watcher() not in ("", first):
            break
    attach(2)
    level(lab, "configured")
    attach(3)
    lab.await_in_log("bridge br3 has a guest")
    assert not re.search(r"bridge br[12] has a guest", lab.log())


def test_a_level_lasts_its_time_and_no_restart(lab: OneBridge) -> None:
    assert re.fullmatch(r"debug \(for \d+ s, configured: info\)", level(lab, "debug", "--for", "600"))
    lab.host.tproxy("restart", env={"TPROXY_CONFIG": lab.config})
    assert level(lab) == "info (configured: info)"
    level(lab, "error", "--for", "0.2")
    for _ in eventually():
        if level(lab) == "info (configured: info)":
            break
    level(lab, "error")
    lab.host.run("kill", "-KILL", str(lab.pids()["one_tproxy"]))
    for _ in eventually():
        done = lab.host.tproxy("log-level", check=False)
        if done.stdout == "info (configured: info)\n":
            break
    lab.host.tproxy("stop")
    done = lab.host.tproxy("log-level", "debug", check=False)
    assert (done.returncode, done.stderr) == (1, "tproxy: the daemon is not running\n")
    assert lab.host.tproxy("log-level", "--for", "5", check=False).returncode == 2
