"""Says in plain words why a rule of nftables dropped a frame. Pure.

Our own rules are known by their comments, the CRC-32 of their text (docs/contract.md, nftables is the
database). What is not one of them is named by table and chain, so that ``nft`` shows it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tproxy.bridge import address_rules, guard_rules, wall
from tproxy.bridge.guards import Guard
from tproxy.errors import quoted, to_ascii
from tproxy.names import TABLE
from tproxy.trace.rule_events import Drop

_CLAIMS = "it claims to be the service, and only our port may"
_ELSEWHERE = "the bridge would have sent what concerns the service to another port than ours"
_FROM_UPLINK = "it comes from an uplink, behind which nobody has the service"
_TO_UPLINK = "it would have left through an uplink, and nothing of the service may"

_LIMITS = {
    guard_rules.TOO_MANY_SYNS: f"its port brings in more than {guard_rules.SYN_RATE} connections a second",
    guard_rules.TOO_MUCH_ARP: f"its port asks who has it more than {guard_rules.ARP_RATE} times a second",
    guard_rules.NO_TOKEN: f"its port brings in more than {guard_rules.RATE} new source addresses a second",
}
# By chain, for rules that say nothing more of themselves.
_CHAINS = {
    guard_rules.CLAIMING: _CLAIMS,
    guard_rules.PREROUTING: _CLAIMS,
    guard_rules.FORWARD: "the guards do not know its port yet",
    guard_rules.INPUT: "an answer of the service is not for this host",
    guard_rules.FOR_SERVICE: _ELSEWHERE,
    address_rules.FOR_SERVICE: _ELSEWHERE,
    guard_rules.LEAVING: "nothing of the service may leave there",
    address_rules.FROM_SERVICE: _CLAIMS,
    address_rules.DISCOVERY: _CLAIMS,
}


_COMMENT = len("tproxy 00000000")  # what may follow names an address


class Rule(NamedTuple):
    """A rule as it was found: its handle, and its comment."""

    handle: int
    comment: str


def why(drop: Drop, rules: Iterable[Rule], texts: Mapping[str, str]) -> str:
    """Why a frame was dropped. ``rules`` are those of its chain now, ``texts`` as ``our_texts`` has them."""
    rule = next((each for each in rules if each.handle == drop.handle), None)
    if drop.table == TABLE and drop.family == "bridge":
        text = texts.get(rule.comment[:_COMMENT] if rule is not None else "", "")
        return f"by the guards ({_guard(drop.chain, text)})"
    if drop.table == TABLE and drop.chain == wall.CHAIN:
        return "by the wall in the namespace (it lets in the services, and a limited number of others)"
    if drop.table == TABLE and drop.chain == wall.AFTER:
        text = texts.get(rule.comment[:_COMMENT] if rule is not None else "", "")
        if "reject" in text:
            return "by the wall in the namespace, with ICMP (no endpoint of the service can be reached)"
        return "by the wall in the namespace (there is no such UDP service)"
    where = f"table {drop.family} {to_ascii(drop.table)}, chain {to_ascii(drop.chain)}"
    if not drop.handle:
        return f"by another program's nftables: {where}, by its policy"
    note = f", {quoted(rule.comment)}" if rule is not None and rule.comment else ""
    return f"by another program's nftables: {where}, handle {drop.handle}{note}"


def _guard(chain: str, text: str) -> str:
    for limit, words in _LIMITS.items():
        if text.endswith(limit):
            return words
    if chain.startswith("ch_"):  # guards.ARP_GUARD_PREFIX
        return _ELSEWHERE
    if text.startswith(f"iifname @{guard_rules.UPLINKS} "):
        return _FROM_UPLINK
    if text.startswith(f"oifname @{guard_rules.UPLINKS} "):
        return _TO_UPLINK
    return _CHAINS.get(chain, f"chain {to_ascii(chain)}")


def our_texts(addresses: frozenset[str]) -> dict[str, str]:
    """The texts of our rules, by their comments, on a host with these further service addresses."""
    found = {}
    for ports in (None, frozenset[str]()):
        for limited in (True, False):
            guard = Guard("x", ports, {}, limited, addresses)
            for rules in guard.shared_rules.values():
                found.update({_comment(rule): rule for rule in rules})
    for kind in wall.KINDS:
        for rules in wall.rules(kind, wall.Parts(udp=True, further=True, ipv6=True)).values():
            found.update({_comment(rule): rule for rule in rules})
    return found


def _comment(rule: str) -> str:
    return f"tproxy {zlib.crc32(rule.encode()):08x}"
