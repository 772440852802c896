"""mend: what is repaired of what strangers break, and what is left alone; step by step, without a clock.

As ``tproxy watch`` has it, but in a loop in which all that would happen later happens next, save what is
tried again: that waits to be told.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import SERVICE_ADDRESS, BridgeNames

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"
FOREIGN = BridgeNames("drop0")

MEND = """
import json, logging, os, subprocess, sys
from tproxy.operations import reconcile
from tproxy.watch import repair
from tproxy.bridge import nftables
from tproxy.model import Settings
from tproxy.config import reader
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import LinkEvents, RulesetEvents

class Next(Loop):
    def __init__(self):
        super().__init__()
        self.due = 0
        self.retries = []
        self.deaf = False

    def call_later(self, seconds, call):
        if seconds == repair.RETRY:
            self.retries.append(call)
            return
        def due():
            self.due -= 1
            call()
        self.due += 1
        super().call_later(0, due)

    def turn(self):
        super().call_later(0, self.stop)
        self.run()

    def hear(self, whether):
        self.deaf = not whether

    def retry(self):
        retries, self.retries = self.retries, []
        for call in retries:
            call()

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

def repair_and_tell(bridge, *arguments, **options):
    done = really_repair(bridge, *arguments, **options)
    if not (done or options["restored"]) and nftables.read_map(bridge):
        said.append(f"bridge {bridge}: nothing to repair")  # but it took the lock
    return done

really_repair, reconcile.repair = reconcile.repair, repair_and_tell
config = reader.load(sys.argv[1])
loop, said = Next(), []
logging.getLogger("tproxy.watch.repair").addHandler(Said())
logging.lastResort = None
mender = repair.Mender(loop, lambda: Settings(config.log_level))
LinkEvents(loop, lambda *names: loop.deaf or mender.links_touched(set().union(*names)), mender.doubt_all)
RulesetEvents(loop, lambda told: loop.deaf or mender.ruleset_touched(told), mender.doubt_all)
print("ready", os.readlink("/proc/self"), flush=True)
for line in sys.stdin:
    command, turns = json.loads(line)
    said.clear()
    if command.startswith("mender.") or command.startswith("loop."):
        answer = eval(command)
        if answer is not None:
            said.append(sorted(answer) if isinstance(answer, frozenset) else answer)
    elif command:
        subprocess.run(command, shell=True, check=True)
    loop.turn()
    while loop.due and turns != 1:
        loop.turn()
        turns -= 1
    print(json.dumps(said), flush=True)
