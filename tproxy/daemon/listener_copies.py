"""Copies of the listening sockets of all relays, so that no guest is refused when a relay dies.

A socket listens for as long as somebody has it open. While a bridge has no relay, its guests wait in the
backlog, in the kernel; the next relay goes on with the copies. But a socket also keeps its namespace alive,
and its port in use. So a copy is closed as soon as its port or namespace is not served any more.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Collection
from typing import NamedTuple

from tproxy.kernel.limits import descriptor_limit
from tproxy.kernel.netns import NamespaceId
from tproxy.log import limit
from tproxy.model import ServiceKey

log = logging.getLogger(__name__)


class _Bridge(NamedTuple):
    namespace: NamespaceId | None
    sockets: dict[ServiceKey, socket.socket]


class ListenerCopies:
    """Listening sockets by bridge and key; the owner of all of them.

    They take half of the descriptors of this process at most. Without a copy, guests of that port are refused
    for a moment when the relay dies.
    """

    def __init__(self) -> None:
        self._bridges: dict[str, _Bridge] = {}
        self._most = descriptor_limit() // 2
        self._count = 0
        self._warnings = limit.warnings()

    def add(
        self, bridge: str, namespace: NamespaceId | None, key: ServiceKey, listener: socket.socket
    ) -> None:
        """Own a socket that listens in this namespace."""
        held = self._bridges.get(bridge)
        if held is None or held.namespace != namespace:
            self.drop(bridge)
            held = self._bridges[bridge] = _Bridge(namespace, {})
        self._close(held, key)
        if self._count >= self._most:
            listener.close()
            if self._warnings.allows(time.monotonic()):
                more = self._warnings.suffix()
                log.warning("too few descriptors for a copy of each listening socket%s", more)
            return
        held.sockets[key] = listener
        self._count += 1

    def get(self, bridge: str, key: ServiceKey) -> socket.socket | None:
        """Return the socket that listens for this bridge on what the key says, which stays ours."""
        held = self._bridges.get(bridge)
        return held.sockets.get(key) if held is not None else None

    def of(self, bridge: str, namespace: NamespaceId | None) -> dict[ServiceKey, socket.socket]:
        """Return the sockets that listen for this bridge in this namespace, by key; they stay ours."""
        held = self._bridges.get(bridge)
        return dict(held.sockets) if held is not None and held.namespace == namespace else {}

    def keep(self, bridge: str, keys: Collection[ServiceKey]) -> None:
        """Close all other copies of the bridge."""
        held = self._bridges.get(bridge)
        if held is not None:
            for key in held.sockets.keys() - set(keys):
                self._close(held, key)

    def drop(self, bridge: str) -> None:
        """Close all copies of the bridge."""
        self.keep(bridge, ())
        self._bridges.pop(bridge, None)

    def _close(self, held: _Bridge, key: ServiceKey) -> None:
        listener = held.sockets.pop(key, None)
        if listener is not None:
            listener.close()
            self._count -= 1
