"""What the daemon knows of services while it runs: where each leads, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tproxy.model import Network, Service, ServiceMap


class Entry:
    """One service port of one bridge. Counts go on across reloads while the port exists."""

    __slots__ = (
        "bridge",
        "last_error",
        "last_error_at",
        "open",
        "service",
        "to_endpoint",
        "to_guest",
        "total",
    )

    def __init__(self, bridge: str, service: Service) -> None:
        self.bridge = bridge
        self.service = service
        self.open = 0
        self.total = 0
        self.to_endpoint = 0  # bytes of connections that have ended
        self.to_guest = 0
        self.last_error = ""
        self.last_error_at = 0.0  # seconds since the epoch

    def failed(self, why: str) -> None:
        self.last_error = why
        self.last_error_at = time.time()


class Catalog:
    """The services by bridge and port, as the maps said when they were last read."""

    def __init__(self) -> None:
        self._bridges: dict[str, dict[int, Entry]] = {}
        self.networks: dict[str, Network] = {}

    @property
    def bridges(self) -> set[str]:
        return set(self._bridges)

    def find(self, bridge: str, port: int) -> Entry | None:
        return self._bridges.get(bridge, {}).get(port)

    def entries(self, bridge: str) -> Iterable[Entry]:
        return self._bridges.get(bridge, {}).values()

    def ports(self, bridge: str) -> tuple[int, ...]:
        return tuple(sorted(self._bridges.get(bridge, ())))

    def apply(self, wanted: ServiceMap) -> list[str]:
        """Take a bridge's map as it is now; returns what changed, a line each, for the log."""
        bridge = wanted.bridge
        self.networks[bridge] = wanted.network
        before = self._bridges.get(bridge, {})
        after: dict[int, Entry] = {}
        changes = []
        for port, service in wanted.services.items():
            entry = before.get(port)
            if entry is None:
                entry = Entry(bridge, service)
                changes.append(f"port {port} leads to {service.endpoint}")
            elif entry.service != service:
                if entry.service.endpoint != service.endpoint:
                    changes.append(
                        f"port {port} leads to {service.endpoint}, no longer to {entry.service.endpoint}"
                    )
                entry.service = service
            after[port] = entry
        changes += [f"port {port} is gone" for port in before if port not in after]
        self._bridges[bridge] = after
        return changes

    def remove(self, bridge: str) -> None:
        self._bridges.pop(bridge, None)
        self.networks.pop(bridge, None)
