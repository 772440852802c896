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

log = logging.getLogger(__name__)


class _Bridge(NamedTuple):
    namespace: NamespaceId | None
    sockets: dict[int, socket.socket]


class ListenerCopies:
    """Listening sockets by bridge and port; the owner of all of them.

    They take half of the descriptors of this process at most. Without a copy, guests of that port are refused
    for a moment when the relay dies.
    """

    def __init__(self) -> None:
        self._bridges: dict[str, _Bridge] = {}
        self._most = descriptor_limit() // 2
        self._count = 0
        self._warnings = limit.warnings()

    def add(self, bridge: str, namespace: NamespaceId | None, port: int, listener: socket.socket) -> None:
        """Own a socket that listens in this namespace."""
        held = self._bridges.get(bridge)
        if held is None or held.namespace != namespace:
            self.drop(bridge)
            held = self._bridges[bridge] = _Bridge(namespace, {})
        self._close(held, port)
        if self._count >= self._most:
            listener.close()
            if self._warnings.allows(time.monotonic()):
                more = self._warnings.suffix()
                log.warning("too few descriptors for a copy of each listening socket%s", more)
            return
        held.sockets[port] = listener
        self._count += 1

    def get(self, bridge: str, port: int) -> socket.socket | None:
        """Return the socket that listens on this port for this bridge, which stays ours."""
        held = self._bridges.get(bridge)
        return held.sockets.get(port) if held is not None else None

    def of(self, bridge: str, namespace: NamespaceId | None) -> dict[int, socket.socket]:
        """Return the sockets that listen for this bridge in this namespace, by port; they stay ours."""
        held = self._bridges.get(bridge)
        return dict(held.sockets) if held is not None and held.namespace == namespace else {}

    def keep(self, bridge: str, ports: Collection[int]) -> None:
        """Close the copies of all other ports of the bridge."""
        held = self._bridges.get(bridge)
        if held is not None:
            for port in held.sockets.keys() - set(ports):
                self._close(held, port)

    def drop(self, bridge: str) -> None:
        """Close all copies of the bridge."""
        self.keep(bridge, ())
        self._bridges.pop(bridge, None)

    def _close(self, held: _Bridge, port: int) -> None:
        listener = held.sockets.pop(port, None)
        if listener is not None:
            listener.close()
            self._count -= 1
