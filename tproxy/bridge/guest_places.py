"""Where the guest of a route is: its address, and why nobody answers there.

A guest that is known by its MAC, or by its port of the bridge, has the address from which it asked for a
service last: the namespace's neighbour table says so. A guest that never did has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from tproxy.errors import KernelError
from tproxy.kernel import kinds, links, netns, rtnetlink
from tproxy.names import BridgeNames
from tproxy.routes import NOWHERE, Route

# Entries of a port's forwarding table that are looked at.
MOST = 256


def address_of(bridge: str, route: Route) -> str:
    """Return the IPv4 address of a route's guest, found by MAC or port; NOWHERE where it is not known."""
    macs = _macs_at(route.place) if route.place and not route.mac else {route.mac}
    names = BridgeNames(bridge)
    with suppress(OSError, KernelError), netns.inside(names.namespace):
        link = rtnetlink.link(names.veth_namespace)
        if link is not None:
            for address, mac in rtnetlink.neighbours(link.ifindex):
                if mac in macs:
                    return address
    return NOWHERE


def whereabouts(bridge: str, route: Route, uplinks: Iterable[str] = ()) -> str:
    """Return why nobody answers as the guest of a route, in words. ``uplinks`` are those that are named."""
    known = route.endpoint.address
    there = f"{known} " if known != NOWHERE else ""
    ports = links.ports(bridge)
    if not ports:
        return f"gone: bridge {bridge} has no port, or does not exist"
    if route.place and route.place not in ports:
        return f"gone: bridge {bridge} has no port {route.place}"
    if route.mac:
        at = [port for port in sorted(ports) if route.mac in _macs_at(port)]
        if at and {*uplinks, *kinds.uplinks(bridge, frozenset(at))}.issuperset(at):
            return f"moved: {route.mac} is behind the uplink {at[0]}, on another host"
        if route.place and at and route.place not in at:
            return f"moved: {route.mac} is behind {at[0]}, and not behind {route.place}"
        if at:
            return f"silent: {route.mac} is behind {at[0]}, and does not answer for {there or 'any address'}"
        return f"gone or off: no port of {bridge} has seen {route.mac}"
    if route.place and not _macs_at(route.place):
        return f"off: {route.place} is a port of {bridge}, and nothing was seen behind it"
    if known == NOWHERE:
        return f"its address is not known: the guest behind {route.place} has never asked for a service"
    return f"gone, moved or off: nobody on {bridge} answers for {known}"


def _macs_at(port: str) -> set[str]:
    with suppress(OSError):
        link = rtnetlink.link(port)
        if link is not None:
            return {mac for mac, _ in rtnetlink.forwarding_entries(link.ifindex, MOST)}
    return set()
