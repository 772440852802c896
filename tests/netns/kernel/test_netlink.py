"""netlink: what is heard of each change, with the kernel's own messages."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import TABLE

HEAR = """
import json, subprocess, sys
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import LinkEvents, RulesetEvents

# Of each line of input, a command: all that is heard of it. The kernel tells before the command ends.
def links_touched(names, masters):
    heard.append(["links", sorted(names), sorted(masters)])

def ruleset_touched(told):
    heard.append(["ruleset", sorted(told.names), sorted(told.comments), told.maps_deleted])

loop = Loop()
LinkEvents(loop, links_touched, lambda: heard.append(["links lost"]))
RulesetEvents(loop, ruleset_touched, lambda: heard.append(["ruleset lost"]))
print("ready", flush=True)
for line in sys.stdin:
    heard = []
    subprocess.run(line, shell=True, check=True)
    loop.call_later(0, loop.stop)
    loop.run()
    print(json.dumps(heard), flush=True)
"""

Hear = Callable[..., list[Any]]


@pytest.fixture
def hear(hypervisor: Hypervisor) -> Hear:
    """``hear("nft add table ip one_tproxy")``: what is told of that; of what was done before, nothing."""
    return listener(hypervisor)


def listener(host: Hypervisor, *by: str) -> Hear:
    process = host.popen(
        *by, sys.executable, "-c", HEAR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
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
    """As many changes of one link, which stay unheard until the last is made."""
    lines = f"for i in $(seq {count // 2}); do echo link set br0 mtu 1400; echo link set br0 mtu 1401; done"
    return f"{lines} | ip -batch -"


def test_of_a_link_its_name_is_told_and_its_masters(hear: Hear) -> None:
    assert hear("ip link add br0 type bridge") == [["links", ["br0"], []]]
    ((_, names, masters),) = hear("ip link add x0 type veth peer name x1")
    assert ({"x0", "x1"} - {*names}, masters) == (set(), [])
    ((_, names, masters),) = hear("ip link set x0 master br0")
    assert ("x0" in names, masters) == (True, ["br0"])
    ((_, names, masters),) = hear("ip link set x1 mtu 1400; ip link set x0 mtu 1400")
    assert ({"x0", "x1"} - {*names}, masters) == (set(), ["br0"])
    # A master that is gone when one asks for its name is told of by itself.
    ((_, names, masters),) = hear("ip link set x0 mtu 1300; ip link del br0")
    assert ({"br0", "x0"} - {*names}, masters) == (set(), [])
    ((_, names, _),) = hear("ip link del x0")
    assert {"x0", "x1"} <= {*names}


def test_a_name_may_be_of_any_bytes(hear: Hear) -> None:
    assert hear(r"ip link add $(printf 'x\377') type bridge") == [
        ["links", ["x\N{REPLACEMENT CHARACTER}"], []]
    ]


# struct nlmsghdr, RTM_NEWLINK, and struct ifinfomsg: any root may say so to all who listen to links.
NAMELESS = (
    "import socket as s, struct; "
    "s.socket(s.AF_NETLINK, s.SOCK_RAW).sendto(struct.pack('=IHHII16x', 32, 16, 0, 0, 0), (0, 1))"
)


def test_a_message_without_a_name_is_about_no_link(hear: Hear) -> None:
    assert hear(shlex.join([sys.executable, "-c", NAMELESS])) == [["links", [], []]]


def test_of_our_tables_what_was_changed_is_told(hear: Hear) -> None:
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


def test_of_guards_the_comments_of_elements_are_told_too(hear: Hear) -> None:
    def told(command: str) -> list[Any]:
        return hear(f"nft '{command}'")

    assert told(f"add table bridge {TABLE}") == [["ruleset", [""], [], False]]
    assert told(f"add chain bridge {TABLE} ch_br0") == [["ruleset", ["ch_br0"], [], False]]
    # Whose it is says the chain, not what a comment has.
    rule = f'rule bridge {TABLE} ch_br0 drop comment "bridge=br1"'
    assert told(f"add {rule}") == [["ruleset", ["ch_br0"], [], False]]
    assert told(f"flush chain bridge {TABLE} ch_br0") == [["ruleset", ["ch_br0"], [], False]]
    assert told(f"delete chain bridge {TABLE} ch_br0") == [["ruleset", ["ch_br0"], [], False]]
    assert told(f"add set bridge {TABLE} veths {{ type ifname; }}") == [["ruleset", ["veths"], [], False]]
    element = f'element bridge {TABLE} veths {{ "br0b" comment "bridge=br%3a0 named=yes" }}'
    for verb in ("add", "delete"):
        assert told(f"{verb} {element}") == [["ruleset", ["veths"], ["bridge=br%3a0", "named=yes"], False]]


def test_that_the_table_of_maps_went_is_told_and_not_that_another_did(hear: Hear) -> None:
    for family, is_ours in (("bridge", False), ("ip", True)):
        hear(f"nft add table {family} {TABLE}")
        assert hear(f"nft delete table {family} {TABLE}") == [["ruleset", [""], [], is_ours]]
    # Also among others, of which the last is not ours, or not of maps.
    hear(f"nft 'add table ip {TABLE}; add table bridge {TABLE}; add table ip6 z'")
    assert hear("nft flush ruleset") == [["ruleset", [""], [], True]]


def test_of_many_changes_at_once_none_is_lost_and_of_too_many_that_some_were(hear: Hear) -> None:
    hear("ip link add br0 type bridge")
    assert hear(changes(1000)) == [["links", ["br0"], []]]
    assert hear(changes(10000)) == [["links", ["br0"], []], ["links lost"]]
    assert hear("ip link set br0 mtu 1300") == [["links", ["br0"], []]]


def test_where_the_kernel_gives_no_more_room_there_is_less(hypervisor: Hypervisor) -> None:
    """Root of a container is nobody on the machine, and may not have what the machine's may."""
    hear = listener(hypervisor, "unshare", "--user", "--map-root-user", "--net")
    assert hear("ip link add br0 type bridge") == [["links", ["br0"], []]]
    hear(f"nft 'add table ip {TABLE}; add map ip {TABLE} ep_br0 {{ type mark : mark; }}'")
    # Each few enough that nft itself, who has as little room, is not in need of more.
    elements = f'for i in $(seq 999); do echo "add element ip {TABLE} ep_br0 {{ $round$i : 1 }}"; done'
    assert hear(f"for round in 1 2 3 4 5 6 7 8 9; do ({elements}) | nft -f -; done") == [
        ["ruleset", ["ep_br0"], [], False],
        ["ruleset lost"],
    ]
    assert hear(f"nft delete table ip {TABLE}")[-1][-1] is True