"""


class Mended:
    """A stand-in with bridges of hooks and of another program, and what looks after them."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        for bridge in ("br0", "br1", "drop0"):
            host.add_bridge(bridge)
        host.ip("link add far0 type veth peer name far1", "link set far0 master br0 up")
        host.ip(
            "link add tunnel type vxlan id 7 dstport 4789", "link set tunnel master br1 up"
        )  # an uplink that nobody names
        host.write(CONFIG, f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n")
        host.tproxy("hook", "up", "--bridge", "br0", "--uplink", "far0", "--config", CONFIG)
        host.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)
        self.before = self.ruleset()

    def start(self) -> list[Any]:
        """Have it looked after, by another from now on; returns what is said of the first look."""
        program = [sys.executable, "-c", MEND, CONFIG]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._program = self.host.popen(*program, **pipes)
        assert self._program.stdout
        self.pid = int(self._program.stdout.readline().split()[1])  # behind "ready"
        return self.does("mender.doubt_all()")

    def does(self, command: str = "", turns: int = 0) -> list[Any]:
        """What it says when this is done, or called, and all that follows from it; sorted.

        ``turns``: no more than so many steps of what follows.
        """
        assert self._program.stdin
        assert self._program.stdout
        print(json.dumps([command, turns]), file=self._program.stdin, flush=True)
        said: list[Any] = json.loads(self._program.stdout.readline())
        return sorted(said, key=str)

    def may_open(self, more: int) -> None:
        """Have it find so many descriptors free."""
        held = {int(each.name) for each in self.host.path(f"/proc/{self.pid}/fd").iterdir()}
        free = sorted({*range(len(held) + more + 1)} - held)
        self.host.run("prlimit", f"--pid={self.pid}", f"--nofile={free[more]}:")

    def descriptors(self) -> int:
        return len(list(self.host.path(f"/proc/{self.pid}/fd").iterdir()))

    def ruleset(self) -> str:
        lines = self.host.run("nft", "list ruleset").stdout.splitlines()
        return "\n".join(sorted(line.strip() for line in lines))

    def add_foreign(self, mac: str) -> None:
        """A bridge that another program brought up."""
        inner, outer, namespace = FOREIGN.veth_namespace, FOREIGN.veth_bridge, FOREIGN.namespace
        self.host.ip(
            f"netns add {namespace}",
            f"link add {outer} type veth peer name {inner} address {mac} netns {namespace}",
            f"link set {outer} master drop0 up",
        )
        self.host.ip(
            f"address add {SERVICE_ADDRESS}/32 dev {inner}",
            f"link set {inner} up",
            f"route add default dev {inner} scope link",
            netns=namespace,
        )
        a_map = "ip one_tproxy ep_drop0"
        self.host.run("nft", f"add map {a_map} {{ type inet_service : ipv4_addr . inet_service; }}")
        self.host.run("nft", f"add element {a_map} {{ 5030 : {ENDPOINT} . 8080 }}")
        self.host.tproxy("start")
        self.before = self.ruleset()


@pytest.fixture
def mended(hypervisor: Hypervisor) -> Mended:
    mended = Mended(hypervisor)
    assert mended.start() == []
    return mended


def repaired(bridge: str, what: str) -> str:
    return f"bridge {bridge} was broken; repaired: {what}"


MAP_AND_GUARDS = [
    repaired(each, f"load service map of {each}; load guards of {each}") for each in ("br0", "br1")
]
GUARDS = [repaired(each, f"load guards of {each}") for each in ("br0", "br1")]


def test_what_is_flushed_is_loaded_again(mended: Mended) -> None:
    assert mended.does("nft flush ruleset") == MAP_AND_GUARDS
    assert mended.ruleset() == mended.before
    assert mended.does("nft delete table bridge one_tproxy") == GUARDS
    # In one line each time, as often as it happens.
    assert mended.does("nft delete table bridge one_tproxy") == GUARDS
    assert mended.does("nft flush chain bridge one_tproxy ch_br0") == GUARDS[:1]
    # What serves all is loaded with the first.
    flush = "nft flush chain bridge one_tproxy guard_forward"
    assert mended.does(flush) == [GUARDS[0], "bridge br1: nothing to repair"]
    assert mended.ruleset() == mended.before
    assert mended.does("nft delete table ip one_tproxy; nft add table ip one_tproxy") == [
        repaired(each, f"load service map of {each}") for each in ("br0", "br1")
    ]
    assert mended.ruleset() == mended.before
    assert mended.does() == []


def test_links_namespaces_and_sysctls_are_made_right_again(mended: Mended) -> None:
    def said(command: str) -> str:
        line: str
        (line,) = mended.does(command)
        assert line.startswith(repaired("br0", ""))
        return line.removeprefix(repaired("br0", "")).partition(" ")[0]

    assert said("ip link del br0b") == "create"
    assert said("ip link set br0b nomaster") == "make"
    assert said("ip link set br0b down") == "make"
    assert said("ip netns exec one_tproxy_br0 ip link del br0a") == "create"
    # What the kernel does not tell, again and again.
    files = mended.descriptors()
    for _ in range(2):
        change = "ip netns exec one_tproxy_br0 sysctl -qw net.ipv4.conf.all.arp_ignore=2"
        (line,) = mended.does(change) + mended.does("mender.look()")
        assert line == repaired("br0", "set sysctls in namespace one_tproxy_br0: ipv4/conf/all/arp_ignore=1")
        assert mended.does("mender.look() or loop.due") == [0]
    assert mended.descriptors() == files
    # The kernel may tell of the veth that goes along, later.
    mended.host.run("ip", "netns", "del", "one_tproxy_br0")
    for _ in eventually():
        if any("create namespace one_tproxy_br0" in line for line in mended.does("mender.look()")):
            break
    assert mended.does("mender.doubt_all()") == []
    assert mended.ruleset() == mended.before
    assert mended.descriptors() == files


