"""tproxy watch: bridges follow their guests without hooks, and what strangers break is repaired."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.netns.conftest import StartEndpoint
from tests.netns.etc import private_etc
from tests.netns.program import program
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS, BridgeNames

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"
LOG = "/var/log/one_tproxy.log"


class Host:
    """A stand-in with one endpoint, and a configuration that names the bridges br*."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_endpoint(ENDPOINT, 8080, "one")
        self.configure()

    def configure(
        self, grace: float = 0.5, port: int = 5030, remote_port: int = 8080, more: str = ""
    ) -> None:
        self.host.write(
            CONFIG,
            f"tproxy_watch_grace: {grace}\n"
            "tproxy_bridges: [{bridge: 'br*', network: blue, uplinks: [up0]}]\n"
            "tproxy:\n"
            f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {remote_port}}}\n{more}",
        )

    def watch(self, *by: str, config: str = CONFIG) -> int:
        """Start a watcher, by a program that runs it; returns its pid, when it watches."""
        self.program = self.host.popen(*by, sys.executable, "-m", "tproxy", "watch", "--config", config)
        self.watcher = int(self.said("watching bridges").split()[1])
        return self.watcher

    def watch_with_clock(self, clock: str = "running") -> int:
        """As ``watch``, with a clock that ``pass_time`` puts forward.

        A "standing" clock does not go on by itself, a "running" one does.
        """
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self.program = self.host.popen(*program("watcher_with_clock", clock, CONFIG), **pipes)
        self.watcher = int(self.said("watching bridges").split()[1])
        return self.watcher

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass for the watcher; return when it has done everything that was due in it."""
        assert self.program.stdin
        assert self.program.stdout
        # Hooks note when they were called: that was longer ago now.
        for note in self.host.path("/run/tproxy").glob("*/used/*"):
            with suppress(FileNotFoundError):  # the bridge is being taken down
                called = note.stat().st_mtime
                os.utime(note, (called - seconds, called - seconds))
        print(seconds, file=self.program.stdin, flush=True)
        assert self.program.stdout.readline() == "done\n"

    def watched_file(self) -> str:
        """Return the configuration file for which the daemon keeps a watcher; empty when it keeps none."""
        ask = "from tproxy.daemon import client; print((client.ping() or {}).get('watch', ''))"
        return self.host.run(sys.executable, "-c", ask).stdout.strip()

    def signal(self, name: str, pid: int) -> None:
        self.host.run("kill", f"-{name}", str(pid))

    def has_ended(self, pid: int) -> bool:
        """Whether it has, now; that nsenter(1) has not buried it yet, does not matter."""
        status = self.host.path(f"/proc/{pid}/status")
        try:
            return "\nState:\tZ" in status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    @contextmanager
    def paused(self, pid: int) -> Iterator[None]:
        self.signal("STOP", pid)
        try:
            yield
        finally:
            # nsenter stops along with the watcher, at some time, and continues it.
            for _ in eventually():
                if psutil.Process(self.program.pid).status() == psutil.STATUS_STOPPED:
                    break
            self.program.send_signal(signal.SIGCONT)

    def said(self, what: str, times: int = 1) -> str:
        """The last of so many lines of the log that say it, when it is there."""
        lines: list[str] = []
        for _ in eventually():
            lines = [line for line in self.log().splitlines() if what in line]
            if len(lines) >= times:
                break
        return lines[-1]

    def repaired(self, bridge: str, what: str) -> None:
        """Returns when a line of the log says so."""
        for _ in eventually():
            lines = self.log().split(f"bridge {bridge} was broken; repaired: ")[1:]
            if any(what in line.splitlines()[0] for line in lines):
                break

    def remembers(self, *bridges: str) -> None:
        """Returns when the watcher knows these bridges as they are, and no others."""
        # Of each it keeps sysctls of the namespace open, from the look on in which it found all in order.
        files = [f"/proc/sys/net/ipv4/conf/{bridge}a/arp_ignore" for bridge in sorted(bridges)]
        folder = self.host.path(f"/proc/{self.watcher}/fd")
        for _ in eventually():
            with suppress(FileNotFoundError):  # one that it closes at this moment
                held = [os.readlink(each) for each in folder.iterdir()]
                if sorted(each for each in held if each.endswith("a/arp_ignore")) == files:
                    break

    def log(self) -> str:
        path = self.host.path(LOG)
        return path.read_text() if path.exists() else ""

    def hook(self, *arguments: str) -> None:
        self.host.tproxy("hook", *arguments, "--config", CONFIG)

    def nft(self, command: str) -> str:
        return self.host.run("nft", command).stdout

    def ruleset(self) -> str:
        """Our tables, as text in which order and numbers do not matter."""
        lines = self.nft("list ruleset").splitlines()
        return "\n".join(sorted(line.strip() for line in lines))

    def is_up(self, bridge: str) -> bool:
        return f"ep_{bridge}" in self.host.run("nft", "list", "maps", "ip").stdout.split()

    def wait_up(self, bridge: str) -> None:
        for _ in eventually():
            if self.is_up(bridge) and f"one_tproxy_{bridge}" in self.pids():
                break

    def wait_down(self, bridge: str) -> None:
        for _ in eventually():
            if not self.is_up(bridge):
                break
        for _ in eventually():
            if f"one_tproxy_{bridge}" not in self.host.run("ip", "netns", "list").stdout.split():
                break

    def reaches(self, guest: Guest, port: int = 5030) -> None:
        """Returns when the guest is served."""
        for _ in eventually():
            with suppress(ProcessError):
                assert guest.get(SERVICE_ADDRESS, port, timeout=5) == "one"  # a connection may be lost
                break

    def pids(self) -> dict[str, int]:
        lines = self.host.tproxy("status").stdout.splitlines()
        return {title: int(pid) for title, pid in (line.split(": ") for line in lines)}


@pytest.fixture
def host(hypervisor: Hypervisor) -> Host:
    return Host(hypervisor)


def test_a_bridge_is_up_while_it_has_guests(host: Host) -> None:
    host.host.add_bridge("br0")
    host.host.add_bridge("other0")
    host.watch()
    host.host.ip("link add up0 type veth peer name far", "link set up0 master br0 up")
    other = host.host.add_guest("stranger", "other0")
    guest = host.host.add_guest("guest", "br0")
    host.wait_up("br0")
    assert guest.get(SERVICE_ADDRESS, 5030) == "one"
    assert "network=blue" in host.nft("list map ip one_tproxy ep_br0")

    host.host.ip(f"link del {guest.port}", f"link del {other.port}")
    host.wait_down("br0")
    assert not host.is_up("other0")
    assert host.pids() == {}  # the last bridge
    assert "one_tproxy" not in host.nft("list ruleset")


def test_a_port_counts_though_it_has_no_carrier(host: Host) -> None:
    host.host.add_bridge("br0")
    host.watch()
    # As a tap is until its machine opens it.
    host.host.ip("tuntap add dev tap0 mode tap", "link set tap0 master br0 up")
    host.wait_up("br0")
    assert host.host.path("/sys/class/net/tap0/carrier").read_text().strip() == "0"


def test_messages_that_were_lost_are_made_up_for(host: Host) -> None:
    host.host.add_bridge("br0")
    host.host.add_bridge("br1")
    watcher = host.watch()
    host.host.add_guest("guest", "br1")
    host.wait_up("br1")
    with host.paused(watcher):
        host.host.ip("link add storm type veth peer name far")
        for _ in range(4):
            host.host.ip(*(f"link set storm mtu {mtu}" for mtu in (1400, 1401) * 1000))
        host.host.add_guest("late", "br0")
        host.host.ip("link del br1b")
        # Columns: socket, protocol, port id, groups, read and write buffer, dump, locks, drops.
        lines = host.host.run("cat", "/proc/net/netlink").stdout.splitlines()[1:]
        sockets = [line.split() for line in lines]
        assert any(int(each[8]) for each in sockets if each[1] == "0" and each[3] == "00000001")
    host.wait_up("br0")
    host.said("bridge br1 was broken; repaired: create veth br1b")


def test_guests_that_were_there_before_are_found_and_a_deleted_bridge_is_forgotten(host: Host) -> None:
    for bridge in ("br0", "br1"):
        host.host.add_bridge(bridge)
        host.host.add_guest(f"guest-{bridge}", bridge)
    host.watch()
    host.wait_up("br0")
    host.wait_up("br1")
    host.host.ip("link del br0")
    host.wait_down("br0")
    assert set(host.pids()) == {"one_tproxy", "one_tproxy_br1"}


def test_a_port_that_comes_back_in_time_cuts_nothing(host: Host, start_endpoint: StartEndpoint) -> None:
    start_endpoint("echo", ENDPOINT, 8081)
    host.configure(grace=1, remote_port=8081)
    host.host.add_bridge("br0")
    host.watch_with_clock()
    guest = host.host.add_guest("guest", "br0")
    host.wait_up("br0")
    talk = Talk(guest, 5030)
    for _ in range(10):
        host.host.ip(f"link set {guest.port} nomaster", f"link set {guest.port} master br0")
    host.pass_time(2)  # longer than the grace time
    assert talk.say("still there") == "still there"


def test_a_bridge_that_a_hook_brought_up_waits_for_its_guest(host: Host) -> None:
    host.configure(grace=100)
    host.host.add_bridge("br0")
    host.watch_with_clock("standing")
    guest = host.host.add_guest("guest", "br0")
    host.wait_up("br0")
    host.host.ip(f"link del {guest.port}")
    host.pass_time(90)
    host.hook("up", "--bridge", "br0", "--network", "blue")
    host.pass_time(60)  # the grace time of the guest that left is over
    assert host.is_up("br0")
    host.pass_time(100)
    host.said("had no guest for 100 s: taken down")
    assert host.log().count("taken down") == 1


def test_what_is_flushed_or_deleted_is_repaired_in_one_line_each(host: Host) -> None:
    for bridge in ("br0", "hooked"):
        host.host.add_bridge(bridge)
    host.watch_with_clock()
    guest = host.host.add_guest("guest", "br0")
    other = host.host.add_guest("other", "hooked")
    host.hook("up", "--bridge", "hooked", "--network", "red", "--uplink", "far0")
    host.wait_up("br0")
    host.reaches(guest)
    host.reaches(other)
    before = host.ruleset()
    processes = host.pids()
    repaired = "bridge br0 was broken; repaired: "

    host.remembers("br0", "hooked")
    host.nft("flush ruleset")
    for bridge in ("br0", "hooked"):
        line = host.said(f"bridge {bridge} was broken; repaired: ")
        assert line.endswith(f"load service map of {bridge}; load guards of {bridge}")
    assert host.ruleset() == before
    assert host.pids() == processes

    host.nft("delete table bridge one_tproxy")
    assert "load guards" in host.said(repaired, 2)
    host.said("bridge hooked was broken; repaired: ", 2)
    assert host.ruleset() == before

    host.nft("flush chain bridge one_tproxy ch_br0")
    host.said(repaired, 3)
    assert host.ruleset() == before
    # Which ports are whose is the daemon's care too: just after a repair it may see to these itself.
    for command in ('delete element {} veths {{ "br0b" }}', "flush set {} guarded"):
        host.nft(command.format("bridge one_tproxy"))
        for _ in eventually():
            if host.ruleset() == before:
                break

    host.host.ip("link del br0b")
    host.repaired("br0", "create veth br0b")
    host.reaches(guest)

    host.host.run("ip", "netns", "del", "one_tproxy_br0")
    host.repaired("br0", "create namespace one_tproxy_br0")
    host.reaches(guest)

    host.host.run("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", netns="one_tproxy_br0")
    host.repaired("br0", "arp_ignore=1")

    host.host.ip("link set br0b nomaster")
    host.repaired("br0", "make br0b a port of br0")
    host.reaches(guest)
    host.pass_time(5)
    assert 7 <= host.log().count(repaired) <= 9
    assert 2 <= host.log().count("bridge hooked was broken; repaired: ") <= 3
    assert host.pids()["one_tproxy_hooked"] == processes["one_tproxy_hooked"]


def test_a_map_that_somebody_deletes_or_changes_is_meant_to_be(host: Host) -> None:
    for bridge in ("br0", "br1"):
        host.host.add_bridge(bridge)
        host.host.add_guest(f"guest-{bridge}", bridge)
    host.watch()
    host.wait_up("br0")
    host.wait_up("br1")
    host.remembers("br0", "br1")
    host.nft("add element ip one_tproxy ep_br1 { 99 : 10.0.0.1 . 99 }")
    host.nft("delete map ip one_tproxy ep_br0")
    host.host.ip("link set br0 mtu 1400")
    host.remembers("br1")  # and of it what was said before
    assert not host.is_up("br0")
    # That is what is restored.
    host.nft("flush ruleset")
    host.said("bridge br1 was broken")
    assert "99 : 10.0.0.1 . 99" in host.nft("list map ip one_tproxy ep_br1")
    assert not host.is_up("br0")


def test_a_bridge_that_another_program_built_is_repaired_as_far_as_it_is_known(host: Host) -> None:
    names = BridgeNames("drop0")
    host.host.add_bridge("drop0")
    guest = host.host.add_guest("guest", "drop0")
    watcher = host.watch_with_clock()
    host.host.ip(
        f"netns add {names.namespace}",
        f"link add {names.veth_bridge} type veth peer name {names.veth_namespace} netns {names.namespace}",
        f"link set {names.veth_bridge} master drop0 up",
    )
    host.host.ip(
        f"address add {SERVICE_ADDRESS}/32 dev {names.veth_namespace}",
        f"link set {names.veth_namespace} up",
        f"route add default dev {names.veth_namespace} scope link",
        netns=names.namespace,
    )
    host.nft("add table ip one_tproxy")
    host.nft("add map ip one_tproxy ep_drop0 { type inet_service : ipv4_addr . inet_service; }")
    host.nft(f"add element ip one_tproxy ep_drop0 {{ 5030 : {ENDPOINT} . 8080 }}")
    host.host.tproxy("start")
    host.reaches(guest)
    before = host.ruleset()
    assert "bridge one_tproxy" not in before

    host.remembers("drop0")
    host.nft("flush ruleset")
    host.said("bridge drop0 was broken; repaired: load service map of drop0")
    assert host.ruleset() == before
    host.host.ip(f"link del {names.veth_bridge}")
    host.said("bridge drop0 was broken; repaired: create veth drop0b")
    host.reaches(guest)
    assert host.ruleset() == before

    # And when its builder takes it down, in one go, it stays down.
    empty = "nft 'delete map ip one_tproxy ep_drop0; delete table ip one_tproxy'"
    gone = f"ip netns del {names.namespace}; ip link del {names.veth_bridge}"
    with host.paused(watcher):  # one go for it, however long these three take
        host.host.run("sh", "-c", f"{empty}; {gone}")
    host.pass_time(5)
    assert host.log().count("was broken") == 2
    assert host.ruleset() == ""


def test_a_killed_daemon_is_started_again_and_stop_ends_the_watcher_too(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_up("br0")
    before = host.pids()
    host.signal("KILL", before["one_tproxy"])
    host.said("the daemon was gone; started again")
    host.reaches(guest)
    assert host.pids()["one_tproxy"] != before["one_tproxy"]

    refused = host.host.tproxy("watch", "--config", CONFIG, check=False)
    assert (refused.returncode, refused.stderr) == (1, "tproxy: a watcher is running already\n")

    host.host.tproxy("restart")
    host.said("watching bridges", 2)
    assert set(host.pids()) == {"one_tproxy", "one_tproxy_br0"}
    host.reaches(guest)

    host.host.tproxy("stop")
    assert host.pids() == {}
    assert host.has_ended(watcher)
    # Nothing is left that could start a daemon later.
    assert host.host.run("pgrep", "-f", "^(one_tproxy|tproxy-)", check=False).stdout == ""


def test_the_file_is_read_again_on_a_signal_and_kept_in_mind_when_it_is_gone(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_up("br0")
    host.configure(port=5040)
    host.signal("HUP", watcher)
    host.reaches(guest, 5040)

    host.host.path(CONFIG).unlink()
    for _ in range(2):
        host.signal("HUP", watcher)
        host.said("what it said last stays in force")
    host.host.add_bridge("br1")
    host.reaches(host.host.add_guest("late", "br1", "10.0.1.5/24"), 5040)
    assert host.log().count("what it said last stays in force") == 1
    host.configure(port=5050)
    host.signal("HUP", watcher)
    host.reaches(guest, 5050)


def test_an_outage_of_dns_does_not_bring_back_what_was_taken_down(host: Host, blackhole: str) -> None:
    dead = f"nameserver {blackhole}\noptions timeout:1 attempts:1\n"
    private_etc(
        host.host, resolv_conf=dead, hosts=f"{ENDPOINT} api.example\n", nsswitch_conf="hosts: files dns\n"
    )
    host.configure(more="- {service_port: 5040, remote_addr: api.example, remote_port: 8080}\n")
    host.host.add_bridge("br0")
    host.host.add_guest("guest", "br0")
    watcher = host.watch_with_clock()
    host.wait_up("br0")
    host.hook("down", "--bridge", "br0", "--force")
    for known in ("", f"{ENDPOINT} api.example\n"):
        host.host.write("/etc/hosts", known)
        host.signal("HUP", watcher)
        host.said("as before")
        host.pass_time(5)
        assert not host.is_up("br0")


def test_the_daemon_keeps_a_watcher_if_it_is_to(host: Host) -> None:
    host.configure(more="tproxy_watch: true\n")
    env = {"TPROXY_CONFIG": CONFIG}
    host.host.tproxy("start", env=env)
    first = int(host.said("watching bridges").split()[1])
    assert set(host.pids()) == {"one_tproxy"}  # though there is no map, and nothing else is shown
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    host.reaches(guest)

    host.signal("KILL", first)
    second = int(host.said("watching bridges", 2).split()[1])
    assert second != first
    host.signal("KILL", host.pids()["one_tproxy"])
    host.said("the daemon was gone; started again")
    host.reaches(guest)

    host.configure()
    host.host.tproxy("reload", env=env)
    host.said("wants no watcher any more")
    for _ in eventually():
        if host.host.run("kill", "-0", str(second), check=False).returncode != 0:
            break
    host.reaches(guest)
    host.host.tproxy("stop")
    assert host.pids() == {}


def test_beside_hooks_for_the_same_bridges_all_ends_well(host: Host) -> None:
    bridges = [f"br{number}" for number in range(6)]
    for bridge in bridges:
        host.host.add_bridge(bridge)
    host.watch()
    guests = [host.host.add_guest(f"guest-{bridge}", bridge) for bridge in bridges]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda bridge: host.hook("up", "--bridge", bridge, "--network", "blue"), bridges * 2))
    for guest in guests:
        assert guest.get(SERVICE_ADDRESS, 5030) == "one"
    assert len(host.pids()) == 7
    assert "cannot" not in host.log()


def test_what_cannot_be_brought_up_is_said_and_tried_again(host: Host) -> None:
    host.host.add_bridge("br0")
    host.host.ip("link add br0b type bridge")  # the name of our port
    host.watch()
    guest = host.host.add_guest("guest", "br0")
    host.said("bridge br0: link br0b is not a veth; bridge br0 needs that name")
    assert "one_tproxy" not in host.nft("list ruleset")
    host.host.ip("link del br0b")
    host.reaches(guest)


def test_without_a_usable_configuration_there_is_no_watcher(host: Host) -> None:
    host.host.write(CONFIG, "tproxy: {")
    refused = host.host.tproxy("watch", "--config", CONFIG, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"tproxy: {CONFIG}:2: not YAML")
    assert refused.stderr.count("\n") == 1
    host.said(f"no watcher: {CONFIG}:2: not YAML")


def test_whatever_was_done_to_it_in_the_end_all_is_in_order(host: Host) -> None:
    choose = random.Random(1)
    bridges = [f"br{number}" for number in range(2)]
    for bridge in bridges:
        host.host.add_bridge(bridge)
    guests = {bridge: host.host.add_guest(f"guest-{bridge}", bridge) for bridge in bridges}
    host.watch()
    for guest in guests.values():
        host.reaches(guest)
    host.remembers(*bridges)
    hooks = []
    options = ("--network", "blue", "--uplink", "up0", "--config", CONFIG)
    for _ in range(15):
        bridge = choose.choice(bridges)
        port, namespace = guests[bridge].port, f"one_tproxy_{bridge}"
        deed = choose.choice(
            (
                "nft flush ruleset",
                "nft delete table bridge one_tproxy",
                "nft flush set bridge one_tproxy guarded",
                f"ip link del {bridge}b",
                f"ip link set {bridge}b nomaster",
                f"ip netns del {namespace}",
                f"ip netns exec {namespace} ip link del {bridge}a",
                f"ip netns exec {namespace} sysctl -w net.ipv4.conf.all.arp_ignore=2",
                f"ip link set {port} nomaster; ip link set {port} master {bridge}",
                "hook",
            )
        )
        if deed == "hook":
            command = [sys.executable, "-m", "tproxy", "hook", "up", "--bridge", bridge, *options]
            hooks.append(host.host.popen(*command))
        else:
            host.host.run("sh", "-c", deed, check=False)  # it may be gone already
        time.sleep(choose.random() / 4)  # so that the watcher is at another point each time
    for guest in guests.values():
        host.reaches(guest)
    for hook in hooks:
        hook.wait()
    for bridge in bridges:
        for _ in eventually():  # as soon as the watcher is done
            planned = host.host.tproxy("hook", "up", "--bridge", bridge, *options, "--dry-run").stdout
            if not planned:
                break


def test_a_refresh_reaches_the_watcher_too(host: Host) -> None:
    host.host.add_bridge("br0")
    host.host.add_bridge("br1")
    guest = host.host.add_guest("guest", "br0")
    host.watch()
    host.reaches(guest)
    host.configure(port=5040)
    host.host.tproxy("refresh", "--config", CONFIG)
    host.reaches(guest, 5040)
    host.reaches(host.host.add_guest("late", "br1", "10.0.1.5/24"), 5040)


def test_what_somebody_changed_is_left_when_the_file_says_what_it_said(host: Host) -> None:
    guests = []
    for number, bridge in enumerate(("br0", "br1")):
        host.host.add_bridge(bridge)
        guests.append(host.host.add_guest(f"guest{number}", bridge))
    host.watch_with_clock()
    for guest in guests:
        host.reaches(guest)
    host.nft(f"add element ip one_tproxy ep_br0 {{ 99 : {ENDPOINT} . 8080 }}")
    host.hook("down", "--bridge", "br1", "--force")
    host.pass_time(2)
    # logrotate reloads without a change. The second time the file is another, but not for these bridges.
    for more in ("", "tproxy_debug_level: 3\n"):
        host.configure(more=more)
        host.host.tproxy("reload", env={"TPROXY_CONFIG": CONFIG})
        host.pass_time(2)
        assert guests[0].get(SERVICE_ADDRESS, 99) == "one"
        assert not host.is_up("br1")


def test_a_bridge_of_another_network_now_has_nothing_of_the_network_before(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    watcher = host.watch()
    host.reaches(guest)
    text = host.host.path(CONFIG).read_text()
    host.host.write(CONFIG, text.replace("blue", "red").replace("8080}", "8080, networks: blue}"))
    host.signal("HUP", watcher)
    for _ in eventually():
        with suppress(ProcessError):
            guest.get(SERVICE_ADDRESS, 5030)
            continue
        break
    assert "network=red" in host.nft("list map ip one_tproxy ep_br0")


def test_a_bridge_that_cannot_be_brought_up_is_tried_again_later_and_later(host: Host) -> None:
    host.host.add_bridge("br0")
    host.host.ip("netns add one_tproxy_br0")
    taken = listen(host, 5030)
    host.watch_with_clock("standing")
    guest = host.host.add_guest("guest", "br0")
    host.said("bridge br0 cannot be brought up")
    for failures, delay in ((1, 2), (2, 4), (3, 8)):
        host.pass_time(delay - 0.5)
        assert host.log().count("bridge br0 cannot be brought up") == failures
        host.pass_time(0.6)
        host.said("bridge br0 cannot be brought up", failures + 1)
    taken.kill()
    host.pass_time(20)
    host.reaches(guest)


def test_a_change_that_fails_is_tried_again(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    watcher = host.watch()
    host.reaches(guest)
    taken = listen(host, 5040)
    host.configure(port=5040)
    host.signal("HUP", watcher)
    host.said("port 5040 cannot listen")
    host.signal("HUP", watcher)  # the file says what it said, but the bridge has it not
    taken.kill()
    host.reaches(guest, 5040)


def listen(host: Host, port: int) -> subprocess.Popen[str]:
    """Let another program listen at the port in br0's namespace."""
    program = f"import socket; s = socket.create_server(('', {port})); print('ready', flush=True); s.accept()"
    return host.host.serve(sys.executable, "-c", program, netns="one_tproxy_br0")


