"""``tproxy reopen-logs``: docs/contract.md, Commands."""

from __future__ import annotations

import sys

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.one_bridge import ECHO, OneBridge
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

NAMES = ("one_tproxy", "one_tproxy_br0")


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    lab = OneBridge(hypervisor)
    lab.add_echo()
    return lab


def rotate(lab: OneBridge) -> None:
    for name in NAMES:
        log = lab.host.path(f"/var/log/{name}.log")
        log.rename(log.with_suffix(".log.1"))


def held_logs(lab: OneBridge) -> str:
    """The open log files of all processes."""
    listing = "ls -l /proc/[0-9]*/fd 2>/dev/null | sed -n 's/.*-> //p' | grep /var/log/"
    return lab.host.run("sh", "-c", listing, check=False).stdout


def watch(lab: OneBridge) -> None:
    lab.host.write("/run/watch.yaml", f"tproxy_bridges: []\n{lab.host.path(lab.config).read_text()}")
    lab.host.popen(sys.executable, "-m", "tproxy", "watch", "--config", "/run/watch.yaml")
    lab.await_in_log("watching bridges")


def test_all_processes_write_to_new_files_when_it_returns(lab: OneBridge) -> None:
    talk = Talk(lab.guest, ECHO)
    assert talk.say("hello") == "hello"
    lab.host.tproxy("restart")  # an old daemon finishes this connection
    watch(lab)
    for _ in eventually():  # what was there before the restart may still be ending
        titles = sorted(map(str.strip, lab.titles()))
        if [titles.count(each) for each in ("one_tproxy", "tproxy-spawner", "tproxy-draining")] == [1, 1, 1]:
            break
    rotate(lab)
    done = lab.host.tproxy("reopen-logs")
    assert (done.stdout, done.stderr) == ("", "")
    assert set(held_logs(lab).split()) == {f"/var/log/{name}.log" for name in NAMES}
    assert sorted(map(str.strip, lab.titles())) == titles
    assert talk.say("still here") == "still here"


def test_it_applies_neither_maps_nor_the_configuration(lab: OneBridge) -> None:
    watch(lab)
    lab.host.write("/run/watch.yaml", "tproxy: [")
    lab.nft(lab.element("delete", 5030))
    rotate(lab)
    done = lab.host.tproxy("reopen-logs", env={"TPROXY_CONFIG": "/run/watch.yaml"})
    assert (done.stdout, done.stderr) == ("", "")
    assert lab.ask() == "one"
    assert "watch.yaml" not in lab.log()


def test_it_is_quiet_when_nothing_runs(lab: OneBridge) -> None:
    lab.host.tproxy("stop")
    rotate(lab)
    done = lab.host.tproxy("reopen-logs")
    assert (done.stdout, done.stderr) == ("", "")
    assert lab.titles() == []
    assert not lab.host.path("/var/log/one_tproxy.log").exists()


def test_without_a_daemon_the_processes_that_write_to_the_old_log_are_named(lab: OneBridge) -> None:
    """Relays and workers cannot open files: the next daemon gives them the new ones."""
    before = lab.pids()
    kill_daemon(lab.host)
    rotate(lab)
    done = lab.host.tproxy("reopen-logs", check=False)
    assert done.returncode == 1
    assert (
        f"process {before['one_tproxy_br0']} still writes to the log file that was moved away" in done.stderr
    )
    lab.host.tproxy("start")
    lab.host.tproxy("reopen-logs")
    assert not any(each.endswith(".1") for each in held_logs(lab).split())


def test_a_process_that_does_not_reopen_its_log_is_named(lab: OneBridge) -> None:
    relay = str(lab.pids()["one_tproxy_br0"])
    lab.host.run("kill", "-STOP", relay)
    rotate(lab)
    done = lab.host.tproxy("reopen-logs", check=False)
    assert done.returncode == 1
    assert done.stderr == f"tproxy: process {relay} still writes to the log file that was moved away\n"
    lab.host.run("kill", "-CONT", relay)
    lab.host.tproxy("reopen-logs")