def test_what_is_made_right_at_once_was_not_broken(mended: Mended) -> None:
    """As the daemon does, which makes guards follow the ports."""
    for _ in range(2):
        assert mended.does("nft 'delete element bridge one_tproxy veths { \"br1b\" }'", turns=1) == []
        mended.host.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)
        assert mended.does() == []
    # That was long ago, and says nothing of the next time.
    assert mended.does("nft flush chain bridge one_tproxy ch_br1", turns=1) == []
    assert mended.does() == GUARDS[1:]


def test_what_was_broken_before_is_repaired_too(mended: Mended) -> None:
    # That hooks brought these up is noted, or their guards tell.
    mended.host.run("nft", "delete table bridge one_tproxy")
    assert mended.start() == GUARDS
    mended.host.run("sh", "-c", "rm /run/tproxy/*/used/br0")
    mended.host.run("nft", "flush chain bridge one_tproxy ch_br0")
    mended.host.ip("link del br1b")
    guards, port = mended.start()
    assert guards == GUARDS[0]
    assert port.startswith(repaired("br1", "create veth br1b"))


def test_what_was_not_told_is_found_when_all_is_doubtful(mended: Mended) -> None:
    def said(command: str) -> str:
        """Of what is told of late, and by nothing."""
        mended.does("loop.hear(False)")
        assert mended.does(command) == []
        mended.does("loop.hear(True)")
        return "\n".join(mended.does("mender.doubt_all()"))

    assert said("ip link del br1b").startswith(repaired("br1", "create veth br1b"))
    assert said("nft flush ruleset") == "\n".join(MAP_AND_GUARDS)
    assert said("nft delete map ip one_tproxy ep_br1") == ""
    assert mended.does("mender.is_missing_maps()") == [False]


def test_maps_that_are_deleted_or_changed_are_meant_to_be(mended: Mended) -> None:
    files = mended.descriptors()
    assert mended.does("mender.is_missing_maps()") == [False]
    delete = "nft delete map ip one_tproxy ep_br1"
    assert mended.does(delete, turns=1) == []
    mended.host.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)  # before it is sure
    assert mended.does() == []
    assert mended.does(delete, turns=1) == []
    assert mended.does("mender.is_missing_maps()", turns=1) == [True]
    assert mended.does() == []
    assert mended.does("mender.is_missing_maps()") == [False]
    assert mended.descriptors() < files
    # Nor is anything of that bridge its business any more.
    assert mended.does("ip link set br1b down") == []
    assert mended.does("nft flush chain bridge one_tproxy ch_br1") == []
    assert mended.does("nft 'add element ip one_tproxy ep_br0 { 99 : 10.0.0.1 . 99 }'") == []
    assert mended.does("nft flush ruleset") == MAP_AND_GUARDS[:1]
    assert "99 : 10.0.0.1 . 99" in mended.ruleset()
    assert "ep_br1" not in mended.ruleset()
    # Whatever was flushed before, again.
    assert mended.does("nft delete map ip one_tproxy ep_br0") == []
    assert "ep_br0" not in mended.ruleset()
    # Another map brings it back, and all of it.
    mended.host.tproxy("hook", "up", "--bridge", "br1", "--config", CONFIG)
    assert mended.does() == []
    assert mended.does("ip link del br1b") != []


