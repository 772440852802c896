"""The catalog: the services of all bridges, as their maps were when the daemon last read them."""

from __future__ import annotations

from collections.abc import Sequence

from tproxy.bridge import reached
from tproxy.model import Network, Service, ServiceKey, ServiceMap


class Catalog:
    """Service maps by bridge. ``changes`` counts how often one of them has changed."""

    def __init__(self) -> None:
        self._maps: dict[str, ServiceMap] = {}
        self.changes = 0

    @property
    def bridges(self) -> set[str]:
        return set(self._maps)

    def services(self, bridge: str) -> Sequence[Service]:
        """The services of a bridge, sorted by key."""
        found = self._maps.get(bridge)
        return sorted(found.services.values()) if found is not None else ()

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
        return [*changes, *(f"port {key.in_words} is gone" for key in before if key not in wanted.services)]

    def remove(self, bridge: str) -> None:
        """Forget a bridge that has no map any more; does nothing if it is unknown."""
        if self._maps.pop(bridge, None) is not None:
            self.changes += 1
