"""Hookless mode: bridges are brought up for their first guest port and taken down after the last one.

The kernel tells that a link changed; which ports a bridge has now is looked up. A bridge whose last
guest has gone keeps its services for a while (``tproxy_watch_grace``): guests restart and move.

Bridges that only hooks bring up are taken down as well, if no hook does it: hooks are missed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from tproxy.bridge import nftables
from tproxy.config.services import Config, WatchedBridge, services_for
from tproxy.config.watching import grace, watched
from tproxy.errors import TproxyError
from tproxy.kernel import links
from tproxy.kernel.loop import Loop, Timer
from tproxy.log import output
from tproxy.model import BridgeNames, Network, Service, Settings
from tproxy.operations import reconcile
from tproxy.process import run_directory

log = logging.getLogger(__name__)

# Seconds until a bridge that could not be brought up is tried again: later and later.
RETRY_FIRST = 2.0
RETRY_MOST = 60.0


class Attendant:
    """``uplinks`` tells which a hook named for a bridge; ``settings`` are for a daemon to be started."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        settings: Callable[[], Settings],
        uplinks: Callable[[str], frozenset[str]],
    ) -> None:
        self._loop = loop
        self._config = config
        self._uplinks = uplinks
        self._settings = settings
        self._due: dict[str, None] = {}  # in the order in which they were touched
        self._busy: set[str] = set()  # have guests; whoever takes such a bridge down means to
        # What bridges have of the configuration, which others may have changed.
        self._given: dict[str, tuple[WatchedBridge | None, dict[int, Service]]] = {}
        self._idle: dict[str, Timer] = {}
        self._retries: dict[str, tuple[float, Timer]] = {}

    def look_at_all(self) -> None:
        self.look([*links.bridges(), *run_directory.used()])

    def look_for_gone(self) -> None:
        """Of a bridge that is renamed, the kernel tells the new name."""
        with suppress(OSError):  # no descriptor is to be had now
            self.look(bridge for bridge in run_directory.used() if not links.is_bridge(bridge))

    def look(self, names: Iterable[str]) -> None:
        """Look at these links soon, as far as they are bridges that concern us."""
        idle = not self._due
        self._due |= dict.fromkeys(names)
        if idle and self._due:
            self._loop.call_later(0, self._next)

    def configure(self, new: Config) -> None:
        """Have what the new configuration says, where that is not what the old one said."""
        old, self._config = self._config, new
        for bridge in links.bridges():
            entry = watched(bridge, new.bridges)
            if entry is not None:
                self._try(bridge, partial(self._change, bridge, entry, old))
        self.look_at_all()

    def _next(self) -> None:
        """One in each of the loop's turns: to bring a bridge up takes a while."""
        bridge = next(iter(self._due))
        del self._due[bridge]
        if self._due:
            self._loop.call_later(0, self._next)
        # One that failed has its time: undoing it changes links too, which would bring it back at once.
        if bridge not in self._retries:
            self._try(bridge, partial(self._attend, bridge))

    def _try(self, bridge: str, job: Callable[[], None]) -> None:
        delay, timer = self._retries.pop(bridge, (RETRY_FIRST / 2, None))
        if timer is not None:
            timer.cancel()
        try:
            job()
        except (TproxyError, OSError) as error:  # OSError: a link went while it was looked at
            log.warning("bridge %s: %s", bridge, error)
            delay = min(delay * 2, RETRY_MOST)
            retry = partial(self._retry, bridge, job)
            self._retries[bridge] = delay, self._loop.call_later(delay, retry)

    def _retry(self, bridge: str, job: Callable[[], None]) -> None:
        self._try(bridge, job)
        self.look([bridge])  # at what it was touched for meanwhile

    def _attend(self, bridge: str) -> None:
        entry = watched(bridge, self._config.bridges)
        hooked = run_directory.last_use(bridge) is not None
        if not (entry or hooked):
            return
        exists = links.is_bridge(bridge)
        if exists and self._has_guests(bridge, entry):
            if timer := self._idle.pop(bridge, None):
                timer.cancel()
            if entry and bridge not in self._busy and nftables.read_map(bridge) is None:
                log.info("bridge %s has a guest", bridge)
                self._up(bridge, entry)
            self._busy.add(bridge)
            return
        self._busy.discard(bridge)
        if hooked and bridge not in self._idle:
            seconds = grace(entry, self._config, exists=exists)
            self._idle[bridge] = self._loop.call_later(seconds, partial(self._leave, bridge))

    def _leave(self, bridge: str) -> None:
        del self._idle[bridge]
        self._try(bridge, partial(self._collect, bridge))

    def _collect(self, bridge: str) -> None:
        entry = watched(bridge, self._config.bridges)
        uplinks = entry.uplinks if entry else frozenset()
        seconds = grace(entry, self._config, exists=links.is_bridge(bridge))
        if reconcile.collect(bridge, uplinks, seconds):
            log.info("bridge %s had no guest for %g s: taken down", bridge, seconds)
        else:
            self.look([bridge])  # a guest has come, or a hook was called for one that is to come

    def _has_guests(self, bridge: str, entry: WatchedBridge | None) -> bool:
        others = self._uplinks(bridge) | {BridgeNames(bridge).veth_bridge}
        others |= entry.uplinks if entry else frozenset()
        # The first will do: a bridge can have hundreds.
        return any(not links.leads_off_host(port) for port in links.ports(bridge) - others)

    def _change(self, bridge: str, entry: WatchedBridge, old: Config) -> None:
        """Of a bridge that is up: have what the configuration says now.

        If it says what it said, whoever changed the map since, or took the bridge down, means to.
        """
        found = nftables.read_map(bridge)
        if bridge not in self._given:
            before = watched(bridge, old.bridges)
            network = found.network if found is not None else (before or entry).network
            given, _ = services_for(old, network, last_known=reconcile.known_for(network, found).get)
            self._given[bridge] = before, given
        before, given = self._given[bridge]
        renewed = before not in (None, entry)
        # A hook may know the network better.
        network = entry.network if found is None or renewed else found.network
        # Where it is down, no map tells what the file said of a name for which nobody answers now.
        known = given if found is None and before == entry else reconcile.known_for(network, found)
        services = self._services(network, known)
        if (before, given) != (entry, services):
            self._busy.discard(bridge)
            if found is not None and renewed:
                reconcile.up(bridge, network, services, entry.uplinks, self._settings())
            elif found is not None:
                reconcile.refresh(bridge, network, services, self._settings())
        self._given[bridge] = entry, services

    def _up(self, bridge: str, entry: WatchedBridge) -> None:
        services = self._services(entry.network, {})
        if services:
            reconcile.up(bridge, entry.network, services, entry.uplinks, self._settings())
        self._given[bridge] = entry, services

    def _services(self, network: Network, known: Mapping[int, Service]) -> dict[int, Service]:
        services, warnings = services_for(self._config, network, last_known=known.get)
        for warning in warnings:
            output.warn(warning)
        return services
