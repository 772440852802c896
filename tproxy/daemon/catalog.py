"""The catalog: the services of all bridges, as their maps were when the daemon last read them."""

from __future__ import annotations

from collections.abc import Sequence

from tproxy.model import Network, Service, ServiceMap


class Catalog:
    """Service maps by bridge. ``changes`` counts how often one of them has changed."""

    def __init__(self) -> None:
        self._maps: dict[str, ServiceMap] = {}
        self.changes = 0

    @property
    def bridges(self) -> set[str]:
        return set(self._maps)

    def services(self, bridge: str) -> Sequence[Service]:
        """The services of a bridge, sorted by port."""
        found = self._maps.get(bridge)
        return sorted(found.services.values()) if found is not None else ()

    def networks(self, bridge: str) -> tuple[Network, ...]:
        """The networks of a bridge, the first one first."""
        return self._maps[bridge].networks

    def ports(self, bridge: str) -> tuple[int, ...]:
        return tuple(each.port for each in self.services(bridge))

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
        for port, service in wanted.services.items():
            if port not in before:
                changes.append(f"port {port} leads to {service.leads_to}")
            elif before[port].candidates != service.candidates:
                changes.append(
                    f"port {port} leads to {service.leads_to}, no longer to {before[port].leads_to}"
                )
        return [*changes, *(f"port {port} is gone" for port in before if port not in wanted.services)]

    def remove(self, bridge: str) -> None:
        """Forget a bridge that has no map any more; does nothing if it is unknown."""
        if self._maps.pop(bridge, None) is not None:
            self.changes += 1
