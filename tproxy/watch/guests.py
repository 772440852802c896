"""Bridges that follow their guests: brought up for the first guest port, taken down after the last one.

The kernel announces only that a link changed, so the ports that a bridge has now are looked up. A bridge
whose last guest has gone keeps its services for some time (``tproxy_watch_grace``), because guests restart
and move.

A bridge that only hooks bring up is taken down as well, when no hook does that: some hook calls never happen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from tproxy.bridge import comments, nftables
from tproxy.bridge.members import NO_NICS
from tproxy.config.services import Config, WatchedBridge
from tproxy.config.union import Offer, Services, Union
from tproxy.config.watching import grace, watched
from tproxy.errors import TproxyError
from tproxy.kernel import kinds, links
from tproxy.kernel.loop import Loop, Timer
from tproxy.log import output
from tproxy.model import Network, ServiceMap, Settings
from tproxy.names import BridgeNames
from tproxy.operations import reconcile, removal
from tproxy.process import run_directory
from tproxy.watch import reload
from tproxy.watch.reload import Action, Said

log = logging.getLogger(__name__)

# Seconds until a bridge that could not be brought up is tried again. The time doubles with each failure.
RETRY_FIRST = 2.0
RETRY_MOST = 60.0


class GuestFollower:
    """Brings bridges up and down with their guests.

    ``settings`` are for a daemon that has to be started. ``uplinks`` returns the uplinks that a hook named
    for a bridge.
    """

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
        self._due: dict[str, None] = {}  # bridges to look at, in the order in which they changed
        # Bridges that had guests at the last look. Somebody who takes such a bridge down does that on
        # purpose.
        self._busy: set[str] = set()
        self._given: dict[str, Said] = {}  # what each bridge got; others may have changed its map since
        self._idle: dict[str, Timer] = {}  # bridges without guests, until their grace time is over
        self._retries: dict[str, tuple[float, Timer]] = {}  # with the delay in seconds

    def look_at_all(self) -> None:
        """Look at all bridges, and at those that hooks brought up and that are gone."""
        self.look([*links.bridges(), *run_directory.used()])

    def look_for_gone(self) -> None:
        """Look at bridges that are gone: when a bridge is renamed, the kernel announces only its new name."""
        with suppress(OSError):  # no descriptor is free now; the next call looks again
            self.look(bridge for bridge in run_directory.used() if not links.is_bridge(bridge))

    def look(self, names: Iterable[str]) -> None:
        """Look soon at those of these links that are bridges which follow their guests."""
        idle = not self._due
        self._due |= dict.fromkeys(names)
        if idle and self._due:
            self._loop.call_later(0, self._look_at_next)

    def configure(self, new: Config) -> None:
        """Use a new configuration: each bridge gets what differs from the old one."""
        old, self._config = self._config, new
        for bridge in links.bridges():
            entry = watched(bridge, new.bridges)
            if entry is not None:
                self._try(bridge, partial(self._change, bridge, entry, old))
        self.look_at_all()

    def moved(self, bridge: str, moved: Callable[[Services], Services]) -> None:
        """Note that services of a bridge moved, because the address of a host name changed."""
        given = self._given.get(bridge)
        if given is not None:
            self._given[bridge] = given._replace(services=moved(given.services))

    def _look_at_next(self) -> None:
        """Look at one bridge in each turn of the loop, because bringing one up takes a while."""
        bridge = next(iter(self._due))
        del self._due[bridge]
        if self._due:
            self._loop.call_later(0, self._look_at_next)
        # A bridge that failed waits for its retry. Undoing the failed attempt changes links too, and
        # without this check the bridge would be tried again at once, without end.
        if bridge not in self._retries:
            self._try(bridge, partial(self._follow, bridge))

    def _try(self, bridge: str, job: Callable[[], None]) -> None:
        delay, timer = self._retries.pop(bridge, (RETRY_FIRST / 2, None))
        if timer is not None:
            timer.cancel()
        try:
            job()
        except (TproxyError, OSError) as error:  # OSError: a link disappeared while it was looked at
            log.warning("bridge %s: %s", bridge, error)
            delay = min(delay * 2, RETRY_MOST)
            retry = partial(self._retry, bridge, job)
            self._retries[bridge] = delay, self._loop.call_later(delay, retry)

    def _retry(self, bridge: str, job: Callable[[], None]) -> None:
        self._try(bridge, job)
        self.look([bridge])  # it may have changed meanwhile

    def _follow(self, bridge: str) -> None:
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
            self._idle[bridge] = self._loop.call_later(seconds, partial(self._end_grace, bridge))

    def _end_grace(self, bridge: str) -> None:
        del self._idle[bridge]
        self._try(bridge, partial(self._take_down, bridge))

    def _take_down(self, bridge: str) -> None:
        entry = watched(bridge, self._config.bridges)
        uplinks = links.real_names(entry.uplinks) if entry else frozenset()
        seconds = grace(entry, self._config, exists=links.is_bridge(bridge))
        if removal.collect(bridge, uplinks, seconds):
            log.info("bridge %s had no guest for %g s: taken down", bridge, seconds)
        else:
            self.look([bridge])  # a guest has come, or a hook was called for a guest that has not come yet

    def _has_guests(self, bridge: str, entry: WatchedBridge | None) -> bool:
        others = self._uplinks(bridge) | {BridgeNames(bridge).veth_bridge}
        others |= links.real_names(entry.uplinks) if entry else frozenset()
        ports = links.ports(bridge) - others
        return bool(ports - kinds.uplinks(bridge, ports) - kinds.probes(ports))

    def _change(self, bridge: str, entry: WatchedBridge, old: Config) -> None:
        """Give a bridge what the configuration says now, where that differs from what it said before."""
        found = nftables.read_map(bridge)
        before = self._given.get(bridge)
        if before is None or (found is not None and before.networks != found.networks):
            before = _said_by(old, bridge, entry, found)
        orders = reload.orders_of(before.entry, entry, found)
        # While nobody answers for a host name, its port keeps the endpoint that it had. The map of a bridge
        # that is down does not tell that endpoint; the services that the bridge got before do.
        known = found
        if found is None and before.entry == entry:
            known = ServiceMap(bridge, before.services, next(iter(orders)))
        offer = Offer(self._config)
        offer.look_up(orders)
        union = offer.union(orders, known)
        services = union.services
        action = reload.decide(before, entry, services, found)
        if (
            action is Action.LEAVE
            and found is not None
            and (old.ipv6, found.ipv6) == (found.ipv6, not union.ipv6)
        ):
            action = Action.REFRESH
        if action is Action.LEAVE and found is not None and old.routes != self._config.routes:
            action = Action.REFRESH  # it does nothing where the routes of this bridge are the same
        if action is not Action.LEAVE:
            self._busy.discard(bridge)
        if action is Action.BRING_UP:
            self._bring_up(bridge, entry, offer, anew=True)
        else:
            self._tell(union)
        if action is Action.REFRESH and found is not None:
            reconcile.warn_of_unnamed(None, found._replace(services=services), union)
            reconcile.refresh(found, union, self._settings())
        self._given[bridge] = Said(entry, services, tuple(orders))

    def _up(self, bridge: str, entry: WatchedBridge) -> None:
        offer, orders = Offer(self._config), _orders_of(entry)
        offer.look_up(orders)
        union = offer.union(orders)
        if union.services or union.routes:
            self._bring_up(bridge, entry, offer)
        else:
            self._tell(union)
        self._given[bridge] = Said(entry, union.services, tuple(orders))

    def _bring_up(self, bridge: str, entry: WatchedBridge, offer: Offer, *, anew: bool = False) -> None:
        uplinks = links.real_names(entry.uplinks)
        reconcile.up(bridge, entry.network, NO_NICS, offer, uplinks, self._settings(), anew=anew)

    def _tell(self, union: Union) -> None:
        for problem in union.problems:
            output.warn(problem.at(self._config.path))


def _said_by(old: Config, bridge: str, entry: WatchedBridge, found: ServiceMap | None) -> Said:
    """Return what the old configuration gave to a bridge that this process has not brought up."""
    before = watched(bridge, old.bridges)
    orders = found.orders if found is not None else _orders_of(before or entry)
    offer = Offer(old)
    offer.look_up(orders)
    return Said(before, offer.union(orders, found).services, tuple(orders))


def _orders_of(entry: WatchedBridge) -> dict[Network, int]:
    return {comments.stored(entry.network): 1}
