"""What keeps guests from their services, from what was observed of a bridge."""

from __future__ import annotations

import re

import pytest

from tests.contract import table
from tproxy.bridge import obstacles
from tproxy.bridge.obstacles import Facts
from tproxy.kernel.vlans import PortVlans

OURS = PortVlans(1, frozenset({1}))


EACH = [
    (Facts(namespace=False), "namespace missing", "one_tproxy_br0 does not exist"),
    (Facts(port=False, master=""), "port missing", "br0b does not exist"),
    (Facts(master="", port_up=False), "port detached", "br0b is a port of no bridge"),
    (Facts(master="br1"), "port detached", "br0b is a port of br1, not of br0"),
    (Facts(bridge_up=False, state=0), "bridge down", "ip link set br0 up"),
    (Facts(port_up=False, state=0), "port down", "`tproxy hook up --bridge br0` repairs it"),
    (
        Facts(inner="br0a in namespace x is down", state=0),
        "namespace link",
        "br0a in namespace x is down",
    ),
    (Facts(state=0), "port down", "br0b is disabled"),
    (Facts(state=1, forwards_in=29.6), "STP", "does not forward yet (STP state listening): .* 30 s"),
    (Facts(state=2, forwards_in=4), "STP", "STP state learning"),
    (Facts(state=4), "STP", "STP blocks port br0b"),
    (Facts(vlans={"br0b": PortVlans()}), "VLAN", "port br0b has no PVID"),
    (
        Facts(vlans={"br0b": OURS, "tap1": PortVlans(100, frozenset({100})), "tap2": OURS}),
        "VLAN",
        "no service for guests at tap1, which",
    ),
    (Facts(droppers=("table ip x", "table ip y")), "host firewall", "table ip x; table ip y"),
]


@pytest.mark.parametrize(("facts", "kind", "words"), EACH)
def test_each_obstacle_has_a_kind_and_a_line_that_says_what_to_do(
    facts: Facts, kind: str, words: str
) -> None:
    (found,) = obstacles.judge("br0", facts)
    assert found.kind == kind
    assert "\n" not in found.text
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), found.text)


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(vlans={"br0b": OURS, "trunk": PortVlans(0, frozenset({1, 100}))}),
        Facts(vlans={}),  # a kernel that does not tell
    ],
)
def test_a_bridge_in_order_has_no_obstacle(facts: Facts) -> None:
    assert obstacles.judge("br0", facts) == []


def test_a_line_names_few_ports_and_counts_the_others() -> None:
    others = {f"tap{number}": PortVlans(100, frozenset({100})) for number in range(200)}
    (found,) = obstacles.judge("br0", Facts(vlans={"br0b": OURS, **others}))
    assert "at tap0, tap1, tap10 and 197 more," in found.text


def test_all_obstacles_are_named() -> None:
    facts = Facts(state=1, vlans={"br0b": PortVlans()}, droppers=("a chain",))
    assert [each.kind for each in obstacles.judge("br0", facts)] == ["STP", "VLAN", "host firewall"]


def test_the_contract_lists_the_kinds() -> None:
    kinds = [kind for _, kind, _ in EACH]
    assert table("Output of `status`", "kind of obstacle").column("kind of obstacle") == [
        *dict.fromkeys(kinds)
    ]
