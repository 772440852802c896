"""The catalog: the services of all bridges, as their maps were when the daemon last read them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tproxy.bridge import reached
from tproxy.model import Network, Service, ServiceKey, ServiceMap
from tproxy.routes import NOWHERE, Route


class Catalog:
    """Service maps by bridge. ``changes`` counts how often one of them has changed."""

    def __init__(self) -> None:
        self._maps: dict[str, ServiceMap] = {}
        self.changes = 0
        self._found: dict[tuple[str, int], str] = {}  # addresses of guests of routes, by bridge and number

    @property
    def bridges(self) -> set[str]:
        return set(self._maps)

    def services(self, bridge: str) -> Sequence[Service]:
        """The services of a bridge, sorted by key."""
        found = self._maps.get(bridge)
        return sorted(found.services.values()) if found is not None else ()

    def served(self, bridge: str) -> Sequence[Service]:
        """What workers serve: the services of a bridge, and its routes."""
        found = self._maps.get(bridge)
        if found is None or not found.routes:
            return self.services(bridge)
        return [*self.services(bridge), *(each.service for each in self.routes(bridge))]

    def routes(self, bridge: str) -> list[Route]:
        """The routes of a bridge, with the addresses of guests that were found."""
        found = self._maps.get(bridge)
        routes = found.routes.values() if found is not None else ()
        return [each.at(self._found.get((bridge, each.number), each.endpoint.address)) for each in routes]

    def searched(self, bridge: str) -> list[Route]:
        """The routes of a bridge whose guests are known by MAC or port only."""
        routes = self._maps[bridge].routes.values() if bridge in self._maps else ()
        return [each for each in routes if each.endpoint.address == NOWHERE]

    def found(self, bridge: str, route: Route, address: str) -> bool:
        """Note the address of a route's guest; return whether it is another one."""
        before = self._found.get((bridge, route.number))
        self._found[bridge, route.number] = address
        return address != before

    def targets(self, bridge: str) -> frozenset[tuple[str, int]]:
        """Addresses and ports of guests to which the bridge's routes lead, but for expired ones."""
        now = time.time()
        known = (each.endpoint for each in self.routes(bridge) if not each.has_expired(now))
        return frozenset((each.address, each.port) for each in known if each.address != NOWHERE)

    def orders(self, bridge: str) -> dict[Network, int]:
        """The networks of a bridge, as ``ServiceMap.orders``."""
        return self._maps[bridge].orders

    def listeners(self, bridge: str) -> tuple[ServiceKey, ...]:
        """What the bridge's relay listens on: all that guests reach (``bridge.reached``)."""
        found = self._maps.get(bridge)
        return reached.keys(found) if found is not None else ()

    def maps(self) -> list[ServiceMap]:
        """The maps of all bridges as they were read, sorted by bridge."""
        return [self._maps[bridge] for bridge in sorted(self._maps)]

    def apply(self, wanted: ServiceMap) -> list[str]:
        """Take over a bridge's map as it is now; return a line for the log for each change."""
        found = self._maps.get(wanted.bridge)
        before = found.services if found is not None else {}
        self._maps[wanted.bridge] = wanted
        self.changes += wanted != found
        changes = []
        for key, service in wanted.services.items():
            words = f"port {key.in_words} leads to {service.leads_to}"
            if key not in before:
                changes.append(words)
            elif before[key].candidates != service.candidates:
                changes.append(f"{words}, no longer to {before[key].leads_to}")
        changes += [f"port {key.in_words} is gone" for key in before if key not in wanted.services]
        routes = found.routes if found is not None else {}
        for number, route in wanted.routes.items():
            if number not in routes or routes[number].target != route.target:
                changes.append(f"route {route.id} leads to {route.target}")
        return [
            *changes,
            *(f"route {routes[each].id} is gone" for each in routes if each not in wanted.routes),
        ]

    def remove(self, bridge: str) -> None:
        """Forget a bridge that has no map any more; does nothing if it is unknown."""
        if self._maps.pop(bridge, None) is not None:
            self.changes += 1