def test_what_a_hook_takes_down_stays_down(mended: Mended) -> None:
    mended.host.tproxy("hook", "down", "--bridge", "br1", "--force")
    assert mended.does() == []
    assert mended.does("nft flush ruleset") == MAP_AND_GUARDS[:1]
    mended.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert mended.does() == []
    assert mended.does("nft add table ip one_tproxy; nft delete table ip one_tproxy") == []
    assert mended.ruleset() == ""


def test_the_uplinks_that_a_hook_named_are_kept_in_mind(mended: Mended) -> None:
    assert mended.does("mender.uplinks('br0')") == [["far0"]]
    assert mended.does("nft delete table bridge one_tproxy", turns=1) == []
    assert mended.does("mender.uplinks('br0')") == [["far0"], *GUARDS]
    # Of one that was not looked at yet, it is looked up.
    mended.host.add_bridge("br2")
    mended.host.ip("link add near0 type veth peer name near1", "link set near0 master br2 up")
    mended.host.tproxy("hook", "up", "--bridge", "br2", "--uplink", "near0", "--config", CONFIG)
    assert mended.does("mender.uplinks('br2')", turns=1) == [["near0"]]
    assert mended.does("mender.uplinks('lo')") == [[]]
    # And when a hook names others, these.
    mended.host.tproxy("hook", "up", "--bridge", "br2", "--config", CONFIG)
    mended.does()
    assert mended.does("mender.uplinks('br2')") == [[]]


def test_of_what_another_program_built_no_more_is_repaired_than_is_known(mended: Mended) -> None:
    mac = "06:11:22:33:44:55"
    mended.add_foreign(mac)
    assert mended.does() == []
    files = mended.descriptors()
    outer, inner, inside = FOREIGN.veth_bridge, FOREIGN.veth_namespace, FOREIGN.namespace
    # Its own way of doing things is right.
    for change in (
        f"ip link set {outer} nomaster; ip link set {outer} down",
        f"ip link set {outer} master drop0; ip link set {outer} up",
        f"ip netns exec {inside} sysctl -qw net.ipv4.conf.all.arp_ignore=2",
    ):
        assert mended.does(change) == []
        assert mended.does("mender.look()") == []
        assert mended.does("mender.look() or loop.due") == [0]
    assert mended.descriptors() == files
    (line,) = mended.does(f"ip link del {outer}")
    assert line.startswith(repaired("drop0", f"create veth {outer}"))
    assert mac in mended.host.run("ip", "link", "show", inner, netns=inside).stdout
    assert mended.does("nft delete table bridge one_tproxy") == GUARDS
    (line, *others) = reversed(mended.does("nft flush ruleset"))
    assert (line, others[::-1]) == (repaired("drop0", "load service map of drop0"), MAP_AND_GUARDS)
    assert mended.ruleset() == mended.before
    # And when it is taken down, in whatever order, it stays down.
    gone = f"nft delete map ip one_tproxy ep_drop0; ip netns del {inside}; ip link del {outer} || true"
    assert mended.does(gone) == []
    assert mended.does("mender.look()") == []


def test_what_another_program_has_not_built_to_the_end_is_left_to_it(mended: Mended) -> None:
    mended.host.run("nft", "add map ip one_tproxy ep_drop0 { type inet_service : ipv4_addr . inet_service; }")
    assert mended.does() == []
    assert mended.does("nft delete map ip one_tproxy ep_drop0") == []
    mended.add_foreign("06:11:22:33:44:55")
    assert mended.does() == []
    assert mended.does(f"ip link del {FOREIGN.veth_bridge}") != []


