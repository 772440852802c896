"""The guards as text for nftables: commands change exactly what differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.bridge import address_rules, guards
from tproxy.bridge.guard_rules import (
    ASKING,
    FORWARD,
    FRESH,
    GUARDED,
    INPUT,
    KNOWN,
    LIMIT_SETS,
    PREROUTING,
    SETS,
    SHARED_CHAINS,
    UPLINKS,
    VETHS,
    shared_rules,
)
from tproxy.bridge.guards import Guard, ObservedGuard
from tproxy.names import BridgeNames

# An example takes some milliseconds, and there are few ways in which examples can differ.
few = settings(max_examples=25)

# Where a packet has the service address: bytes 12 and 16 of IPv4, 14 (its first half) and 24 of ARP.
ADDRESS_WORD = r"@nh,(96,32|128,32|192,32) 0xa9fe1009 |@nh,112,16 0xa9fe "
ARP_WORD = "@nh,192,32 0xa9fe1009"  # bytes 24 to 27 of what an ARP frame carries: the address asked for

PORTS = ["vnet0", "vnet1", "vnet2", "eth0", "eth0.7", "tap-x"]


@st.composite
def a_guard(draw: st.DrawFn, bridge: str = "br0", ports: Iterable[str] = PORTS) -> Guard:
    port = st.sampled_from(list(ports))
    uplinks = draw(st.dictionaries(port, st.booleans(), max_size=3))
    by_port = draw(st.booleans())
    own = frozenset({BridgeNames(bridge).veth_bridge, *draw(st.sets(port))}) if by_port else None
    addresses = draw(st.frozensets(st.sampled_from(["169.254.169.254", "10.0.0.53", SERVICE_ADDRESS_IPV6])))
    return Guard(bridge, own, uplinks, limited=draw(st.booleans()), addresses=addresses)


FORGET = f"flush set bridge one_tproxy {KNOWN}"

# As nft 1.0.6 lists what the rules add to the sets of the limits.
LIMITED = [
    {"set": {"name": KNOWN, "elem": [{"elem": {"val": {"concat": ["vnet0", "10.0.0.5"]}, "expires": 9}}]}},
    {"set": {"name": FRESH, "elem": [{"elem": {"val": "vnet0", "expires": 59, "limit": {"rate": 2}}}]}},
]


def as_listed(*present: Guard) -> list[dict[str, Any]]:
    """What ``nft -j list table`` (1.0.6) returns when these guards, all of one kind, are loaded."""
    commands = guards.load(present[0], ObservedGuard(present[0].bridge))
    rules: dict[str, list[str]] = {}
    items: list[dict[str, Any]] = [{"metainfo": {}}, {"table": {"family": "bridge", "name": "one_tproxy"}}]
    for each in present[1:]:
        commands += [c for c in guards.load(each, ObservedGuard(each.bridge)) if f" ch_{each.bridge} " in c]
    for command in commands:
        words = command.split()
        if words[:2] == ["add", "rule"]:
            rules.setdefault(words[4], []).append(re.findall('comment "(.*?)"', command)[0])
        elif words[:2] == ["add", "chain"] and "{" in words:
            chain: dict[str, Any] = {"name": words[4]}
            if hook := re.search(r"hook (\w+) priority (-?\d+)", command):
                chain |= {"hook": hook[1], "prio": int(hook[2]), "policy": "accept"}
            items.append({"chain": chain})
    for name in dict.fromkeys(name for each in present for name in each.elements):
        elements = {key: text for each in present for key, text in each.elements.get(name, {}).items()}
        elem = [{"elem": {"val": key, "comment": text}} for key, text in elements.items()]
        items.append({"set": {"name": name, **({"elem": elem} if elem else {})}})
    items += LIMITED if present[0].limited else []
    items += [{"rule": {"chain": c, "comment": mark}} for c, marks in rules.items() for mark in marks]
    return items


def observed(guard: Guard) -> ObservedGuard:
    return guards.parse(as_listed(guard))[guard.bridge]


def elements_of(commands: Iterable[str], verb: str) -> set[tuple[str, str]]:
    """The set elements that commands add or delete, as set and name."""
    return {
        (command.split()[4], name)
        for command in commands
        if command.startswith(f"{verb} element")
        for name in re.findall(r'[{,] "(.*?)"', command)
    }


@few
@given(a_guard())
def test_guards_in_order_need_no_command(guard: Guard) -> None:
    assert guards.load(guard, observed(guard)) == []
    assert guard.rules_are_in(observed(guard))


@few
@given(a_guard())
def test_loaded_guards_are_recognised_as_this_bridges(guard: Guard) -> None:
    found = observed(guard)
    assert found.anything
    for name in SETS:
        assert found.own(name) == guard.elements[name]
    assert found.named_uplinks == {name for name, named in guard.uplinks.items() if named}


@few
@given(a_guard(), a_guard())
def test_a_change_of_ports_changes_elements_and_no_rule(before: Guard, after: Guard) -> None:
    if not after.rules_are_in(observed(before)):
        return  # other rules: another test
    commands = guards.load(after, observed(before))
    forgets = after.limited and before.elements[UPLINKS] != after.elements[UPLINKS]
    assert [each for each in commands if not re.match(r"(add|delete) element ", each)] == [FORGET] * forgets
    there = {(name, key): text for name, each in before.elements.items() for key, text in each.items()}
    want = {(name, key): text for name, each in after.elements.items() for key, text in each.items()}
    assert elements_of(commands, "delete") == {key for key in there if want.get(key) != there[key]}
    assert elements_of(commands, "add") == {key for key in want if want[key] != there.get(key)}
    assert commands == guards.change_elements(after, observed(before))


@few
@given(a_guard())
def test_an_element_is_deleted_before_it_is_added_again_with_another_comment(guard: Guard) -> None:
    turned = guard._replace(uplinks={name: not named for name, named in guard.uplinks.items()})
    verbs = [c.split()[0] for c in guards.load(turned, observed(guard)) if f" {UPLINKS} " in c]
    assert verbs == (["delete", "add"] if guard.uplinks else [])


@few
@given(a_guard("br0", ["vnet0", "vnet1", "eth0"]), a_guard("br1", ["vnet8", "vnet9", "eth1"]))
def test_two_bridges_share_rules_and_neither_touches_the_others_elements(one: Guard, two: Guard) -> None:
    two = two._replace(
        ports=None if one.ports is None else frozenset({"br1b", *(two.ports or ())}),
        limited=one.limited,
        addresses_elsewhere=one.addresses,
    )
    one = one._replace(addresses_elsewhere=two.addresses)
    found = guards.parse(as_listed(one, two))
    assert guards.load(one, found["br0"]) == []
    assert guards.load(two, found["br1"]) == []
    gone = guards.unload(found["br0"])
    assert elements_of(gone, "delete") == {(name, key) for name, keys in one.elements.items() for key in keys}
    if one.addresses <= two.addresses:
        assert not any("br1" in each or f" {chain}" in each for each in gone for chain in SHARED_CHAINS)
    else:  # the rules for its addresses go
        names = {guards.AT_PREFIX + each for each in one.addresses - two.addresses if ":" not in each}
        assert names <= {each.split()[4] for each in gone if each.startswith("delete set")}
        assert not any(f"@{name} " in each for each in gone for name in names if each.startswith("add rule"))
    assert guards.parse(as_listed(two))["br1"].own(VETHS) == {"br1b": two.elements[VETHS]["br1b"]}


@few
@given(a_guard())
def test_after_unloading_only_the_shared_parts_are_left(guard: Guard) -> None:
    listed = as_listed(guard)
    assert not guards.only_shared(listed)
    commands = guards.unload(observed(guard))
    elements = {(name, key) for name, keys in guard.elements.items() for key in keys}
    assert elements_of(commands, "delete") == elements
    assert [c for c in commands if "chain" in c and " ch_br0" in c] == [
        "flush chain bridge one_tproxy ch_br0",
        "delete chain bridge one_tproxy ch_br0",
    ]
    assert (FORGET in commands) == guard.limited
    left = [
        {"set": {"name": item["set"]["name"]}} if "set" in item and item not in LIMITED else item
        for item in listed
        if item.get("chain", {}).get("name") != "ch_br0" and item.get("rule", {}).get("chain") != "ch_br0"
    ]
    assert guards.only_shared(left)
    assert guards.unload(guards.parse(left)[""]) == []


FOREIGN: dict[str, dict[str, Any]] = {
    "table that is switched off": {"table": {"flags": "dormant"}},
    "chain": {"chain": {"name": "ch_br9"}},
    "rule": {"rule": {"chain": "mine"}},
    "set": {"set": {"name": "mine"}},
    "element": {"set": {"name": UPLINKS, "elem": ["eth0"]}},
    "map": {"map": {"name": "mine"}},
    "counter": {"counter": {"name": "mine"}},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_table_with_an_object_of_another_program_is_not_deleted(kind: str) -> None:
    assert guards.only_shared([{"metainfo": {}}, {"table": {}}])
    assert not guards.only_shared([{"metainfo": {}}, {"table": {}}, FOREIGN[kind]])


@few
@given(a_guard(), st.data())
def test_a_missing_chain_or_one_without_a_rule_is_loaded_again(guard: Guard, data: st.DataObject) -> None:
    listed = as_listed(guard)
    kinds = ["rule", "chain"]
    at = data.draw(st.sampled_from([i for i, item in enumerate(listed) if any(k in item for k in kinds)]))
    damaged = [*listed[:at], *listed[at + 1 :]]
    name = listed[at].get("chain", {}).get("name") or listed[at]["rule"]["chain"]
    commands = guards.load(guard, guards.parse(damaged)["br0"])
    assert f"delete chain bridge one_tproxy {name}" in commands
    assert elements_of(commands, "add") == elements_of(commands, "delete") == set()
    whole = {"ch_br0"} if name == "ch_br0" else set(guard.shared_rules)
    assert {c.split()[4] for c in commands if not c.startswith("add set")} == whole


@pytest.mark.parametrize(
    "wrong", [{"hook": "input"}, {"prio": 0}, {"hook": None, "prio": None}, {"policy": "drop"}]
)
@pytest.mark.parametrize("chain", [PREROUTING, FORWARD, "ch_br0"])
def test_a_chain_at_another_hook_or_with_policy_drop_is_replaced(
    chain: str, wrong: Mapping[str, Any]
) -> None:
    guard = Guard("br0", None, {})
    listed = as_listed(guard)
    for item in listed:
        if item.get("chain", {}).get("name") == chain:
            item["chain"] |= wrong
    assert f"delete chain bridge one_tproxy {chain}" in guards.load(guard, guards.parse(listed)["br0"])


@few
@given(a_guard())
def test_rules_for_the_other_kind_of_kernel_are_replaced(guard: Guard) -> None:
    ports = frozenset({"br0b"}) if guard.ports is None else None
    for other in (guard._replace(ports=ports), guard._replace(limited=not guard.limited)):
        assert not other.rules_are_in(observed(guard))
        assert f"delete chain bridge one_tproxy {PREROUTING}" in guards.load(other, observed(guard))


@few
@given(a_guard())
def test_sets_of_the_limits_are_made_before_the_rules_that_name_them(guard: Guard) -> None:
    commands = guards.load(guard, ObservedGuard("br0"))
    made = [c.split()[4] for c in commands if c.startswith("add set")]
    further = sorted(name for name in guard.elements if name not in SETS)
    limits = [*LIMIT_SETS, *(address_rules.LIMIT_SETS if further else ())] if guard.limited else []
    assert made == [*SETS, *further, *limits]
    first_rule = next(i for i, c in enumerate(commands) if c.startswith("add rule"))
    assert all(i < first_rule for i, c in enumerate(commands) if c.startswith("add set"))
    named = {
        each for c in commands if c.startswith("add rule") for each in re.findall(r"@(?![nt]h,)([\w.]+)", c)
    }
    assert named <= set(made)
    assert observed(guard).limited == guard.limited


def test_no_rule_keeps_a_source_known_while_it_sends() -> None:
    """Otherwise one port could collect any number of sources: ``update`` would renew an element's timeout."""
    rules = Guard("br0", None, {}).shared_rules[ASKING]
    assert len([rule for rule in rules if f" add @{KNOWN} " in rule]) == len(["ARP", "IPv4"])
    assert not any(f"update @{KNOWN}" in rule for rule in rules)
    assert not any("arp operation" in rule for rule in rules), "answers keep entries alive, as requests do"


