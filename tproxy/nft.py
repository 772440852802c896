"""nftables through libnftables: text transactions in, JSON listings out; no forked ``nft``.

Text goes in because the JSON of libnftables 1.0 cannot express a map to a concatenation. That is
safe because every word of it comes from ``ruleset``, which takes checked names and encoded values.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import cache
from typing import Any

from tproxy import guards, ruleset
from tproxy.errors import NftError
from tproxy.guards import ObservedGuard
from tproxy.model import TABLE, BridgeNames, ServiceMap

log = logging.getLogger(__name__)

_ABSENT = "No such file or directory"
_UNSUPPORTED = "Operation not supported"


class Unsupported(NftError):
    """The kernel knows no such family, hook or expression."""


@cache
def _library() -> Any:
    try:
        import nftables

        library = nftables.Nftables()
    except (ImportError, OSError) as error:
        raise NftError(f"libnftables is not installed: {error}") from None
    library.set_json_output(True)
    library.set_handle_output(False)
    return library


def require() -> None:
    """Raise NftError when nftables cannot be used at all, before anything is changed."""
    _list("list tables ip")


def transaction(commands: Iterable[str]) -> None:
    """Carry out all commands at once, or none of them and raise NftError."""
    text = "\n".join(commands)
    if text:
        _command(text)


def read_maps(bridges: Iterable[str] | None = None) -> list[ServiceMap]:
    """The service maps as they are, all or of the named bridges; raises NftError if that is unknown.

    A map that is not there, or is of another type, is left out.
    """
    if bridges is not None:
        return [each for bridge in bridges if (each := read_map(bridge)) is not None]
    if not _table_exists("ip"):
        return []
    listed = _list(f"list table ip {TABLE}")
    return [each for item in listed if "map" in item and (each := _parse_map(item["map"]))]


def read_map(bridge: str) -> ServiceMap | None:
    for item in _list_or_nothing(f"list map ip {TABLE} {BridgeNames(bridge).map}"):
        if "map" in item:
            return _parse_map(item["map"])
    return None


def read_guards() -> dict[str, ObservedGuard]:
    """The guards of all bridges, and under "" what they share."""
    return guards.parse(_list(f"list table bridge {TABLE}") if _table_exists("bridge") else [])


def read_guard(bridge: str) -> ObservedGuard:
    """The guards of one bridge, without listing the other bridges' chains."""
    chains = (*guards.SHARED_CHAINS, BridgeNames(bridge).arp_guard)
    objects = [f"chain bridge {TABLE} {each}" for each in chains]
    objects += [f"set bridge {TABLE} {each}" for each in guards.SETS]
    found = guards.parse(item for each in objects for item in _list_or_nothing(f"list {each}"))
    return found.get(bridge) or found[""]._replace(bridge=bridge)


def empty_tables() -> list[str]:
    """Commands that delete those of our tables that hold nothing of a bridge."""
    return [
        f"delete table {family} {TABLE}"
        for family in ("ip", "bridge")
        if _table_exists(family) and guards.only_shared(_list(f"list table {family} {TABLE}"))
    ]


def drops_forwarded() -> bool:
    """Whether an ip or inet chain at the forward hook has policy drop."""
    return any(
        chain.get("hook") == "forward" and chain.get("policy") == "drop"
        for family in ("ip", "inet")
        for item in _list(f"list chains {family}")
        if (chain := item.get("chain"))
    )


def _parse_map(listed: dict[str, Any]) -> ServiceMap | None:
    try:
        parsed = ruleset.parse_map(listed)
    except (KeyError, ValueError, TypeError) as error:
        raise NftError(f"map {listed.get('name')} cannot be understood: {error}") from None
    if parsed is None and listed["name"].startswith(ruleset.MAP_PREFIX):
        log.warning("map %s is not of type inet_service : ipv4_addr . inet_service", listed["name"])
    return parsed


def _table_exists(family: str) -> bool:
    return any(item.get("table", {}).get("name") == TABLE for item in _list(f"list tables {family}"))


def _list(command: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(_command(command))["nftables"]
    return listed


def _list_or_nothing(command: str) -> list[dict[str, Any]]:
    try:
        return _list(command)
    except NftError as error:
        if _ABSENT in str(error):
            return []
        raise


def _command(text: str) -> str:
    status, output, error = _library().cmd(text)
    if status == 0:
        result: str = output
        return result
    # The first line says it; the next ones quote the command and mark the place.
    reason = (error.strip().splitlines() or ["unknown error"])[0].removeprefix("Error: ")
    kind = Unsupported if _UNSUPPORTED in error else NftError
    raise kind(f"nftables: {reason}")
