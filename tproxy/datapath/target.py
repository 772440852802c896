"""Where the connections of one service port go, and what became of them."""

from __future__ import annotations

import time

from tproxy.model import Service


class Target:
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
