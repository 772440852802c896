"""The target of connections: the service that they go to, and counts of what became of them."""

from __future__ import annotations

import time

from tproxy.log.limit import LineLimit
from tproxy.model import Service

# Log lines of ended connections for each target: so many at once, then one in so many seconds. An operator
# who looks for a fault sees the beginning of a flood whole. What lasts is bound to 17 MB a day: 87,840 lines
# of 190 bytes. A service with ten connections an hour per guest and 300 guests still gets nearly all lines.
LINES_AT_ONCE = 200
LINE_INTERVAL = 1.0


class Target:
    """A service, and the counts of its connections, which go on across reloads while its port exists.

    ``bridge`` is a label and nothing else here: log lines show it, and ``Connections.abort_bridge`` ends the
    connections that have the same one. A reload replaces ``service``; connections keep the endpoint they
    dialled.
    """

    __slots__ = (
        "bridge",
        "last_error",
        "last_error_at",
        "lines",
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
        self.lines = LineLimit(LINES_AT_ONCE, LINE_INTERVAL)

    def failed(self, why: str) -> None:
        """Note why a connection failed, for ``tproxy status``."""
        self.last_error = why
        self.last_error_at = time.time()
