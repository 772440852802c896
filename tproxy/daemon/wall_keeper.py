"""Keeps the second wall (``bridge.wall``) in the namespaces of all bridges.

A wall is built before the bridge's relay is told to listen, so no port is open without it. Whether it still
is as it should be is looked up after each hook and reload, when these have their answer: a hook that finds
everything in order does not wait for it. So a wall that somebody has deleted is back half a second after the
next hook of its bridge, or the next reload.

A wall that cannot be built keeps no bridge from being served. Guests need the services, and the wall is the
second one: the guards of the bridge still decide what reaches the namespace, and nothing listens there but
the relay. The daemon says so in one line for each bridge, and tries again after each hook and reload.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import NamedTuple

from tproxy.bridge import wall
from tproxy.errors import TproxyError
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.kernel.netns import NamespaceId
from tproxy.model import ServiceKey
from tproxy.names import BridgeNames

log = logging.getLogger(__name__)

# Seconds until walls are looked at. Many hooks in that time cause one look at each wall.
SETTLE = 0.5


class Built(NamedTuple):
    """What was last tried for a bridge, and why that failed; "" if it did not."""

    namespace: NamespaceId | None
    keys: frozenset[ServiceKey]
    targets: frozenset[wall.Target]
    problem: str


class WallKeeper:
    """The walls of all bridges."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._built: dict[str, Built] = {}
        self._due: set[str] = set()
        self._unwanted: dict[str, NamespaceId | None] = {}
        self._refused: dict[tuple[str, ServiceKey], float] = {}  # soon, and for how many seconds

    def build(
        self,
        bridge: str,
        keys: Collection[ServiceKey],
        targets: Collection[wall.Target] = (),
        *,
        again: bool = False,
    ) -> None:
        """Have a wall for these services and targets of routes when this returns, if that can be had.

        Does nothing where that was done before in the same namespace, unless it is to be done ``again``.
        """
        namespace = netns.identify(BridgeNames(bridge).namespace)
        before = self._built.get(bridge)
        if (
            before is not None
            and not again
            and before[:3] == (namespace, frozenset(keys), frozenset(targets))
        ):
            return
        self._unwanted.pop(bridge, None)
        problem = ""
        try:
            wall.ensure(bridge, keys, targets)
        except (TproxyError, OSError) as error:
            problem = str(error)
        told = before.problem if before is not None else ""
        if problem and problem != told:
            log.warning("bridge %s is served without the wall in its namespace: %s", bridge, problem)
        elif told and not problem:
            log.info("bridge %s has the wall in its namespace now", bridge)
        self._built[bridge] = Built(namespace, frozenset(keys), frozenset(targets), problem)

    def refuse(self, bridge: str, key: ServiceKey, seconds: float) -> None:
        """Have guests of a UDP service refused by ICMP for so many seconds; 0: no more.

        A worker asks for that, and may have been taken over: so it is done once in SETTLE at most.
        """
        if not self._refused:
            self._loop.call_later(SETTLE, self._refuse)
        self._refused[bridge, key] = seconds

    def _refuse(self) -> None:
        refused, self._refused = self._refused, {}
        for (bridge, key), seconds in refused.items():
            if bridge in self._built:
                try:
                    wall.refuse(bridge, key, seconds)
                except (TproxyError, OSError) as error:
                    log.warning("bridge %s: guests at port %s get no ICMP: %s", bridge, key.in_words, error)

    def look(self, bridges: Iterable[str]) -> None:
        """Look soon whether the walls of these bridges are as they were built."""
        before = bool(self._due)
        self._due.update(self._built.keys() & set(bridges))
        if self._due and not before:
            self._loop.call_later(SETTLE, self._look)

    def forget(self, bridge: str) -> None:
        """Remove the wall soon, because the bridge is not served any more; not from a namespace that is ours.

        That goes as a whole, mostly before this happens, and the wall with it.
        """
        built = self._built.pop(bridge, None)
        if built is not None:
            if not self._unwanted:
                self._loop.call_later(SETTLE, self.close)
            self._unwanted[bridge] = built.namespace

    def close(self) -> None:
        """Remove the walls that were to be removed soon."""
        unwanted, self._unwanted = self._unwanted, {}
        for bridge, namespace in unwanted.items():
            if namespace is not None and namespace == netns.identify(BridgeNames(bridge).namespace):
                try:
                    wall.remove(bridge)
                except (TproxyError, OSError) as error:
                    log.warning("bridge %s: the wall in its namespace stays: %s", bridge, error)

    def _look(self) -> None:
        due, self._due = self._due, set()
        for bridge in due:
            built = self._built.get(bridge)
            if built is not None:
                self.build(bridge, built.keys, built.targets, again=True)
