"""The watcher's decision about each bridge after the configuration file was read again. Pure.

The file decides only where it says something new. Where it says what it said before, an operator who
changed the bridge's map since, or took the bridge down, did that on purpose, and it stays.

| entry for the bridge | its services | the bridge is down | the bridge is up |
| -------------------- | ------------ | ------------------ | ---------------- |
| SAME                 | same         | LEAVE              | LEAVE            |
| SAME                 | changed      | LET_GUESTS_START   | REFRESH          |
| NEW                  | same         | LET_GUESTS_START   | REFRESH          |
| NEW                  | changed      | LET_GUESTS_START   | REFRESH          |
| CHANGED              | same         | LET_GUESTS_START   | BRING_UP         |
| CHANGED              | changed      | LET_GUESTS_START   | BRING_UP         |
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

from tproxy.bridge.comments import stored
from tproxy.config.services import WatchedBridge
from tproxy.model import Network, Service, ServiceKey, ServiceMap


class Said(NamedTuple):
    """What one version of the configuration says of a bridge; ``entry`` is None where none names it."""

    entry: WatchedBridge | None
    services: Mapping[ServiceKey, Service]
    networks: tuple[Network, ...] = ()  # those for which these are the services


class Entry(Enum):
    """How the entry of tproxy_bridges for a bridge differs from the one before."""

    SAME = auto()
    NEW = auto()  # there was none
    CHANGED = auto()


class Action(Enum):
    """What to do with a bridge."""

    LEAVE = auto()
    LET_GUESTS_START = auto()  # it may be brought up for a guest that it has already
    REFRESH = auto()  # give it the new services, and let it keep its uplinks
    BRING_UP = auto()  # as for its first guest: with the network, services and uplinks of the entry


_E, _A = Entry, Action

# By entry, whether the services changed, and whether the bridge is up.
TABLE: dict[tuple[Entry, bool, bool], Action] = {
    (_E.SAME, False, False): _A.LEAVE,
    (_E.SAME, False, True): _A.LEAVE,
    (_E.SAME, True, False): _A.LET_GUESTS_START,
    (_E.SAME, True, True): _A.REFRESH,
    (_E.NEW, False, False): _A.LET_GUESTS_START,
    (_E.NEW, False, True): _A.REFRESH,
    (_E.NEW, True, False): _A.LET_GUESTS_START,
    (_E.NEW, True, True): _A.REFRESH,
    (_E.CHANGED, False, False): _A.LET_GUESTS_START,
    (_E.CHANGED, False, True): _A.BRING_UP,
    (_E.CHANGED, True, False): _A.LET_GUESTS_START,
    (_E.CHANGED, True, True): _A.BRING_UP,
}


def compare(before: WatchedBridge | None, now: WatchedBridge) -> Entry:
    """Return how the entry for a bridge differs from the one before."""
    if before is None:
        return Entry.NEW
    return Entry.SAME if before == now else Entry.CHANGED


def decide(
    before: Said, entry: WatchedBridge, services: Mapping[ServiceKey, Service], found: ServiceMap | None
) -> Action:
    """Return what to do with a bridge that ``entry`` names now.

    ``services`` are what the configuration gives it now. ``found`` is its map, None when it is down.
    """
    changed = before.services != services
    return TABLE[compare(before.entry, entry), changed, found is not None]


def orders_of(
    before: WatchedBridge | None, now: WatchedBridge, found: ServiceMap | None
) -> dict[Network, int]:
    """Return the networks whose services a bridge should have, as ``ServiceMap.orders``.

    A bridge that is up keeps its networks until the entry changes, because hooks may know them better.
    """
    if found is None or compare(before, now) is Entry.CHANGED:
        return {stored(now.network): 1}
    return found.orders