def test_few_descriptors_are_no_bound_to_the_number_of_bridges(host: Host) -> None:
    bridges = [f"br{number}" for number in range(5)]
    for bridge in bridges:
        host.host.add_bridge(bridge)
        host.host.add_guest(f"guest-{bridge}", bridge)
    host.watch("prlimit", "--nofile=64:4096")
    for bridge in bridges:
        host.wait_up(bridge)
    host.remembers(*bridges)
    for bridge in bridges:
        host.host.run("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", netns=f"one_tproxy_{bridge}")
    for bridge in bridges:
        host.repaired(bridge, "arp_ignore=1")
    assert "Too many open files" not in host.log()


def test_of_bridges_that_came_and_went_nothing_is_kept(host: Host) -> None:
    watcher = host.watch_with_clock()
    files = []
    for number in range(3):
        bridge = f"br{number}"
        host.host.add_bridge(bridge)
        host.host.add_guest(f"guest{number}", bridge)
        host.wait_up(bridge)
        host.remembers(bridge)
        host.host.ip(f"link del {bridge}")
        host.wait_down(bridge)
        host.remembers()
        host.pass_time(5)  # it closes its other files
        files.append(descriptors(host, watcher))
    for _ in eventually():
        if descriptors(host, watcher) <= files[1]:
            break


