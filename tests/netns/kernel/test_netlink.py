"""What ``kernel/netlink`` reports of each change, with the kernel's own messages."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.program import program
from tproxy.lab.hypervisor import Hypervisor
from tproxy.names import TABLE

Hear = Callable[..., list[Any]]


@pytest.fixture
def hear(hypervisor: Hypervisor) -> Hear:
    """``hear("nft add table ip one_tproxy")`` returns what is reported of that command."""
    return listener(hypervisor)


def listener(host: Hypervisor, *by: str) -> Hear:
    process = host.popen(
        *by, *program("netlink_listener"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "ready\n"

    def hear(command: str) -> list[Any]:
        assert process.stdin
        assert process.stdout
        print(command, file=process.stdin, flush=True)
        heard: list[Any] = json.loads(process.stdout.readline())
        return heard

    return hear


def changes(count: int) -> str:
    """A command that makes ``count`` changes of one link, which are read only after the last one."""
    lines = f"for i in $(seq {count // 2}); do echo link set br0 mtu 1400; echo link set br0 mtu 1401; done"
    return f"{lines} | ip -batch -"


def test_a_changed_link_is_reported_with_its_name_and_its_master(hear: Hear) -> None:
    assert hear("ip link add br0 type bridge") == [["links", ["br0"], []]]
    ((_, names, masters),) = hear("ip link add x0 type veth peer name x1")
    assert ({"x0", "x1"} - {*names}, masters) == (set(), [])
    ((_, names, masters),) = hear("ip link set x0 master br0")
    assert ("x0" in names, masters) == (True, ["br0"])
    ((_, names, masters),) = hear("ip link set x1 mtu 1400; ip link set x0 mtu 1400")
    assert ({"x0", "x1"} - {*names}, masters) == (set(), ["br0"])
    # A master that is gone when its name is looked up is reported by its own message.
    ((_, names, masters),) = hear("ip link set x0 mtu 1300; ip link del br0")
    assert ({"br0", "x0"} - {*names}, masters) == (set(), [])
    ((_, names, _),) = hear("ip link del x0")
    assert {"x0", "x1"} <= {*names}


def test_a_link_name_may_hold_any_bytes(hear: Hear) -> None:
    assert hear(r"ip link add $(printf 'x\377') type bridge") == [
        ["links", ["x\N{REPLACEMENT CHARACTER}"], []]
    ]


# struct nlmsghdr, RTM_NEWLINK, and struct ifinfomsg: root may send such a message to all who listen to links.
NAMELESS = (
    "import socket as s, struct; "
    "s.socket(s.AF_NETLINK, s.SOCK_RAW).sendto(struct.pack('=IHHII16x', 32, 16, 0, 0, 0), (0, 1))"
)


def test_a_message_without_a_name_reports_no_link(hear: Hear) -> None:
    assert hear(shlex.join([sys.executable, "-c", NAMELESS])) == [["links", [], []]]


def test_changes_of_our_tables_are_reported_by_name(hear: Hear) -> None:
    def told(command: str) -> list[Any]:
        return hear(f"nft '{command}'")

    assert told("add table ip other") == []
    assert told(f"add table ip {TABLE}") == [["ruleset", [""], [], False]]
    assert told("add map ip other ep_br0 { type inet_service : ipv4_addr . inet_service; }") == []
    new_map = f"add map ip {TABLE} ep_br0 {{ type inet_service : ipv4_addr . inet_service; }}"
    assert told(new_map) == [["ruleset", ["ep_br0"], [], False]]
    service = "{ 99 : 10.0.0.1 . 99 }"
    assert told(f"add element ip {TABLE} ep_br0 {service}") == [["ruleset", ["ep_br0"], [], False]]
    assert told(f"delete element ip {TABLE} ep_br0 {service}") == [["ruleset", ["ep_br0"], [], False]]
    assert told(f"delete map ip {TABLE} ep_br0") == [["ruleset", ["ep_br0"], [], False]]


def test_changed_elements_of_guards_are_reported_with_their_comments(hear: Hear) -> None:
    def told(command: str) -> list[Any]:
        return hear(f"nft '{command}'")

    assert told(f"add table bridge {TABLE}") == [["ruleset", [""], [], False]]
    assert told(f"add chain bridge {TABLE} ch_br0") == [["ruleset", ["ch_br0"], [], False]]
    # The chain's name says which bridge a rule belongs to, so a rule's comment is not reported.
    rule = f'rule bridge {TABLE} ch_br0 drop comment "bridge=br1"'
    assert told(f"add {rule}") == [["ruleset", ["ch_br0"], [], False]]
    assert told(f"flush chain bridge {TABLE} ch_br0") == [["ruleset", ["ch_br0"], [], False]]
    assert told(f"delete chain bridge {TABLE} ch_br0") == [["ruleset", ["ch_br0"], [], False]]
    assert told(f"add set bridge {TABLE} veths {{ type ifname; }}") == [["ruleset", ["veths"], [], False]]
    element = f'element bridge {TABLE} veths {{ "br0b" comment "bridge=br%3a0 named=yes" }}'
    for verb in ("add", "delete"):
        assert told(f"{verb} {element}") == [["ruleset", ["veths"], ["bridge=br%3a0", "named=yes"], False]]


def test_only_the_deletion_of_the_table_of_maps_is_reported_as_such(hear: Hear) -> None:
    for family, is_ours in (("bridge", False), ("ip", True)):
        hear(f"nft add table {family} {TABLE}")
        assert hear(f"nft delete table {family} {TABLE}") == [["ruleset", [""], [], is_ours]]
    # Also when other tables are deleted together with it, and the last of them is not ours.
    hear(f"nft 'add table ip {TABLE}; add table bridge {TABLE}; add table ip6 z'")
    assert hear("nft flush ruleset") == [["ruleset", [""], [], True]]


def test_a_thousand_changes_at_once_are_all_reported_and_a_loss_is_reported_as_such(hear: Hear) -> None:
    hear("ip link add br0 type bridge")
    assert hear(changes(1000)) == [["links", ["br0"], []]]
    assert hear(changes(10000)) == [["links", ["br0"], []], ["links lost"]]
    assert hear("ip link set br0 mtu 1300") == [["links", ["br0"], []]]


def test_a_smaller_receive_buffer_is_used_where_the_kernel_allows_no_larger_one(
    hypervisor: Hypervisor,
) -> None:
    """Root in a container has no privileges on the machine, and may not enlarge the buffer."""
    hear = listener(hypervisor, "unshare", "--user", "--map-root-user", "--net")
    assert hear("ip link add br0 type bridge") == [["links", ["br0"], []]]
    hear(f"nft 'add table ip {TABLE}; add map ip {TABLE} ep_br0 {{ type mark : mark; }}'")
    # Few elements in each round, because nft itself has the same small buffer.
    elements = f'for i in $(seq 999); do echo "add element ip {TABLE} ep_br0 {{ $round$i : 1 }}"; done'
    assert hear(f"for round in 1 2 3 4 5 6 7 8 9; do ({elements}) | nft -f -; done") == [
        ["ruleset", ["ep_br0"], [], False],
        ["ruleset lost"],
    ]
    assert hear(f"nft delete table ip {TABLE}")[-1][-1] is True