def test_rules_without_limits_are_not_taken_for_those_of_before_there_were_limits() -> None:
    before = f"ether daddr {SERVICE_MAC} iifname != @uplinks accept"
    assert before not in Guard("br0", None, {}, limited=False).shared_rules[ASKING]


def test_a_chain_is_created_before_and_deleted_after_the_rules_that_jump_to_it() -> None:
    commands = guards.load(Guard("br0", None, {}), ObservedGuard("br0"))
    made = [c.split()[4] for c in commands if c.startswith("add chain") and "{" in c]
    for command in commands:
        if jump := re.search(r"add rule bridge one_tproxy (\S+) .* jump (\S+)", command):
            assert made.index(jump[2]) < made.index(jump[1])
    flushed = max(
        i
        for i, c in enumerate(commands[: commands.index(f"add chain bridge one_tproxy {made[0]} {{  }}")])
        if c.startswith("flush")
    )
    deleted = min(i for i, c in enumerate(commands) if c.startswith("delete chain"))
    assert flushed < deleted


def test_the_element_of_a_port_that_came_from_another_bridge_changes_its_owner() -> None:
    before = Guard("br1", frozenset({"br1b", "vnet0"}), {})
    after = Guard("br0", frozenset({"br0b", "vnet0"}), {})
    found = guards.parse(as_listed(before))["br1"]._replace(bridge="br0")
    commands = guards.change_elements(after, found)
    assert (GUARDED, "vnet0") in elements_of(commands, "delete") & elements_of(commands, "add")
    assert (GUARDED, "br1b") not in elements_of(commands, "delete")