def descriptors(host: Host, pid: int) -> int:
    return len(list(host.host.path(f"/proc/{pid}/fd").iterdir()))


def test_a_daemon_that_cannot_be_started_now_is_started_later(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    watcher = host.watch_with_clock()
    host.reaches(guest)
    host.pass_time(5)  # it opens everything that it needs
    files = len(list(host.host.path(f"/proc/{watcher}/fd").iterdir()))
    host.host.run("prlimit", f"--pid={watcher}", f"--nofile={files}:")
    host.signal("KILL", host.pids()["one_tproxy"])
    host.said("the daemon is gone and cannot be started")
    host.pass_time(5)
    assert host.log().count("the daemon is gone and cannot be started") == 1
    host.host.run("prlimit", f"--pid={watcher}", "--nofile=1024:")
    host.said("the daemon was gone; started again")
    host.reaches(guest)


def test_an_uplink_that_only_a_hook_named_is_no_guest_for_a_watcher_that_starts_later(host: Host) -> None:
    host.host.add_bridge("br0")
    # Or the kernel tells of the port once more when it has forwarded for a while.
    host.host.ip("link set br0 type bridge forward_delay 0")
    host.host.ip("link add far0 type veth peer name far", "link set far0 master br0 up")
    host.hook("up", "--bridge", "br0", "--uplink", "far0")
    host.watch()
    host.wait_down("br0")


def test_a_clock_that_was_set_back_keeps_no_bridge_up(host: Host) -> None:
    host.host.add_bridge("br0")
    host.hook("up", "--bridge", "br0")
    host.host.run("sh", "-c", "touch -d tomorrow /run/tproxy/*/used/br0")
    host.watch()
    host.wait_down("br0")


@pytest.mark.parametrize("busy", [False, True])
def test_a_restart_while_the_file_cannot_be_read_leaves_all_as_it_is(host: Host, busy: bool) -> None:
    host.configure(more="tproxy_watch: true\n")
    env = {"TPROXY_CONFIG": CONFIG}
    host.host.tproxy("start", env=env)
    watcher = int(host.said("watching bridges").split()[1])
    host.host.add_bridge("br0")
    if busy:
        host.reaches(host.host.add_guest("guest", "br0"))
    text = host.host.path(CONFIG).read_text()
    host.host.write(CONFIG, "tproxy: {")
    before = host.pids()["one_tproxy"]
    host.host.tproxy("restart", env=env)
    daemon = host.pids()["one_tproxy"]
    assert daemon != before
    host.said("what it said last stays in force")
    host.host.add_bridge("br1")
    host.reaches(host.host.add_guest("late", "br1", "10.0.1.5/24"))
    # And each of the two brings the other one back.
    host.host.write(CONFIG, text)
    host.signal("KILL", daemon)
    host.said("the daemon was gone; started again")
    host.signal("KILL", watcher)
    host.said("watching bridges", 2)


def test_a_stop_right_after_a_restart_ends_the_watcher(host: Host) -> None:
    host.host.run("mkfifo", "/run/go")
    slow = Path(__file__).parents[1] / "programs" / "slow_start"
    watcher = host.watch("env", f"PYTHONPATH={slow}:{Path(__file__).parents[3]}")
    host.host.run(*program("restart_and_stop", str(watcher)))
    assert host.has_ended(watcher)


@pytest.mark.parametrize("flushed", ["before", "while it waits for the lock"])
def test_maps_that_are_flushed_during_a_restart_come_back(host: Host, flushed: str) -> None:
    host.host.add_bridge("hooked")
    guest = host.host.add_guest("guest", "hooked")
    watcher = host.watch()
    host.hook("up", "--bridge", "hooked", "--network", "red")
    host.remembers("hooked")
    if flushed == "before":
        host.host.run("sh", "-c", f"nft flush ruleset && kill -USR2 {watcher}")
    else:
        host.host.run(*program("flush_while_it_waits", str(watcher)))
    host.said("watching bridges", 2)
    host.wait_up("hooked")
    host.reaches(guest)


def test_a_port_that_was_renamed_is_replaced(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    host.hook("up", "--bridge", "br0")
    for name in ("strange0", "strange1"):
        host.host.ip("link set br0b down", f"link set br0b name {name}", f"link set {name} up")
        if name == "strange0":
            host.hook("up", "--bridge", "br0")
            assert guest.get(SERVICE_ADDRESS, 5030) == "one"
            host.watch()
            host.remembers("br0")
    host.repaired("br0", "create veth br0b")
    host.reaches(guest)
    assert "strange" not in host.host.run("ip", "link").stdout


def test_of_a_bridge_that_was_renamed_nothing_is_left_under_the_old_name(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    host.watch_with_clock()
    host.reaches(guest)
    host.host.ip("link set br0 down")
    host.pass_time(1)  # it looks at the bridge under the old name
    host.host.ip("link set br0 name br1", "link set br1 up")
    host.wait_up("br1")
    host.wait_down("br0")
    assert "br0b" not in host.host.run("ip", "link").stdout
    host.reaches(guest)


def test_a_file_in_another_place_is_watched_by_another_watcher(host: Host) -> None:
    host.configure(more="tproxy_watch: true\n")
    host.host.tproxy("start", env={"TPROXY_CONFIG": CONFIG})
    host.said("watching bridges")
    other = host.host.write("/run/other.yaml", host.host.path(CONFIG).read_text())
    host.host.path(CONFIG).unlink()
    host.host.tproxy("reload", env={"TPROXY_CONFIG": other})
    host.said(f"watching bridges, as {other} says")


def test_a_file_without_a_watcher_ends_not_the_one_that_another_file_wants(host: Host) -> None:
    host.configure(more="tproxy_watch: true\n")
    host.host.add_bridge("br0")
    host.hook("up", "--bridge", "br0")
    watcher = int(host.said("watching bridges").split()[1])
    other = host.host.write("/run/other.yaml", "tproxy: []\n")
    daemon = host.pids()["one_tproxy"]
    for command in (["start"], ["reload"], ["refresh", "--config", other]):
        host.host.tproxy(*command, env={"TPROXY_CONFIG": other})
    host.signal("KILL", daemon)
    host.said("the daemon was gone; started again")  # by the watcher, after the commands' signals
    assert "wants no watcher" not in host.log()
    host.host.tproxy("restart", env={"TPROXY_CONFIG": other})
    host.said("watching bridges", 2)

    # That file ends the watcher, whichever file the command was given.
    host.configure()
    host.host.tproxy("reload", env={"TPROXY_CONFIG": other})
    host.said("wants no watcher any more")
    for _ in eventually():
        if host.host.run("kill", "-0", str(watcher), check=False).returncode != 0:
            break
    assert host.watched_file() == ""  # the daemon starts no other one
    assert host.log().count("watching bridges") == 2


@pytest.mark.parametrize("command", ["start", "reload", "restart"])
def test_a_file_that_is_gone_with_no_other_in_its_place_ends_no_watcher(host: Host, command: str) -> None:
    host.configure(more="tproxy_watch: true\n")
    host.host.tproxy("start", env={"TPROXY_CONFIG": CONFIG})
    watcher = int(host.said("watching bridges").split()[1])
    daemon = host.pids()["one_tproxy"]
    host.host.path(CONFIG).unlink()
    host.host.tproxy(command, env={"TPROXY_CONFIG": CONFIG})
    assert command == "restart" or host.pids()["one_tproxy"] == daemon
    host.host.add_bridge("br0")
    host.reaches(host.host.add_guest("guest", "br0"))
    assert host.host.run("kill", "-0", str(watcher), check=False).returncode == 0


def test_a_process_that_replaces_itself_takes_no_descriptor_along(host: Host) -> None:
    host.host.add_bridge("br0")
    host.host.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_up("br0")
    host.host.popen(sys.executable, "-m", "tproxy", "daemon")
    host.said("watching bridges", 2)
    files = []
    for number in range(3):
        host.host.tproxy("restart")
        host.said("watching bridges", number + 3)
        # After a repair, watcher and daemon have opened everything that they need.
        host.host.run("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", netns="one_tproxy_br0")
        host.said("arp_ignore=1", number + 1)
        host.remembers("br0")
        pids = (watcher, host.pids()["one_tproxy"])
        files.append([descriptors(host, pid) for pid in pids])
    for _ in eventually():
        if all(descriptors(host, pid) <= before for pid, before in zip(pids, files[1], strict=True)):
            break


def test_a_map_of_another_type_is_named_once(host: Host) -> None:
    host.watch_with_clock()
    host.nft("add table ip one_tproxy")
    host.nft("add map ip one_tproxy ep_x0 { type inet_service : ipv4_addr; }")
    host.said("map ep_x0 is not of type")
    host.pass_time(10)
    assert host.log().count("map ep_x0 is not of type") == 1


def test_a_bridge_that_went_down_with_a_guests_mtu_goes_up_again(host: Host) -> None:
    host.host.add_bridge("br0")
    guest = host.host.add_guest("guest", "br0")
    host.watch()
    host.reaches(guest)
    mtu = host.host.path("/sys/class/net/br0/mtu")
    host.host.ip("tuntap add dev tap0 mode tap", "link set tap0 mtu 1400", "link set tap0 master br0 up")
    host.repaired("br0", "MTU 1400")
    assert mtu.read_text() == "1400\n"
    host.host.ip("link del tap0")
    host.repaired("br0", "MTU 1500")
    assert mtu.read_text() == "1500\n"
    host.reaches(guest)
