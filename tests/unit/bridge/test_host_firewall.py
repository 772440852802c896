"""Which chains of the host's firewall could drop what is bridged, from listings of nft and iptables."""

from __future__ import annotations

from typing import Any

import pytest

from tproxy.bridge import host_firewall
from tproxy.bridge.host_firewall import Base, Firewall

Chains = dict[str, list[list[dict[str, Any]]]]

DROP = {"drop": None}
ACCEPT = {"accept": None}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
TCP = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}


def interface(name: Any, key: str = "iifname", op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": name}}


def verdicts(*elements: Any) -> dict[str, Any]:
    return {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": list(elements)}}}


def droppers(chains: Chains, *, drops: bool = False) -> list[str]:
    def rules(chain: str, bridge: str) -> list[host_firewall.Rule]:
        return [rule for each in chains[chain] for rule in host_firewall.nft_rule(each, bridge)]

    return Firewall((Base("table ip filter", "FORWARD", drops, rules),)).droppers("br0")


POLICY = ["table ip filter, chain FORWARD: policy drop"]
A_RULE = ["table ip filter, chain FORWARD: a rule drops or rejects"]


@pytest.mark.parametrize(
    ("statements", "could"),
    [
        ([DROP], True),
        ([COUNTER, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}], True),
        ([{"xt": {"type": "target", "name": "REJECT"}}], True),
        ([{"xt": None}], True),  # a libnftables that knows nothing of iptables' rules
        ([TCP, DROP], True),
        ([interface("br0"), DROP], True),
        ([interface("br*"), DROP], True),
        ([interface({"set": ["br0", "br1"]}), DROP], True),
        ([interface("@those"), DROP], True),
        ([interface("docker0", op="!="), DROP], True),
        ([interface("docker0"), DROP], False),
        ([interface("docker0", "oifname"), DROP], False),
        ([interface("vm*"), DROP], False),
        ([interface({"set": ["a", "b"]}), DROP], False),
        ([interface("br0", op="!="), DROP], False),
        ([COUNTER], False),
        ([{"xt": {"type": "target", "name": "LOG"}}], False),
        ([verdicts(["br0", DROP])], True),
        ([verdicts(["docker0", DROP])], False),
        ([{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@those"}}], True),
    ],
)
def test_a_rule_counts_if_it_could_drop_what_is_on_the_bridge(
    statements: list[dict[str, Any]], could: bool
) -> None:
    assert droppers({"FORWARD": [statements]}) == (A_RULE if could else [])


def test_policy_drop_counts() -> None:
    assert droppers({"FORWARD": []}, drops=True) == POLICY
    assert droppers({"FORWARD": []}) == []


@pytest.mark.parametrize(
    ("statements", "accepts"),
    [
        ([ACCEPT], True),
        ([interface("br0"), interface("br0", "oifname"), COUNTER, ACCEPT], True),
        ([{"xt": {"type": "match", "name": "physdev"}}, COUNTER, ACCEPT], True),
        ([{"jump": {"target": "mine"}}], True),
        ([interface("docker0"), ACCEPT], False),
        ([{"xt": {"type": "match", "name": "conntrack"}}, ACCEPT], False),
        ([TCP, ACCEPT], False),
        ([TCP, {"jump": {"target": "mine"}}], False),
    ],
)
def test_what_comes_after_a_rule_that_accepts_everything_on_the_bridge_does_not_count(
    statements: list[dict[str, Any]], accepts: bool
) -> None:
    mine: Chains = {"mine": [[interface("br0"), ACCEPT]]}
    assert droppers({"FORWARD": [statements], **mine}, drops=True) == ([] if accepts else POLICY)
    assert droppers({"FORWARD": [statements, [DROP]], **mine}) == ([] if accepts else A_RULE)


def test_chains_are_followed_and_the_one_with_the_rule_is_named() -> None:
    jump = [interface("docker0"), {"goto": {"target": "first"}}], [{"jump": {"target": "second"}}]
    chains: Chains = {"FORWARD": list(jump), "first": [[DROP]], "second": [[{"goto": {"target": "third"}}]]}
    assert droppers({**chains, "third": [[TCP, DROP]]}) == [
        "table ip filter, chain third: a rule drops or rejects"
    ]
    assert droppers({**chains, "third": [[{"return": None}], [DROP]]}) == []


@pytest.mark.parametrize(
    ("policy", "rules", "shown"),
    [
        ("DROP", [], "FORWARD: policy drop"),
        ("ACCEPT", [], ""),
        ("ACCEPT", ["FORWARD -j REJECT --reject-with icmp-port-unreachable"], "FORWARD: a rule"),
        ("ACCEPT", ["FORWARD -i docker0 -j DROP", "FORWARD ! -o br+ -j DROP"], ""),
        ("ACCEPT", ["FORWARD ! -i docker0 -o br0 -j DROP"], "FORWARD: a rule"),
        ("ACCEPT", ["FORWARD -p tcp -j MINE", "MINE -j DROP"], "MINE: a rule"),
        ("DROP", ["FORWARD -i br0 -o br0 -j ACCEPT"], ""),
        ("DROP", ["FORWARD -m physdev --physdev-is-bridged -j ACCEPT"], ""),
        ("DROP", ["FORWARD -m physdev ! --physdev-is-bridged -j ACCEPT"], "FORWARD: policy drop"),
        ("DROP", ["FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"], "FORWARD: policy drop"),
        ("ACCEPT", ["FORWARD -m physdev --physdev-is-bridged -j MINE", "MINE -j DROP"], ""),
        ("ACCEPT", ["FORWARD -m physdev --physdev-out tap1 -j DROP"], ""),
        ("DROP", ["FORWARD -j MINE", "MINE -i docker0 -j RETURN", "MINE -j ACCEPT"], ""),
        ("DROP", ["FORWARD -g MINE", "MINE -j RETURN", "FORWARD -j ACCEPT"], "FORWARD: policy drop"),
    ],
)
def test_rules_of_iptables_legacy_are_judged_alike(policy: str, rules: list[str], shown: str) -> None:
    lines = ["# Generated", "*filter", f":FORWARD {policy} [0:0]", ":MINE - [0:0]"]
    saved = "\n".join([*lines, *(f"-A {each}" for each in rules), "COMMIT"])
    found = "; ".join(Firewall((host_firewall.legacy_base(saved),)).droppers("br0"))
    assert found.startswith(f"table filter of iptables-legacy, chain {shown}" if shown else "")
    assert bool(found) == bool(shown)


def test_rules_that_are_meant_for_bridged_packets_do_not_count() -> None:
    """As OpenNebula writes security groups: they drop what the group does not allow."""
    physdev = {"xt": {"type": "match", "name": "physdev"}}
    groups: Chains = {
        "FORWARD": [[physdev, COUNTER, {"jump": {"target": "opennebula"}}]],
        "opennebula": [[physdev, {"jump": {"target": "one-3-0-i"}}], [ACCEPT]],
        "one-3-0-i": [[TCP, {"return": None}], [DROP]],
    }
    assert droppers(groups, drops=True) == []
