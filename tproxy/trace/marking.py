"""The nftables rules that have the kernel tell what becomes of a guest's frames, as text. Pure.

They are in a table of their own, which the kernel deletes with the socket that made it (``flags owner``),
so nothing is left of a trace that is killed. They mark only what concerns a service and begins or ends
something, and only so many frames a second: a guest cannot keep the host busy with being traced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

# Before all that could drop a frame: the guards are at -300, a namespace's wall at -450.
_PRIORITY = -500
_RATE, _BURST = 100, 200  # frames of each rule in a second, and at once
_CHAIN = "seen"

_BEGINS_OR_ENDS = "tcp flags & (fin | syn | rst) != 0"


class Followed(NamedTuple):
    """Whose frames are traced: those of these ports, or MACs, or addresses; and the service addresses."""

    ports: Collection[str] = ()
    macs: Collection[str] = ()
    addresses: Collection[str] = ()
    services: Collection[str] = ()


def on_bridge(table: str, ours: Collection[str], followed: Followed) -> str:
    """The commands for the host. ``ours`` are our ports, from which answers come."""
    rules = _packets(_guest(followed, "saddr"), "daddr", followed.services)
    if followed.ports or followed.macs:  # an address that claims to be the service has no address of its own
        rules += _packets(_guest(followed, "saddr"), "saddr", followed.services)
    if ours:
        own = f"iifname {_set(ours)} "
        to_guest = _guest(followed._replace(ports=()), "daddr")
        rules += [own + each for each in _packets(to_guest, "saddr", followed.services)]
    return _table("bridge", table, rules)


def in_namespace(family: str, table: str, followed: Followed) -> str:
    """The commands for a bridge's namespace; ``family`` is ``inet``, or ``ip`` where there is no such."""
    who = _guest(followed._replace(ports=()), "saddr")
    kinds = ("ip", "ip6") if family == "inet" else ("ip",)
    rules = _packets({kind: each for kind, each in who.items() if kind in kinds}, "daddr", followed.services)
    return _table(family, table, rules)


def _guest(followed: Followed, side: str) -> dict[str, str]:
    """How packets of the guests begin, by protocol; ``side`` is where a packet has the guest's address."""
    if followed.ports:
        return dict.fromkeys(("arp", "ip", "ip6"), f"iifname {_set(followed.ports)} ")
    if followed.macs:
        return dict.fromkeys(("arp", "ip", "ip6"), f"ether {side} {_list(followed.macs)} ")
    if not followed.addresses:
        return dict.fromkeys(("arp", "ip", "ip6"), "")
    found = {}
    if four := [each for each in followed.addresses if ":" not in each]:
        found = {"arp": f"arp {side} ip {_list(four)} ", "ip": f"ip {side} {_list(four)} "}
    if six := [each for each in followed.addresses if ":" in each]:
        found["ip6"] = f"ip6 {side} {_list(six)} "
    return found


def _packets(who: Mapping[str, str], side: str, services: Collection[str]) -> list[str]:
    """Matches of what concerns a service, which is at this ``side`` of a packet."""
    four = [each for each in services if ":" not in each]
    six = [each for each in services if ":" in each]
    found = []
    if four and "arp" in who:
        found.append(f"{who['arp']}arp {side} ip {_list(four)}")
    for kind, addresses in (("ip", four), ("ip6", six)):
        if addresses and kind in who:
            about = f"{who[kind]}{kind} {side} {_list(addresses)} meta l4proto"
            found += [f"{about} tcp {_BEGINS_OR_ENDS}", f"{about} != tcp"]
    if six and "ip6" in who:
        found.append(f"{who['ip6']}icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }}")
    return found


def _table(family: str, table: str, rules: Iterable[str]) -> str:
    """The commands that make the table, or its rules anew."""
    limit = f"limit rate {_RATE}/second burst {_BURST} packets meta nftrace set 1"
    place = f"{family} {table}"
    base = f"type filter hook prerouting priority {_PRIORITY}; policy accept;"
    return "\n".join(
        [
            f"add table {place} {{ flags owner; }}",
            f"add chain {place} {_CHAIN} {{ {base} }}",
            f"flush chain {place} {_CHAIN}",
            *(f"add rule {place} {_CHAIN} {each} {limit}" for each in dict.fromkeys(rules)),
        ]
    )


def _set(links: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{each}"' for each in sorted(links)) + " }"


def _list(values: Iterable[str]) -> str:
    return "{ " + ", ".join(sorted(values)) + " }"
