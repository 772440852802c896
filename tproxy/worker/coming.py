"""A stream from a gateway that has no socket to its guest yet: its header, and who it is for."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from tproxy import proxy_protocol
from tproxy.datapath.route_target import RouteTarget
from tproxy.proxy_protocol import OF_PROBE, UNIQUE_ID

# Seconds that a gateway may take to send the header, which comes in one piece.
HEADER_TIMEOUT = 5.0


class Coming:
    """A stream that is no ``Stream`` yet: its header is read, or a relay is asked for a socket."""

    def __init__(self, number: int, sock: socket.SocketType) -> None:
        self.number = number
        self.sock = sock
        self.began = time.monotonic()
        self.data = b""
        self.peer = ("0.0.0.0", 0)
        self.header = proxy_protocol.Header(None, None, {})
        self.target: RouteTarget | None = None

    @property
    def deadline(self) -> float:
        return self.began + (self.target.service.connect_timeout if self.target else HEADER_TIMEOUT)

    def read(self) -> bool:
        """Read the header and no byte more; return False when the stream has ended before it.

        Raises BlockingIOError while more is to come, and ProtocolError, OSError for what is no header.
        """
        wanted = proxy_protocol.START - len(self.data)
        if wanted <= 0:
            wanted += proxy_protocol.length(self.data[: proxy_protocol.START])
        while wanted > 0:
            data = self.sock.recv(wanted, socket.MSG_DONTWAIT)
            if not data:
                return False
            self.data += data
            wanted -= len(data)
            if not wanted and len(self.data) == proxy_protocol.START:
                wanted = proxy_protocol.length(self.data)
        self.header = proxy_protocol.decode(self.data)
        if self.header.source is not None:
            self.peer = self.header.source
        return True

    @property
    def route(self) -> str:
        """The id of the route that the header names; "" for none."""
        return self.header.values.get(UNIQUE_ID, "")

    @property
    def is_probe(self) -> bool:
        return OF_PROBE in self.header.values

    @property
    def introduction(self) -> bytes:
        """The header that the guest gets; empty where the route has none."""
        source, destination, values = self.header
        assert self.target is not None
        if not self.target.service.introduced or source is None or destination is None:
            return b""
        passed = {kind: text for kind, text in values.items() if kind != UNIQUE_ID and kind < 0xE0}
        return proxy_protocol.encode(source, destination, passed)

    def answer(self, verdict: str) -> None:
        """Say to one that is a probe what came of it."""
        if self.is_probe:
            with suppress(OSError):
                self.sock.send(f"{verdict}\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
