"""The guests that are on this host: network, MAC, port, and since when.

A guest is here when its MAC was seen behind a port of a served bridge that is neither an uplink nor ours: the
bridge's forwarding table says so. Its network is the one that a hook named for the MAC; on a bridge with one
network, that one. The kernel forgets a silent guest after some minutes, so one that was seen stays while its
port is a port of that bridge.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from tproxy.bridge import nftables
from tproxy.kernel import kinds, links, rtnetlink
from tproxy.model import Network, ServiceMap
from tproxy.names import BridgeNames

# Guests at one port that are told. One that runs guests itself could have any number.
MOST_AT_A_PORT = 256

# Groups of rtnetlink(7) whose messages say that a guest may have come or gone: RTMGRP_LINK, RTMGRP_NEIGH.
_GROUPS = 1 | 4


class Guest(NamedTuple):
    """One guest's card. ``since`` is in seconds since 1970."""

    network: str
    network_id: str
    mac: str
    bridge: str
    port: str
    since: float


def look(before: Iterable[Guest], now: float) -> list[Guest]:
    """Return the guests that are here, sorted; ``before`` are those of the last look. Raises NftError."""
    maps = nftables.read_maps()
    guards = nftables.read_guards() if maps else {}
    uplinks = {bridge: each.named_uplinks for bridge, each in guards.items()}
    ports = {each.bridge: _guest_ports(each.bridge, uplinks.get(each.bridge, frozenset())) for each in maps}
    seen = {each.bridge: _seen(each, ports[each.bridge]) for each in maps}
    return together(before, seen, ports, now)


def together(
    before: Iterable[Guest],
    seen: Mapping[str, Iterable[tuple[str, str, Network]]],
    ports: Mapping[str, set[str]],
    now: float,
) -> list[Guest]:
    """Return the guests from the last look and this one. Pure.

    ``seen`` has MAC, port and network of guests by bridge, ``ports`` the ports that guests can be behind.
    """
    known = {(each.bridge, each.mac): each for each in before if each.port in ports.get(each.bridge, ())}
    for bridge, found in seen.items():
        for mac, port, network in found:
            old = known.get((bridge, mac))
            since = old.since if old is not None and old.port == port else now
            known[bridge, mac] = Guest(network.name, network.id, mac, bridge, port, since)
    return sorted(known.values())


def from_json(found: Any) -> list[Guest]:
    """Return the guests that ``Guest._asdict`` made lists of; none where that is damaged."""
    with suppress(TypeError, ValueError):
        return [Guest(**each) for each in found]
    return []


def events() -> socket.socket:
    """Return a socket that becomes readable when a guest may have come, moved or gone. Raises OSError."""
    made = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        socket.NETLINK_ROUTE,
    )
    try:
        made.bind((0, _GROUPS))
    except OSError:
        made.close()
        raise
    return made


def drain(sock: socket.socket) -> None:
    """Forget what was told: whoever looks then sees all of it. Lost messages do not matter either."""
    for _ in range(1000):
        try:
            sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: messages were lost
            continue


def _seen(found: ServiceMap, ports: Iterable[str]) -> list[tuple[str, str, Network]]:
    networks = found.networks
    members = found.members or {}
    seen = []
    for port in ports:
        with suppress(OSError):  # the port goes away
            link = rtnetlink.link(port)
            if link is None:
                continue
            for mac, _ in rtnetlink.forwarding_entries(link.ifindex, MOST_AT_A_PORT):
                member = members.get(mac)
                network = networks[0] if len(networks) == 1 else Network()
                seen.append((mac, port, member.network if member is not None else network))
    return seen


def _guest_ports(bridge: str, uplinks: frozenset[str]) -> set[str]:
    with suppress(OSError):  # the bridge goes away
        ports = links.ports(bridge) - uplinks - {BridgeNames(bridge).veth_bridge}
        return {*(ports - kinds.uplinks(bridge, ports) - kinds.probes(ports))}
    return set()
