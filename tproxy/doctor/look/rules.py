"""Reads what concerns nftables for one bridge: its map, its wall, and who else claims the service."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tproxy.bridge import nftables, wall
from tproxy.bridge.guards import ObservedGuard
from tproxy.bridge.wall import Wall
from tproxy.errors import KernelError, NftError
from tproxy.kernel import tcp
from tproxy.model import SERVICE_ADDRESS, TABLE, BridgeNames, ServiceMap


class Rules(NamedTuple):
    """What nftables has for a bridge."""

    map: ServiceMap | None = None
    map_problem: str = ""  # why the map cannot be used
    map_warnings: tuple[str, ...] = ()  # what of the map is ignored
    wall: Wall | None = None
    wall_problem: str = ""
    dropping: tuple[str, ...] = ()  # other programs' chains of the bridge family with policy drop


def look(bridge: str, said: list[str], *, namespace: bool, dropping: tuple[str, ...]) -> Rules:
    """Look at the rules for a bridge. ``namespace``: it has its namespace. ``said``: see ``warnings``."""
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
    return Rules(found, problem, ignored, built, wall_problem, dropping)


def guards() -> tuple[dict[str, ObservedGuard] | None, NftError | None]:
    """The guards of all bridges; None and the reason when they cannot be read."""
    try:
        return nftables.read_guards(), None
    except NftError as error:
        return None, error


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
