"""What the daemon knows of services while it runs: where each leads, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.datapath.target import Target
from tproxy.model import Network, ServiceMap


class Catalog:
    """The services by bridge and port, as the maps said when they were last read."""

    def __init__(self) -> None:
        self._bridges: dict[str, dict[int, Target]] = {}
        self.networks: dict[str, Network] = {}

    @property
    def bridges(self) -> set[str]:
        return set(self._bridges)

    def find(self, bridge: str, port: int) -> Target | None:
        return self._bridges.get(bridge, {}).get(port)

    def entries(self, bridge: str) -> Iterable[Target]:
        return self._bridges.get(bridge, {}).values()

    def ports(self, bridge: str) -> tuple[int, ...]:
        return tuple(sorted(self._bridges.get(bridge, ())))

    def apply(self, wanted: ServiceMap) -> list[str]:
        """Take a bridge's map as it is now; returns what changed, a line each, for the log."""
        bridge = wanted.bridge
        self.networks[bridge] = wanted.network
        before = self._bridges.get(bridge, {})
        after: dict[int, Target] = {}
        changes = []
        for port, service in wanted.services.items():
            entry = before.get(port)
            if entry is None:
                entry = Target(bridge, service)
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