def test_what_cannot_be_repaired_is_said_once_and_tried_again(mended: Mended) -> None:
    why = "bridge br0 is broken and cannot be repaired: link br0b is not a veth; bridge br0 needs that name"
    assert mended.does("ip link del br0b; ip link add br0b type bridge") == [why]
    for _ in range(2):
        assert mended.does("loop.retry()") == []
    # Meanwhile others are looked after, and nobody is in its place.
    assert mended.does("nft flush chain bridge one_tproxy ch_br0") == []
    assert mended.does("nft flush chain bridge one_tproxy ch_br1") == GUARDS[1:]
    assert mended.does("ip link del br0b") == []
    (line,) = mended.does("loop.retry()")
    assert line.startswith(repaired("br0", ""))
    assert "create veth" in line
    assert "load guards of br0" in line
    assert mended.does("loop.retry()") == []
    assert mended.ruleset() == mended.before
    # The next time is another.
    assert mended.does("ip link del br0b; ip link add br0b type bridge") == [why]


def test_what_was_done_before_a_repair_failed_is_said_with_it(mended: Mended) -> None:
    why = "bridge br0 is broken and cannot be repaired: link br0b is not a veth; bridge br0 needs that name"
    flush = "nft flush ruleset; ip link del br0b; ip link add br0b type bridge"
    assert mended.does(flush) == [why, MAP_AND_GUARDS[1]]
    mended.host.ip("link del br0b")
    (line,) = mended.does("loop.retry()")
    assert line.startswith(repaired("br0", "load service map of br0; "))


def test_what_is_flushed_just_before_another_repair_is_part_of_it(mended: Mended) -> None:
    flush = "nft flush chain bridge one_tproxy ch_"
    assert mended.does(f"{flush}br0; {flush}br1", turns=2) == []
    assert mended.does("nft flush ruleset") == MAP_AND_GUARDS
    assert mended.ruleset() == mended.before


def test_what_is_taken_down_just_before_its_repair_stays_down(mended: Mended) -> None:
    files = mended.descriptors()
    flush = "nft flush chain bridge one_tproxy ch_"
    assert mended.does(f"{flush}br0; {flush}br1", turns=2) == []
    assert mended.does("nft delete map ip one_tproxy ep_br1") == GUARDS[:1]
    assert mended.does("mender.is_missing_maps()") == [False]
    assert mended.descriptors() < files
    assert mended.does(f"{flush}br0", turns=2) == []
    assert mended.does("ip link del br0") == []


def test_without_descriptors_no_bridge_is_taken_for_one_that_is_gone(mended: Mended) -> None:
    mended.may_open(1)  # the lock
    mended.host.run("nft", "flush ruleset")
    for line, bridge in zip(mended.does(), ("br0", "br1"), strict=True):
        assert line.startswith(f"bridge {bridge} is broken and cannot be repaired: ")
        assert "Too many open files" in line
    mended.may_open(1000)
    assert mended.does("loop.retry()") == MAP_AND_GUARDS
    assert mended.ruleset() == mended.before


def test_without_descriptors_nothing_is_forgotten(mended: Mended) -> None:
    mended.may_open(0)
    mended.host.run("nft", "flush chain bridge one_tproxy ch_br0; flush chain bridge one_tproxy ch_br1")
    (line,) = mended.does()
    assert line.startswith("the ruleset cannot be looked after: ")
    assert "Too many open files" in line
    mended.may_open(1000)
    assert mended.does("loop.retry()") == GUARDS
    assert mended.ruleset() == mended.before


def test_maps_that_cannot_be_loaded_again_now_are_loaded_later(mended: Mended) -> None:
    in_its_place = "add table ip one_tproxy; add set ip one_tproxy ep_br0 { type mark; }"
    for _ in range(2):  # the next time is another
        (line,) = mended.does(f"nft flush ruleset; nft '{in_its_place}'")
        assert line.startswith("the ruleset cannot be looked after: ")
        assert mended.does("loop.retry()") == []  # as before
        assert mended.does("mender.is_missing_maps()") == [True]
        assert mended.does("nft delete set ip one_tproxy ep_br0") == []
        assert mended.does("loop.retry()") == MAP_AND_GUARDS
        assert mended.ruleset() == mended.before
        assert mended.does("mender.is_missing_maps()") == [False]
