"""On which host each guest is, and each route leads to, by what hosts say in their receipts. Pure.

A host can only say so of networks that the policy gives it. Where several say so, the one where the guest
came last has it: a guest that was moved is seen there, while the old host may not know yet that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tproxy.config.routes import RouteEntry
from tproxy.fleet.presence import Guest
from tproxy.fleet.receipts import Receipt
from tproxy.model import Network

ANY_NODE = "*"  # of a route: the node that has the guest

# Seconds for which two hosts may both say that they have a guest, while it moves.
MOVING = 30.0

STALE = 1200.0  # seconds: a host that has said nothing for so long is gone, or cut off (four heartbeats)


class Place(NamedTuple):
    """Where a route leads: the host that has its guest, and since when, in seconds since 1970."""

    host: str
    since: float


class Places(NamedTuple):
    """The place of each route by id; a route whose guest nobody has is missing. ``problems`` are lines."""

    routes: dict[str, Place]
    problems: list[str]


def locate(
    routes: Iterable[RouteEntry],
    receipts: Iterable[Receipt],
    networks: Mapping[str, frozenset[str]],
    now: float,
) -> Places:
    """Return where each route leads. ``networks`` are names or ids of those that each host may speak of.

    A route whose guest is known by its address alone leads to the one host that has its network; where
    several have it, its MAC is needed.
    """
    problems: list[str] = []
    at: dict[str, list[tuple[float, str, Guest]]] = {}
    for receipt in receipts:
        if now - receipt.time > STALE and receipt.guests:
            problems.append(
                f"{receipt.host}: no receipt for {now - receipt.time:.0f} s: its guests may be gone"
            )
        allowed = networks.get(receipt.host, frozenset())
        for guest in receipt.guests:
            if not _network(guest).is_one_of(allowed):
                name = guest.network or guest.network_id
                problems.append(f"{receipt.host}: it says that {guest.mac} of network {name!a} is there, "
                                "which is not its network: ignored")  # fmt: skip
                continue
            at.setdefault(guest.mac, []).append((guest.since, receipt.host, guest))
    problems += _claims(at, now)
    found: dict[str, Place] = {}
    for route in routes:
        place = _place(route, at, problems)
        if place is not None:
            found[route.id] = place
    return Places(found, problems)


def _network(guest: Guest) -> Network:
    return Network(guest.network, guest.network_id)


def _claims(at: Mapping[str, list[tuple[float, str, Guest]]], now: float) -> list[str]:
    """Return a line for each guest that two hosts say they have, for longer than a move takes."""
    found = []
    for mac, claims in sorted(at.items()):
        for index, (since, host, guest) in enumerate(claims):
            for other_since, other, its in claims[:index]:
                same = host != other and _network(guest) == _network(its)
                if same and now - max(since, other_since) > MOVING:
                    network = guest.network or guest.network_id
                    hosts = " and ".join(sorted((host, other)))
                    found.append(f"{hosts} both say that {mac} of network {network!a} is there")
    return found


def _place(
    route: RouteEntry,
    at: Mapping[str, list[tuple[float, str, Guest]]],
    problems: list[str],
) -> Place | None:
    if not route.network:
        return None  # it leads to a node or an address
    if route.node not in ("", ANY_NODE):
        return Place(route.node, 0.0)  # somebody has said it
    wanted = frozenset({route.network})
    if route.guest_mac:
        claims = [
            (since, host)
            for since, host, guest in at.get(route.guest_mac.lower(), ())
            if _network(guest).is_one_of(wanted) and route.bridge_port in ("", guest.port)
        ]
        if not claims:
            return None
        since, host = max(claims)
        return Place(host, since)
    hosts: dict[str, float] = {}
    for since, host, guest in (claim for claims in at.values() for claim in claims):
        if _network(guest).is_one_of(wanted) and route.bridge_port in ("", guest.port):
            hosts[host] = min(since, hosts.get(host, since))
    if len(hosts) > 1:
        problems.append(
            f"route {route.id}: network {route.network!a} has guests on {', '.join(sorted(hosts))}: "
            "guest_mac is needed to tell where it leads"
        )
        return None
    return next((Place(host, since) for host, since in hosts.items()), None)
