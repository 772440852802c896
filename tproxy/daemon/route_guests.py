"""Finds the guests of routes: addresses of those that are known by MAC or port, and why one is not there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from tproxy.bridge import guest_places
from tproxy.daemon.catalog import Catalog
from tproxy.kernel.loop import Loop
from tproxy.log.limit import LineLimit
from tproxy.routes import NOWHERE

log = logging.getLogger(__name__)

# Seconds between two looks for guests whose address is not known, or may be another one.
LOOK = 2.0

# Seconds between two log lines of one route. Clients decide how often a guest is not there.
QUIET = 60.0


class RouteGuests:
    """``changed`` is called with a bridge on which an address is another one."""

    def __init__(
        self,
        loop: Loop,
        catalog: Catalog,
        changed: Callable[[str], None],
        named_uplinks: Callable[[str], Iterable[str]],
    ) -> None:
        self._named_uplinks = named_uplinks
        self._loop = loop
        self._catalog = catalog
        self._changed = changed
        self._looks = False
        self._warnings: dict[tuple[str, int], LineLimit] = {}

    def serve(self) -> None:
        """Look for the guests of routes as they are now."""
        searched = False
        for bridge in self._catalog.bridges:
            for route in self._catalog.searched(bridge):
                searched = True
                self._catalog.found(bridge, route, guest_places.address_of(bridge, route))
        if searched and not self._looks:
            self._looks = True
            self._loop.call_later(LOOK, self._look)
        known = {
            (bridge, each.number) for bridge in self._catalog.bridges for each in self._catalog.routes(bridge)
        }
        self._warnings = {key: each for key, each in self._warnings.items() if key in known}

    def absent(self, bridge: str, number: int) -> None:
        """Say why a guest is not there. A worker asks for that, and may have been taken over."""
        route = next((each for each in self._catalog.routes(bridge) if each.number == number), None)
        if route is None:
            return
        warnings = self._warnings.setdefault((bridge, number), LineLimit(1, QUIET))
        if warnings.allows(time.monotonic()):
            why = guest_places.whereabouts(bridge, route, self._named_uplinks(bridge))
            log.warning(
                "route=%s bridge=%s the guest is not there: %s%s", route.id, bridge, why, warnings.suffix()
            )

    def _look(self) -> None:
        self._looks = False
        for bridge in self._catalog.bridges:
            changed = False
            for route in self._catalog.searched(bridge):
                self._looks = True
                address = guest_places.address_of(bridge, route)
                if address != NOWHERE:  # one that is silent is where it was
                    changed |= self._catalog.found(bridge, route, address)
            if changed:
                self._changed(bridge)
        if self._looks:
            self._loop.call_later(LOOK, self._look)
