"""Questions to the ledger: what was denied, and what a network or guest fetched. Pure over entries."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tproxy.egress.ledger.chain import LedgerError
from tproxy.errors import quoted

Entry = dict[str, Any]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text: str) -> int:
    """Return the seconds of text such as 90s, 15m, 1h, 7d or 2w. Raises LedgerError."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise LedgerError(f"{quoted(text)} is no time such as 15m, 1h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def since(entries: Iterable[Entry], age: int | None, now: float | None = None) -> Iterator[Entry]:
    """Yield the entries that are at most ``age`` seconds old; all of them for None."""
    if age is None:
        yield from entries
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((now or time.time()) - age))
    yield from (entry for entry in entries if str(entry.get("time", "")) >= stamp)


def of(entries: Iterable[Entry], network: str = "", guest: str = "") -> Iterator[Entry]:
    """Yield the entries of a network, or of a guest by its address, MAC or bridge port."""
    for entry in entries:
        if network and network not in (entry.get("network"), entry.get("network_id")):
            continue
        if guest and guest not in (entry.get("guest"), entry.get("mac"), entry.get("port")):
            continue
        yield entry


@dataclass
class Group:
    """One thing that was blocked for one network."""

    network: str
    verdict: str
    kind: str
    name: str
    reason: str
    count: int = 0
    last: str = ""
    guests: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)


def blocked(entries: Iterable[Entry]) -> list[Group]:
    """Return what was denied or missing, grouped, the most frequent first."""
    groups: dict[tuple[str, ...], Group] = {}
    for entry in entries:
        if entry.get("verdict") not in ("denied", "missing"):
            continue
        names = ("network", "verdict", "kind", "name")
        key = tuple(str(entry.get(name, "")) for name in names)
        group = groups.setdefault(key, Group(key[0], key[1], key[2], key[3], ""))
        group.count += 1
        group.last = max(group.last, str(entry.get("time", "")))
        group.reason = str(entry.get("reason", "")) or group.reason
        group.guests.add(str(entry.get("guest") or entry.get("port") or "?"))
        if entry.get("version"):
            group.versions.add(str(entry["version"]))
    return sorted(groups.values(), key=lambda group: (-group.count, group.network, group.kind, group.name))


def fetched(entries: Iterable[Entry]) -> list[Entry]:
    """Return one entry for each object that was served, the last of each, by package URL and hash."""
    found = {
        (entry["purl"], entry.get("sha256", "")): entry
        for entry in entries
        if entry.get("verdict") == "allowed" and entry.get("purl")
    }
    return [found[key] for key in sorted(found)]