@few
@given(a_guard())
def test_the_arp_guard_is_as_the_contract_says(guard: Guard) -> None:
    commands = guards.load(guard, ObservedGuard("br0"))
    base = "add chain bridge one_tproxy ch_br0 { type filter hook forward priority -200; policy accept; }"
    assert base in commands
    asks = f"{ARP_WORD} meta protocol arp arp daddr ip {SERVICE_ADDRESS}"
    rule, *_ = guard.arp_rules
    assert rule.startswith(f"{asks} oifname != ")
    assert rule.endswith(" drop")


@pytest.mark.parametrize("by_port", [True, False])
def test_a_frame_that_does_not_concern_the_service_costs_no_set_lookup(by_port: bool) -> None:
    """Every frame on the host passes these rules. Their cost must not grow with the number of bridges."""
    guard = Guard("br0", frozenset({"br0b"}) if by_port else None, {})
    words = (
        f"ether saddr {SERVICE_MAC}",
        f"ether daddr {SERVICE_MAC}",
        ADDRESS_WORD,
        "@nh,64,32 0x0600a9fe ",
    )
    for chain in (PREROUTING, FORWARD, INPUT):
        for rule in guard.shared_rules[chain]:
            # The first bytes of no IPv4, IPv6 or ARP packet.
            stacked = rule.startswith("@nh,0,32 & 0x0fff0000 == 0 meta protocol { 8021q, 8021ad } jump ")
            assert stacked or re.match("|".join(words), rule)


