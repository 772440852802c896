"""Repairs of bridges that are up: what is repaired, and what is left alone; step by step, without a clock.

The repairer is the one of ``tproxy watch``, in a loop where timers do not wait
(programs/stepped_repairer.py).
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.netns.program import program
from tests.netns.ruleset import lasting
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.lab.hypervisor import Hypervisor
from tproxy.names import BridgeNames

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"
FOREIGN = BridgeNames("drop0")


class Host:
    """A stand-in with two bridges that hooks brought up and one for another program, and a repairer."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        for bridge in ("br0", "br1", "drop0"):
            hypervisor.add_bridge(bridge)
        hypervisor.ip("link add far0 type veth peer name far1", "link set far0 master br0 up")
        # An uplink that nobody names.
        hypervisor.ip("link add tunnel type vxlan id 7 dstport 4789", "link set tunnel master br1 up")
        services = f"[{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]"
        hypervisor.write(CONFIG, f"tproxy: {services}\n")
        hypervisor.tproxy("hook", "up", "--bridge", "br0", "--uplink", "far0", "--config", CONFIG)
        hypervisor.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)
        self.before = self.ruleset()

    def start(self) -> list[Any]:
        """Start a repairer, or another one; return what it logs at its first look."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._program = self.hypervisor.popen(*program("stepped_repairer", CONFIG), **pipes)
        assert self._program.stdout
        self.pid = int(self._program.stdout.readline().split()[1])  # after "ready"
        return self.call("doubt_all")

    def after(self, command: str, steps: int = 0) -> list[Any]:
        """Run a shell command; return the lines that the repairer logs then, sorted.

        ``steps``: stop after so many steps of the repairer. With 0, go on until it has nothing left to do.
        """
        return self._request(command, steps)

    def settle(self) -> list[Any]:
        """Let the repairer go on until it has nothing left to do; return the lines that it logs, sorted."""
        return self._request("", 0)

    def call(self, function: str, *arguments: Any, steps: int = 0) -> list[Any]:
        """Call a function of stepped_repairer.py; return its answer and the lines that are logged, sorted."""
        return self._request([function, *arguments], steps)

    def _request(self, what: str | list[Any], steps: int) -> list[Any]:
        assert self._program.stdin
        assert self._program.stdout
        print(json.dumps([what, steps]), file=self._program.stdin, flush=True)
        said: list[Any] = json.loads(self._program.stdout.readline())
        return sorted(said, key=str)

    def may_open(self, more: int) -> None:
        """Let the repairer open only so many more descriptors."""
        held = {int(each.name) for each in self.hypervisor.path(f"/proc/{self.pid}/fd").iterdir()}
        free = sorted({*range(len(held) + more + 1)} - held)
        self.hypervisor.run("prlimit", f"--pid={self.pid}", f"--nofile={free[more]}:")

    def descriptors(self) -> int:
        return len(list(self.hypervisor.path(f"/proc/{self.pid}/fd").iterdir()))

    def ruleset(self) -> str:
        lines = lasting(self.hypervisor.run("nft", "list ruleset").stdout).splitlines()
        return "\n".join(sorted(line.strip() for line in lines))

    def add_foreign(self, mac: str) -> None:
        """Bring drop0 up as another program does, in its own way."""
        inner, outer, namespace = FOREIGN.veth_namespace, FOREIGN.veth_bridge, FOREIGN.namespace
        self.hypervisor.ip(
            f"netns add {namespace}",
            f"link add {outer} type veth peer name {inner} address {mac} netns {namespace}",
            f"link set {outer} master drop0 up",
        )
        self.hypervisor.ip(
            f"address add {SERVICE_ADDRESS}/32 dev {inner}",
            f"link set {inner} up",
            f"route add default dev {inner} scope link",
            netns=namespace,
        )
        a_map = "ip one_tproxy ep_drop0"
        self.hypervisor.run("nft", f"add map {a_map} {{ type inet_service : ipv4_addr . inet_service; }}")
        self.hypervisor.run("nft", f"add element {a_map} {{ 5030 : {ENDPOINT} . 8080 }}")
        self.hypervisor.tproxy("start")
        self.before = self.ruleset()


@pytest.fixture
def host(hypervisor: Hypervisor) -> Host:
    host = Host(hypervisor)
    assert host.start() == []
    return host


def repaired(bridge: str, what: str) -> str:
    return f"bridge {bridge} was broken; repaired: {what}"


MAP_AND_GUARDS = [
    repaired(each, f"load service map of {each}; load guards of {each}") for each in ("br0", "br1")
]
GUARDS = [repaired(each, f"load guards of {each}") for each in ("br0", "br1")]


def test_flushed_maps_and_guards_are_loaded_again(host: Host) -> None:
    assert host.after("nft flush ruleset") == MAP_AND_GUARDS
    assert host.ruleset() == host.before
    assert host.after("nft delete table bridge one_tproxy") == GUARDS
    # One line for each bridge, each time that it happens.
    assert host.after("nft delete table bridge one_tproxy") == GUARDS
    assert host.after("nft flush chain bridge one_tproxy ch_br0") == GUARDS[:1]
    # The repair of the first bridge loads what serves all bridges.
    flush = "nft flush chain bridge one_tproxy guard_forward"
    assert host.after(flush) == [GUARDS[0], "bridge br1: nothing to repair"]
    assert host.ruleset() == host.before
    assert host.after("nft delete table ip one_tproxy; nft add table ip one_tproxy") == [
        repaired(each, f"load service map of {each}") for each in ("br0", "br1")
    ]
    assert host.ruleset() == host.before
    assert host.settle() == []


def test_flushed_members_are_loaded_again_with_their_networks(host: Host) -> None:
    for network, mac in (("blue", "02:00:0a:00:00:05"), ("red", "02:00:0a:00:00:06")):
        options = ("--network", network, "--mac", mac, "--uplink", "far0", "--config", CONFIG)
        host.hypervisor.tproxy("hook", "up", "--bridge", "br0", *options)
    before = host.ruleset()
    assert 'comment "network=red order=2"' in before
    host.start()
    host.after("nft flush ruleset")
    assert host.ruleset() == before


def test_links_namespaces_and_sysctls_are_repaired(host: Host) -> None:
    def said(command: str) -> str:
        line: str
        (line,) = host.after(command)
        assert line.startswith(repaired("br0", ""))
        return line.removeprefix(repaired("br0", "")).partition(" ")[0]

    assert said("ip link del br0b") == "create"
    assert said("ip link set br0b nomaster") == "make"
    assert said("ip link set br0b down") == "make"
    assert said("ip link set br0b nomaster; ip link set br0b master br0") == "fix"
    assert said("ip netns exec one_tproxy_br0 ip link del br0a") == "create"
    # The kernel does not announce these, or only among much else. They are found each time.
    files = host.descriptors()
    for change in (f"del {SERVICE_MAC} dev br0b master", f"replace {SERVICE_MAC} dev far0 master static"):
        (line,) = host.after(f"bridge fdb {change}") + host.call("check_namespaces")
        assert line == repaired("br0", f"fix MAC {SERVICE_MAC} at port br0b of br0")
        assert host.call("find_changed_namespaces") == [False]
    for _ in range(2):
        change = "ip netns exec one_tproxy_br0 sysctl -qw net.ipv4.conf.all.arp_ignore=2"
        (line,) = host.after(change) + host.call("check_namespaces")
        assert line == repaired("br0", "set sysctls in namespace one_tproxy_br0: ipv4/conf/all/arp_ignore=1")
        assert host.call("find_changed_namespaces") == [False]
    assert host.descriptors() == files
    # The kernel deletes the veth pair with the namespace, but later.
    host.hypervisor.run("ip", "netns", "del", "one_tproxy_br0")
    for _ in eventually():
        if any("create namespace one_tproxy_br0" in line for line in host.call("check_namespaces")):
            break
    assert host.call("doubt_all") == []
    assert host.ruleset() == host.before
    assert host.descriptors() == files


def test_guards_that_somebody_corrects_at_once_are_not_repaired(host: Host) -> None:
    """The daemon corrects guards when the ports of a bridge change."""
    for _ in range(2):
        assert host.after("nft 'delete element bridge one_tproxy veths { \"br1b\" }'", steps=1) == []
        host.hypervisor.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)
        assert host.settle() == []
    # Guards that are wrong the next time count as wrong for the first time.
    assert host.after("nft flush chain bridge one_tproxy ch_br1", steps=1) == []
    assert host.settle() == GUARDS[1:]


def test_what_was_broken_before_the_start_is_repaired(host: Host) -> None:
    # The note of a hook's call tells that a hook built the bridge, and so do the guards alone.
    host.hypervisor.run("nft", "delete table bridge one_tproxy")
    assert host.start() == GUARDS
    host.hypervisor.run("sh", "-c", "rm /run/tproxy/*/used/br0")
    host.hypervisor.run("nft", "flush chain bridge one_tproxy ch_br0")
    host.hypervisor.ip("link del br1b")
    guards, port = host.start()
    assert guards == GUARDS[0]
    assert port.startswith(repaired("br1", "create veth br1b"))


def test_a_namespace_that_was_broken_at_the_start_is_watched_after_its_repair(host: Host) -> None:
    change = "ip netns exec one_tproxy_br0 sysctl -qw net.ipv4.conf.all.arp_ignore=2"
    host.hypervisor.run("sh", "-c", change)
    line = repaired("br0", "set sysctls in namespace one_tproxy_br0: ipv4/conf/all/arp_ignore=1")
    assert host.start() == [line]
    assert host.after(change) + host.call("check_namespaces") == [line]
    assert host.settle() == []


def test_changes_whose_messages_were_lost_are_found_by_a_look_at_everything(host: Host) -> None:
    def said(command: str) -> str:
        """What is logged at a look at everything, of a change whose messages were lost."""
        host.call("lose_events", True)
        assert host.after(command) == []
        host.call("lose_events", False)
        return "\n".join(host.call("doubt_all"))

    assert said("ip link del br1b").startswith(repaired("br1", "create veth br1b"))
    assert said("nft flush ruleset") == "\n".join(MAP_AND_GUARDS)
    assert said("nft delete map ip one_tproxy ep_br1") == ""
    assert host.call("is_missing_maps") == [False]


def test_maps_that_somebody_deletes_or_changes_stay_so(host: Host) -> None:
    files = host.descriptors()
    assert host.call("is_missing_maps") == [False]
    delete = "nft delete map ip one_tproxy ep_br1"
    assert host.after(delete, steps=1) == []
    host.hypervisor.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)  # before the second look
    assert host.settle() == []
    assert host.after(delete, steps=1) == []
    assert host.call("is_missing_maps", steps=1) == [True]
    assert host.settle() == []
    assert host.call("is_missing_maps") == [False]
    assert host.descriptors() < files
    # Nothing else of that bridge is repaired either.
    assert host.after("ip link set br1b down") == []
    assert host.after("nft flush chain bridge one_tproxy ch_br1") == []
    assert host.after("nft 'add element ip one_tproxy ep_br0 { 99 : 10.0.0.1 . 99 }'") == []
    assert host.after("nft flush ruleset") == MAP_AND_GUARDS[:1]
    assert "99 : 10.0.0.1 . 99" in host.ruleset()
    assert "ep_br1" not in host.ruleset()
    # A map that was restored once can be deleted, too.
    assert host.after("nft delete map ip one_tproxy ep_br0") == []
    assert "ep_br0" not in host.ruleset()
    # A new map makes the bridge one to be repaired again.
    host.hypervisor.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)
    assert host.settle() == []
    assert host.after("ip link del br1b") != []


def test_what_a_hook_takes_down_stays_down(host: Host) -> None:
    host.hypervisor.tproxy("hook", "down", "--bridge", "br1", "--force")
    assert host.settle() == []
    assert host.after("nft flush ruleset") == MAP_AND_GUARDS[:1]
    host.hypervisor.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert host.settle() == []
    assert host.after("nft add table ip one_tproxy; nft delete table ip one_tproxy") == []
    assert host.ruleset() == ""


def test_the_uplinks_that_a_hook_named_are_remembered(host: Host) -> None:
    assert host.call("uplinks", "br0") == [["far0"]]
    assert host.after("nft delete table bridge one_tproxy", steps=1) == []
    assert host.call("uplinks", "br0") == [["far0"], *GUARDS]
    # The uplinks of a bridge that was not examined yet are read from its guards.
    host.hypervisor.add_bridge("br2")
    host.hypervisor.ip("link add near0 type veth peer name near1", "link set near0 master br2 up")
    host.hypervisor.tproxy("hook", "up", "--bridge", "br2", "--uplink", "near0", "--config", CONFIG)
    assert host.call("uplinks", "br2", steps=1) == [["near0"]]
    assert host.call("uplinks", "lo") == [[]]
    # A later hook replaces them.
    host.hypervisor.tproxy("hook", "up", "--bridge", "br2", "--config", CONFIG)
    host.settle()
    assert host.call("uplinks", "br2") == [[]]


def test_a_bridge_of_another_program_gets_back_its_map_and_veth_and_no_guards(host: Host) -> None:
    mac = "06:11:22:33:44:55"
    host.add_foreign(mac)
    assert host.settle() == []
    files = host.descriptors()
    outer, inner, inside = FOREIGN.veth_bridge, FOREIGN.veth_namespace, FOREIGN.namespace
    # What differs from our own way of building a bridge is not repaired.
    for change in (
        f"ip link set {outer} nomaster; ip link set {outer} down",
        f"ip link set {outer} master drop0; ip link set {outer} up",
        f"ip netns exec {inside} sysctl -qw net.ipv4.conf.all.arp_ignore=2",
    ):
        assert host.after(change) == []
        assert host.call("check_namespaces") == []
        assert host.call("find_changed_namespaces") == [False]
    assert host.descriptors() == files
    (line,) = host.after(f"ip link del {outer}")
    assert line.startswith(repaired("drop0", f"create veth {outer}"))
    assert mac in host.hypervisor.run("ip", "link", "show", inner, netns=inside).stdout
    assert host.after("nft delete table bridge one_tproxy") == GUARDS
    (line, *others) = reversed(host.after("nft flush ruleset"))
    assert (line, others[::-1]) == (repaired("drop0", "load service map of drop0"), MAP_AND_GUARDS)
    assert host.ruleset() == host.before
    # When that program takes it down, in any order, it stays down.
    gone = f"nft delete map ip one_tproxy ep_drop0; ip netns del {inside}; ip link del {outer} || true"
    assert host.after(gone) == []
    assert host.call("check_namespaces") == []


def test_a_bridge_that_another_program_has_not_finished_is_left_alone(host: Host) -> None:
    host.hypervisor.run(
        "nft", "add map ip one_tproxy ep_drop0 { type inet_service : ipv4_addr . inet_service; }"
    )
    assert host.settle() == []
    assert host.after("nft delete map ip one_tproxy ep_drop0") == []
    host.add_foreign("06:11:22:33:44:55")
    assert host.settle() == []
    assert host.after(f"ip link del {FOREIGN.veth_bridge}") != []


def test_a_repair_that_fails_is_logged_once_and_tried_again(host: Host) -> None:
    why = "bridge br0 is broken and cannot be repaired: link br0b is not a veth; bridge br0 needs that name"
    assert host.after("ip link del br0b; ip link add br0b type bridge") == [why]
    for _ in range(2):
        assert host.call("retry") == []
    # Other bridges are repaired meanwhile.
    assert host.after("nft flush chain bridge one_tproxy ch_br0") == []
    assert host.after("nft flush chain bridge one_tproxy ch_br1") == GUARDS[1:]
    assert host.after("ip link del br0b") == []
    (line,) = host.call("retry")
    assert line.startswith(repaired("br0", ""))
    assert "create veth" in line
    assert "load guards of br0" in line
    assert host.call("retry") == []
    assert host.ruleset() == host.before
    # A new failure is logged again.
    assert host.after("ip link del br0b; ip link add br0b type bridge") == [why]


def test_a_later_success_also_names_what_was_done_before_the_failure(host: Host) -> None:
    why = "bridge br0 is broken and cannot be repaired: link br0b is not a veth; bridge br0 needs that name"
    flush = "nft flush ruleset; ip link del br0b; ip link add br0b type bridge"
    assert host.after(flush) == [why, MAP_AND_GUARDS[1]]
    host.hypervisor.ip("link del br0b")
    (line,) = host.call("retry")
    assert line.startswith(repaired("br0", "load service map of br0; "))


def test_a_flush_just_before_a_repair_becomes_part_of_that_repair(host: Host) -> None:
    flush = "nft flush chain bridge one_tproxy ch_"
    assert host.after(f"{flush}br0; {flush}br1", steps=2) == []
    assert host.after("nft flush ruleset") == MAP_AND_GUARDS
    assert host.ruleset() == host.before


def test_a_bridge_that_is_taken_down_just_before_its_repair_stays_down(host: Host) -> None:
    files = host.descriptors()
    flush = "nft flush chain bridge one_tproxy ch_"
    assert host.after(f"{flush}br0; {flush}br1", steps=2) == []
    assert host.after("nft delete map ip one_tproxy ep_br1") == GUARDS[:1]
    assert host.call("is_missing_maps") == [False]
    assert host.descriptors() < files
    assert host.after(f"{flush}br0", steps=2) == []
    assert host.after("ip link del br0") == []


def test_without_free_descriptors_no_bridge_counts_as_gone(host: Host) -> None:
    host.may_open(1)  # for the lock
    host.hypervisor.run("nft", "flush ruleset")
    for line, bridge in zip(host.settle(), ("br0", "br1"), strict=True):
        assert line.startswith(f"bridge {bridge} is broken and cannot be repaired: ")
        assert "Too many open files" in line
    host.may_open(1000)
    assert host.call("retry") == MAP_AND_GUARDS
    assert host.ruleset() == host.before


def test_without_free_descriptors_nothing_is_forgotten(host: Host) -> None:
    host.may_open(0)
    host.hypervisor.run("nft", "flush chain bridge one_tproxy ch_br0; flush chain bridge one_tproxy ch_br1")
    (line,) = host.settle()
    assert line.startswith("nftables cannot be compared with what bridges had: ")
    assert "Too many open files" in line
    host.may_open(1000)
    assert host.call("retry") == GUARDS
    assert host.ruleset() == host.before


def test_maps_that_cannot_be_restored_now_are_restored_later(host: Host) -> None:
    in_its_place = "add table ip one_tproxy; add set ip one_tproxy ep_br0 { type mark; }"
    for _ in range(2):  # a new failure is logged again
        (line,) = host.after(f"nft flush ruleset; nft '{in_its_place}'")
        assert line.startswith("nftables cannot be compared with what bridges had: ")
        assert host.call("retry") == []  # the same failure is not logged again
        assert host.call("is_missing_maps") == [True]
        assert host.after("nft delete set ip one_tproxy ep_br0") == []
        assert host.call("retry") == MAP_AND_GUARDS
        assert host.ruleset() == host.before
        assert host.call("is_missing_maps") == [False]
