"""The rules of the guards for service addresses other than 169.254.16.9, as text for nftables. Pure.

They are loaded only while a bridge of the host has such an address, beside those of ``guard_rules``, which
keep the MAC. For each address there is a set, ``at_<address>``, with the bridges that have it, or their
ports (``guarded``): a bridge without the address is left alone, whatever its guests do with it. The rules
name that set, and so does each rule's comment (``guards``).

**IPv4.** What guests send is treated as it is for 169.254.16.9. What comes from an uplink is not: such an
address can be a real one there. 169.254.169.254, for example, gives a hypervisor that is itself a virtual
machine in a cloud its metadata. So the host still talks to its neighbour of that address through an uplink of
a guarded bridge. Guests do not, and the neighbour does not reach the guests.

**IPv6.** fe80::a9fe:1009 is no more than a name for our MAC, and nobody behind an uplink has it. Neighbour
discovery (RFC 4861) is to it what ARP is to the others:

- A neighbour advertisement with it as target is a claim, and so is a solicitation without a source address
  (RFC 4862: somebody is about to take it).
- Any other solicitation for it asks. It gets our MAC as its destination, so that the bridge floods it
  nowhere, and no snooping of multicast groups keeps it from us.
- Our port sends nothing but neighbour discovery, answers to pings, "unreachable", TCP and UDP. In particular
  no router advertisement and no redirect.

A host may put any headers before ICMPv6. So these rules look for what follows them (``meta l4proto``).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from tproxy.addresses import SERVICE_ADDRESS_IPV6, is_ipv4
from tproxy.bridge.guard_rules import (
    AT_CHAIN_PREFIX,
    AT_PREFIX,
    FORWARD,
    GUARDED,
    INPUT,
    KNOWN,
    KNOWN_IPV6,
    KNOWN_SECONDS,
    LEAVING,
    NO_TOKEN,
    PREROUTING,
    TO_US,
    TOO_MANY_SYNS,
    TOO_MUCH_ARP,
    UPLINKS,
    VETHS,
    arp_for,
    arp_from,
    ip_for,
    ip_from,
)

_SET_IPV6 = f"{AT_PREFIX}ipv6"  # the name of a set cannot hold a colon

LIMIT_SETS = {
    KNOWN_IPV6: f"type ifname . ipv6_addr; flags dynamic,timeout; timeout {KNOWN_SECONDS}s; size 65535;"
}

KNOWN_SOURCE = f"{AT_CHAIN_PREFIX}known"
ASKING = f"{AT_CHAIN_PREFIX}asking"
ASKING_ARP = f"{AT_CHAIN_PREFIX}arp"
ASKING_IPV6 = f"{AT_CHAIN_PREFIX}asking6"
DISCOVERY = f"{AT_CHAIN_PREFIX}nd"
FOR_SERVICE = f"{AT_CHAIN_PREFIX}for"
FROM_SERVICE = f"{AT_CHAIN_PREFIX}from"
CHAINS = (KNOWN_SOURCE, ASKING, ASKING_ARP, ASKING_IPV6, DISCOVERY, FOR_SERVICE, FROM_SERVICE)

_IPV6 = "meta protocol ip6"
_ICMPV6 = f"{_IPV6} meta l4proto icmpv6"
_PACKED = socket.inet_pton(socket.AF_INET6, SERVICE_ADDRESS_IPV6)
_LAST_WORD = f"0x{_PACKED[12:].hex()}"
_IPV6_FROM = f"@nh,160,32 {_LAST_WORD} {_IPV6} ip6 saddr {SERVICE_ADDRESS_IPV6}"
_IPV6_FOR = f"@nh,288,32 {_LAST_WORD} {_IPV6} ip6 daddr {SERVICE_ADDRESS_IPV6}"
# In solicitations and advertisements the target is behind 8 bytes of ICMPv6.
_ABOUT = f"{_ICMPV6} @th,160,32 {_LAST_WORD}"
_ABOUT_OTHERS = f"@th,64,128 != 0x{_PACKED.hex()}"
# What our port sends of ICMPv6: unreachable, answers to pings, neighbour discovery.
_SENT = "{ 1, 129, 135, 136 }"

_NO_UPLINK = f"iifname != @{UPLINKS}"

Chains = Mapping[str, list[str]]


def set_name(address: str) -> str:
    """The name of the set of the bridges that have a service address, or of their ports."""
    return _SET_IPV6 if ":" in address else f"{AT_PREFIX}{address}"


def address_of(name: str) -> str:
    """The address to which a set belongs; "" for any other name."""
    if name == _SET_IPV6:
        return SERVICE_ADDRESS_IPV6
    address = name.removeprefix(AT_PREFIX)
    return address if address != name and is_ipv4(address) else ""


def with_addresses(
    rules: Chains, addresses: Iterable[str], *, by_port: bool, limited: bool
) -> dict[str, list[str]]:
    """Return rules as ``guard_rules.shared_rules`` returns them, with those for these addresses."""
    prerouting: list[str] = []
    forward: list[str] = []
    arriving: list[str] = []
    leaving: list[str] = []
    for address in sorted(addresses):
        name = set_name(address)
        at = f"iifname @{name}" if by_port else f"meta ibrname @{name}"
        # A frame that is forwarded has two ports of one bridge. The guards may not know one of them yet.
        passing = [at, f"oifname @{name}"] if by_port else [at]
        if ":" in address:
            prerouting += [
                f"{_IPV6_FROM} {at} drop",
                f"{_IPV6_FOR} {at} jump {ASKING_IPV6}",
                f"{_ABOUT} {at} jump {DISCOVERY}",
            ]
            forward += [f"{_IPV6_FOR} {each} jump {FOR_SERVICE}" for each in passing]
            forward += [f"{_IPV6_FROM} {each} jump {FROM_SERVICE}" for each in passing]
            if by_port:
                forward.append(f"{_ABOUT} oifname @{name} iifname != @{GUARDED} drop")
            arriving.append(f"{_IPV6_FROM} iifname @{VETHS} drop")
            # Frames of our port have our MAC, and so come by here, but for those from the right address.
            leaving.append(f"{_IPV6} iifname @{VETHS} ip6 saddr != {SERVICE_ADDRESS_IPV6} drop")
            continue
        claims, asks = (ip_from(address), arp_from(address)), (ip_for(address), arp_for(address))
        prerouting += [
            *(f"{each} {_NO_UPLINK} {at} drop" for each in claims),
            f"{asks[0]} {_NO_UPLINK} {at} jump {ASKING}",
            *([f"{asks[1]} {_NO_UPLINK} {at} jump {ASKING_ARP}"] if limited else []),
        ]
        forward += [f"{each} {where} jump {FOR_SERVICE}" for each in asks for where in passing]
        forward += [f"{each} {where} jump {FROM_SERVICE}" for each in claims for where in passing]
        arriving += [f"{each} iifname @{VETHS} drop" for each in claims]
    # Frames for 169.254.16.9, and from it, have been judged by the first three rules, and the first two.
    return {
        **_chains(by_port=by_port, limited=limited),
        **rules,
        LEAVING: [*rules[LEAVING][:1], *leaving, *rules[LEAVING][1:]],
        PREROUTING: [*rules[PREROUTING][:3], *prerouting, *rules[PREROUTING][3:]],
        FORWARD: [*rules[FORWARD][:2], *forward, *rules[FORWARD][2:]],
        INPUT: [*rules[INPUT], *arriving],
    }


def _chains(*, by_port: bool, limited: bool) -> dict[str, list[str]]:
    """The chains to which the rules for addresses jump."""
    if by_port:
        to_us, from_us = f"iifname @{GUARDED} oifname @{VETHS}", f"iifname @{VETHS} oifname @{GUARDED}"
    else:
        to_us, from_us = f"oifname @{VETHS}", f"iifname @{VETHS}"
    transit = f"iifname @{UPLINKS} oifname @{UPLINKS} return"
    return {
        KNOWN_SOURCE: [TOO_MANY_SYNS, TO_US] if limited else ["return"],  # nothing jumps to it without limits
        ASKING: [*_limits("ip saddr", KNOWN, limited=limited), TO_US],
        ASKING_ARP: _arp_limits() if limited else ["return"],
        ASKING_IPV6: [
            f"iifname @{UPLINKS} drop",
            *_limits("ip6 saddr", KNOWN_IPV6, limited=limited),
            TO_US,
        ],
        DISCOVERY: [
            # With `meta protocol`, which is that behind a tag: `icmpv6 type` alone looks at the tag's.
            f"{_ICMPV6} icmpv6 type != {{ 135, 136 }} return",
            f"{_ABOUT_OTHERS} return",
            f"iifname @{UPLINKS} drop",
            f"{_ICMPV6} icmpv6 type 136 drop",
            f"{_IPV6} ip6 saddr :: drop",
            *([TOO_MUCH_ARP] if limited else []),
            *_limits("ip6 saddr", KNOWN_IPV6, limited=limited),
            TO_US,
        ],
        FOR_SERVICE: [transit, f"iifname @{UPLINKS} drop", f"{to_us} accept", "drop"],
        FROM_SERVICE: [
            f"{_ICMPV6} icmpv6 type != {_SENT} drop",
            transit,
            f"iifname @{UPLINKS} drop",
            f"oifname @{UPLINKS} drop",
            f"{from_us} accept",
            "drop",
        ],
    }


def _limits(source: str, known: str, *, limited: bool) -> list[str]:
    """Rules for a packet from this source; those that pass go on behind them."""
    if not limited:
        return []
    each = f"iifname . {source}"
    return [f"{each} @{known} jump {KNOWN_SOURCE}", NO_TOKEN, f"add @{known} {{ {each} }}"]


def _arp_limits() -> list[str]:
    source = "iifname . arp saddr ip"
    return [
        TOO_MUCH_ARP,
        f"{source} @{KNOWN} accept",
        NO_TOKEN,
        f"add @{KNOWN} {{ {source} }}",
    ]
