"""The watcher as a process: how it starts, restarts and ends, and how daemon and watcher start each other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.program import program
from tests.netns.waiting import eventually
from tests.netns.watch.watched_host import CONFIG, Host


def test_a_watcher_does_not_start_without_a_usable_configuration(host: Host) -> None:
    host.hypervisor.write(CONFIG, "tproxy: {")
    refused = host.hypervisor.tproxy("watch", "--config", CONFIG, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"tproxy: {CONFIG}:2: not YAML")
    assert refused.stderr.count("\n") == 1
    host.wait_for_line(f"no watcher: {CONFIG}:2: not YAML")


def test_a_killed_daemon_is_started_again_and_stop_ends_the_watcher_too(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_up("br0")
    before = host.pids()
    kill_daemon(host.hypervisor)
    host.wait_for_line("the daemon was gone; started again")
    host.wait_served(guest)
    assert host.pids()["one_tproxy"] != before["one_tproxy"]

    refused = host.hypervisor.tproxy("watch", "--config", CONFIG, check=False)
    assert (refused.returncode, refused.stderr) == (1, "tproxy: a watcher is running already\n")

    host.hypervisor.tproxy("restart")
    host.wait_for_line("watching bridges", 2)
    assert set(host.pids()) == {"one_tproxy", "one_tproxy_br0"}
    host.wait_served(guest)

    host.hypervisor.tproxy("stop")
    assert host.pids() == {}
    assert host.has_ended(watcher)
    # Nothing is left that could start a daemon later.
    assert host.hypervisor.run("pgrep", "-f", "^(one_tproxy|tproxy-)", check=False).stdout == ""


def test_a_daemon_that_cannot_be_started_now_is_started_later(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch_with_clock()
    host.wait_served(guest)
    host.pass_time(5)  # it opens everything that it needs
    files = len(list(host.hypervisor.path(f"/proc/{watcher}/fd").iterdir()))
    host.hypervisor.run("prlimit", f"--pid={watcher}", f"--nofile={files}:")
    kill_daemon(host.hypervisor)
    host.wait_for_line("the daemon is gone and cannot be started")
    host.pass_time(5)
    assert host.log().count("the daemon is gone and cannot be started") == 1
    host.hypervisor.run("prlimit", f"--pid={watcher}", "--nofile=1024:")
    host.wait_for_line("the daemon was gone; started again")
    host.wait_served(guest)


def test_the_daemon_keeps_a_watcher_if_the_file_wants_one(host: Host) -> None:
    host.configure(more="tproxy_watch: true\n")
    env = {"TPROXY_CONFIG": CONFIG}
    host.hypervisor.tproxy("start", env=env)
    first = int(host.wait_for_line("watching bridges").split()[1])
    assert set(host.pids()) == {"one_tproxy"}  # although there is no map; the watcher is not listed
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_served(guest)

    host.signal("KILL", first)
    second = int(host.wait_for_line("watching bridges", 2).split()[1])
    assert second != first
    kill_daemon(host.hypervisor)
    host.wait_for_line("the daemon was gone; started again")
    host.wait_served(guest)

    host.configure()
    host.hypervisor.tproxy("reload", env=env)
    host.wait_for_line("wants no watcher any more")
    for _ in eventually():
        if host.hypervisor.run("kill", "-0", str(second), check=False).returncode != 0:
            break
    host.wait_served(guest)
    host.hypervisor.tproxy("stop")
    assert host.pids() == {}


@pytest.mark.parametrize("busy", [False, True])
def test_a_restart_while_the_file_cannot_be_read_changes_nothing(host: Host, busy: bool) -> None:
    host.configure(more="tproxy_watch: true\n")
    env = {"TPROXY_CONFIG": CONFIG}
    host.hypervisor.tproxy("start", env=env)
    watcher = int(host.wait_for_line("watching bridges").split()[1])
    host.hypervisor.add_bridge("br0")
    if busy:
        host.wait_served(host.hypervisor.add_guest("guest", "br0"))
    text = host.hypervisor.path(CONFIG).read_text()
    host.hypervisor.write(CONFIG, "tproxy: {")
    before = host.pids()["one_tproxy"]
    host.hypervisor.tproxy("restart", env=env)
    daemon = host.pids()["one_tproxy"]
    assert daemon != before
    host.wait_for_line("the version that was read last stays in force")
    host.hypervisor.add_bridge("br1")
    host.wait_served(host.hypervisor.add_guest("late", "br1", "10.0.1.5/24"))
    # Daemon and watcher still start each other.
    host.hypervisor.write(CONFIG, text)
    kill_daemon(host.hypervisor)
    host.wait_for_line("the daemon was gone; started again")
    host.signal("KILL", watcher)
    host.wait_for_line("watching bridges", 2)


def test_a_stop_right_after_a_restart_ends_the_watcher(host: Host) -> None:
    host.hypervisor.run("mkfifo", "/run/go")
    slow = Path(__file__).parents[1] / "programs" / "slow_start"
    watcher = host.watch("env", f"PYTHONPATH={slow}:{Path(__file__).parents[3]}")
    host.hypervisor.run(*program("restart_and_stop", str(watcher)))
    assert host.has_ended(watcher)


@pytest.mark.parametrize("flushed", ["before", "while it waits for the lock"])
def test_maps_that_are_flushed_during_a_restart_come_back(host: Host, flushed: str) -> None:
    host.hypervisor.add_bridge("hooked")
    guest = host.hypervisor.add_guest("guest", "hooked")
    watcher = host.watch()
    host.hook("up", "--bridge", "hooked", "--network", "red")
    host.wait_until_watched("hooked")
    if flushed == "before":
        host.hypervisor.run("sh", "-c", f"nft flush ruleset && kill -USR2 {watcher}")
    else:
        host.hypervisor.run(*program("flush_while_it_waits", str(watcher)))
    host.wait_for_line("watching bridges", 2)
    host.wait_up("hooked")
    host.wait_served(guest)


def test_a_process_that_replaces_itself_leaks_no_descriptor(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_up("br0")
    host.hypervisor.popen(sys.executable, "-m", "tproxy", "daemon")
    host.wait_for_line("watching bridges", 2)
    files = []
    for number in range(3):
        host.hypervisor.tproxy("restart")
        host.wait_for_line("watching bridges", number + 3)
        # After a repair, watcher and daemon have opened everything that they need.
        host.hypervisor.run("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", netns="one_tproxy_br0")
        host.wait_for_line("arp_ignore=1", number + 1)
        host.wait_until_watched("br0")
        pids = (watcher, host.pids()["one_tproxy"])
        files.append([host.descriptors(pid) for pid in pids])
    for _ in eventually():
        if all(host.descriptors(pid) <= before for pid, before in zip(pids, files[1], strict=True)):
            break
