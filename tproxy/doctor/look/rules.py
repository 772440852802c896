"""Reads what concerns nftables for one bridge: its map, its wall, and who else claims the service."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.bridge import nftables, own_addresses, port_state, wall
from tproxy.bridge.guards import ObservedGuard
from tproxy.bridge.members import STAND_IN
from tproxy.bridge.wall import Wall
from tproxy.errors import KernelError, NftError
from tproxy.kernel import links, rtnetlink, tcp
from tproxy.model import ServiceMap
from tproxy.names import TABLE, BridgeNames

_MOST_MEMBERS = 256  # that are looked for: a question to the kernel each


class Rules(NamedTuple):
    """What nftables has for a bridge."""

    map: ServiceMap | None = None
    map_problem: str = ""  # why the map cannot be used
    map_warnings: tuple[str, ...] = ()  # what of the map is ignored
    wall: Wall | None = None
    wall_problem: str = ""
    gone: frozenset[str] = frozenset()  # members of the map that are not to be seen at any port
    crowded: Mapping[str, int] = MappingProxyType({})  # sources that ports brought in lately, if asked for
    own: tuple[str, ...] = ()  # service addresses that the host has or reaches there itself, in words
    dropping: tuple[str, ...] = ()  # other programs' chains of the bridge family with policy drop


def look(
    bridge: str, said: list[str], *, namespace: bool, uplinks: bool, crowds: bool, dropping: tuple[str, ...]
) -> Rules:
    """Look at the rules for a bridge. ``said``: see ``warnings``.

    ``namespace``: it has its namespace. ``uplinks``: one of its ports is an uplink.

    ``crowds``: count the sources of each port too, for which the set of all sources has to be listed.
    """
    found, problem = None, ""
    try:
        found = nftables.read_map(bridge)
    except NftError as error:
        problem = str(error)
    built, wall_problem = None, ""
    if namespace and found is not None:
        try:
            built = wall.look(bridge)
        except (NftError, KernelError) as error:
            wall_problem = str(error)
    about = f"map {BridgeNames(bridge).map}: "
    ignored = tuple(each for each in said if each.startswith(about))
    ports = links.ports(bridge)
    return Rules(
        found,
        problem,
        ignored,
        built,
        wall_problem,
        _gone(bridge, found, ports) if found is not None else frozenset(),
        _crowded(ports) if crowds else {},
        tuple(own_addresses.conflicts(bridge, found.addresses, uplinks=uplinks)) if found is not None else (),
        dropping,
    )


def _gone(bridge: str, found: ServiceMap, ports: frozenset[str]) -> frozenset[str]:
    """Members of several networks that neither the bridge has seen lately, nor a port is named after.

    The address of a virtual machine's tap is mostly that of its card, but for the first byte.
    """
    members = found.members or {}
    if len(found.networks) < 2 or links.filters_vlans(bridge):  # there, entries are in the guests' VLANs
        return frozenset()
    index = next((each for port in ports if (each := _index(port))), 0)
    taps = {port_state.read(f"{port}/address")[2:] for port in ports}
    return frozenset(
        mac
        for mac in sorted(members)[:_MOST_MEMBERS]
        if not mac.startswith(STAND_IN) and mac[2:] not in taps and not rtnetlink.port_of(index, mac)
    )


def _crowded(ports: frozenset[str]) -> dict[str, int]:
    try:
        counts = nftables.known_sources()
    except NftError:
        return {}
    return {port: count for port, count in counts.items() if port in ports}


def _index(port: str) -> int:
    try:
        return socket.if_nametoindex(port)
    except OSError:
        return 0  # it is gone


def guards() -> tuple[dict[str, ObservedGuard] | None, NftError | None]:
    """The guards of all bridges; None and the reason when they cannot be read."""
    try:
        return nftables.read_guards(), None
    except NftError as error:
        return None, error


def served_bridges() -> list[str]:
    """The bridges that have a map; none when that cannot be read."""
    try:
        return [each.bridge for each in nftables.read_maps()]
    except NftError:
        return []


def dropping_chains() -> tuple[str, ...]:
    """The chains of other programs that drop what bridges forward, unless a rule of theirs accepts it."""
    try:
        chains = nftables.bridge_chains()
    except NftError:
        return ()
    return tuple(
        f"table bridge {each['table']}, chain {each['name']}"
        for each in chains
        if each["table"] != TABLE
        and each.get("policy") == "drop"
        and each.get("hook") in ("prerouting", "forward")
    )


def host_has_service_address() -> bool:
    """Whether this host has the service address itself, outside of the bridges' namespaces."""
    return tcp.on_this_host(SERVICE_ADDRESS)


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Collect what is logged meanwhile: reading a map logs what of it is ignored, once in a process."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector, ours = Collector(logging.WARNING), logging.getLogger("tproxy")
    before, level = ours.handlers[:], ours.level
    ours.handlers[:] = [*(before if level == logging.DEBUG else ()), collector]
    ours.setLevel(min(level, logging.WARNING))
    try:
        yield lines
    finally:
        ours.handlers[:] = before
        ours.setLevel(level)