@pytest.mark.parametrize("by_port", [True, False])
def test_rules_for_further_addresses_begin_with_a_word_too_and_name_their_set(by_port: bool) -> None:
    addresses = frozenset({"169.254.169.254", SERVICE_ADDRESS_IPV6})
    guard = Guard("br0", frozenset({"br0b"}) if by_port else None, {}, addresses=addresses)
    plain = guard._replace(addresses=frozenset())
    for chain in (PREROUTING, FORWARD):
        for rule in guard.shared_rules[chain]:
            if rule not in plain.shared_rules[chain]:
                # Neighbour discovery can have headers before it, so its place is not fixed.
                assert rule.startswith(("@nh,", "meta protocol ip6 meta l4proto icmpv6 @th,"))
                assert re.search(r"@at_(169\.254\.169\.254|ipv6) ", rule)


def test_rules_that_drop_arp_name_no_field_of_it() -> None:
    """nft's listing leaves ``meta protocol`` out before such a field, and loads it again as another match."""
    for by_port in (True, False):
        chains = shared_rules(by_port=by_port, limited=True)
        for rule in (*chains[PREROUTING], *chains[FORWARD], *chains[INPUT]):
            assert "arp" not in rule or re.search(r"meta protocol arp (@nh,|jump |iifname )", rule)
        for rule in chains[ASKING]:
            assert "arp saddr" not in rule or rule.endswith((" accept", "}")), "without it, a token is needed"


@few
@given(st.sampled_from(["br0", "a.b-c.10", "onebr0.1234", "fifteen.bytes-x"]))
def test_elements_are_found_under_the_name_of_any_bridge(bridge: str) -> None:
    guard = Guard(bridge, None, {"eth0": True})
    found = guards.parse(as_listed(guard))
    assert set(found) == {"", bridge}
    assert found[bridge].own(VETHS).keys() == {BridgeNames(bridge).veth_bridge}
    assert found[bridge].arp_guard is not None


def test_an_empty_host_has_nothing_of_ours() -> None:
    (nothing,) = guards.parse([]).values()
    assert not nothing.anything
    assert guards.unload(nothing) == []


def test_elements_of_other_programs_are_not_deleted() -> None:
    sets = [
        {"set": {"name": UPLINKS, "elem": ["eth0", {"elem": {"val": "eth1", "comment": "keep me"}}]}},
        {"set": {"name": "mine", "elem": [{"range": [1, 9]}]}},
    ]
    (found,) = guards.parse(sets).values()
    assert found.own(UPLINKS) == {}
    assert guards.unload(found._replace(bridge="br0")) == []


@pytest.mark.parametrize("kept", ["chain", "set"])
def test_any_remaining_part_of_a_bridges_guards_is_found_and_deleted(kept: str) -> None:
    left = [item for item in as_listed(Guard("br0", None, {})) if kept in item]
    found = guards.parse(left)["br0"]
    assert found.anything
    assert guards.unload(found)
