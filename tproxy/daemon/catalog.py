"""The catalog: the services of all bridges, as their maps were when the daemon last read them."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.datapath.target import Target
from tproxy.model import Network, ServiceMap


class Catalog:
    """Targets by bridge and service port. A port that stays keeps its target, and so its counts."""

    def __init__(self) -> None:
        self._bridges: dict[str, dict[int, Target]] = {}
        self._maps: dict[str, ServiceMap] = {}
        self.networks: dict[str, tuple[Network, ...]] = {}  # of each bridge, the first one first

    @property
    def bridges(self) -> set[str]:
        return set(self._bridges)

    def find(self, bridge: str, port: int) -> Target | None:
        return self._bridges.get(bridge, {}).get(port)

    def targets(self, bridge: str) -> Iterable[Target]:
        return self._bridges.get(bridge, {}).values()

    def ports(self, bridge: str) -> tuple[int, ...]:
        return tuple(sorted(self._bridges.get(bridge, ())))

    def maps(self) -> list[ServiceMap]:
        """The maps of all bridges as they were read, sorted by bridge."""
        return [self._maps[bridge] for bridge in sorted(self._maps)]

    def apply(self, wanted: ServiceMap) -> list[str]:
        """Take over a bridge's map as it is now; return a line for the log for each change."""
        bridge = wanted.bridge
        self.networks[bridge] = wanted.networks
        before = self._bridges.get(bridge, {})
        after: dict[int, Target] = {}
        changes = []
        for port, service in wanted.services.items():
            target = before.get(port)
            if target is None:
                target = Target(bridge, service)
                changes.append(f"port {port} leads to {service.endpoint}")
            elif target.service != service:
                if target.service.endpoint != service.endpoint:
                    changes.append(
                        f"port {port} leads to {service.endpoint}, no longer to {target.service.endpoint}"
                    )
                target.service = service
            after[port] = target
        changes += [f"port {port} is gone" for port in before if port not in after]
        self._bridges[bridge] = after
        self._maps[bridge] = wanted
        return changes

    def remove(self, bridge: str) -> None:
        """Forget a bridge that has no map any more; does nothing if it is unknown."""
        self._bridges.pop(bridge, None)
        self._maps.pop(bridge, None)
        self.networks.pop(bridge, None)
