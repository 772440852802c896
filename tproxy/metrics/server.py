"""A small HTTP server for one page, in an event loop. Whoever asks it can be anybody.

Theory of operation. To make the page takes up to a second. It is made for all who have asked by then, and
``want`` asks for it at most once at a time; ``publish`` answers them. A visitor has LIFETIME seconds for
everything, and there are at most MOST_VISITORS; who comes beyond that is sent away at once.
"""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from contextlib import suppress

from tproxy.kernel.loop import READ, WRITE, Loop

# Bytes of a request. Prometheus sends some 300.
MOST = 8192

MOST_VISITORS = 32  # arbitrary; each takes a descriptor, and the page in memory

LIFETIME = 30.0

# The last byte of a header is a line end, so two of them end the request.
_END = b"\r\n\r\n"

PATHS = (b"/metrics", b"/")


class Server:
    """Serves the page on all ``listeners``. ``want`` is called when somebody asks; ``publish`` follows it."""

    def __init__(
        self, loop: Loop, listeners: list[socket.socket], kind: str, want: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._kind = kind
        self._want = want
        self._listeners = {each.fileno(): each for each in listeners}
        self.visitors: set[Visitor] = set()
        self._waiting: set[Visitor] = set()
        for each in listeners:
            each.setblocking(False)
            loop.add(each.fileno(), READ, self)

    def on_event(self, fd: int, mask: int) -> None:
        try:
            sock, _ = self._listeners[fd].accept()
        except OSError:
            return
        if len(self.visitors) >= MOST_VISITORS:
            sock.close()
            return
        self.visitors.add(Visitor(self._loop, sock, self))

    def asks(self, visitor: Visitor) -> None:
        if not self._waiting:
            self._want()
        self._waiting.add(visitor)

    def gone(self, visitor: Visitor) -> None:
        self.visitors.discard(visitor)
        self._waiting.discard(visitor)

    def publish(self, page: bytes | None) -> None:
        """Answer all who have asked; None: there is no page now."""
        waiting, self._waiting = self._waiting, set()
        packed = gzip.compress(page, 1) if page and any(each.unpacks for each in waiting) else b""
        for each in waiting:
            if page is None:
                each.answer("503 Service Unavailable")
            elif each.unpacks:
                each.answer("200 OK", packed, f"Content-Type: {self._kind}", "Content-Encoding: gzip")
            else:
                each.answer("200 OK", page, f"Content-Type: {self._kind}")


class Visitor:
    """One connection, with one request. ``unpacks`` says whether it takes gzip."""

    def __init__(self, loop: Loop, sock: socket.socket, server: Server) -> None:
        self._loop = loop
        self._sock = sock
        self._server = server
        self._request = b""
        self._rest = memoryview(b"")
        self._head = False
        self.unpacks = False
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self)
        self._timer = loop.call_later(LIFETIME, self._leave)

    def answer(self, status: str, body: bytes = b"", *fields: str) -> None:
        head = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields)
        text = "".join(f"{each}\r\n" for each in head) + "\r\n"
        self._rest = memoryview(text.encode() + (b"" if self._head else body))
        self._loop.modify(self._sock.fileno(), WRITE)

    def on_event(self, fd: int, mask: int) -> None:
        try:
            if self._rest:
                self._rest = self._rest[self._sock.send(self._rest) :]
                if not self._rest:
                    self._sock.shutdown(socket.SHUT_WR)
                    self._leave()
            else:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self._leave()

    def _read(self) -> None:
        data = self._sock.recv(MOST)
        self._request += data
        if not data:
            self._leave()
        elif _END in self._request:
            self._loop.modify(self._sock.fileno(), 0)
            self._judge()
        elif len(self._request) > MOST:
            self.answer("431 Request Header Fields Too Large")

    def _judge(self) -> None:
        first, _, rest = self._request.partition(b"\r\n")
        words = first.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            self.answer("400 Bad Request")
        elif words[0] not in (b"GET", b"HEAD"):
            self.answer("405 Method Not Allowed", b"", "Allow: GET, HEAD")
        elif words[1].partition(b"?")[0] not in PATHS:
            self.answer("404 Not Found", b"The metrics are at /metrics.\n", "Content-Type: text/plain")
        else:
            self._head = words[0] == b"HEAD"
            fields = rest.lower().split(b"\r\n")
            self.unpacks = any(each.startswith(b"accept-encoding:") and b"gzip" in each for each in fields)
            self._server.asks(self)

    def _leave(self) -> None:
        self._timer.cancel()
        self._server.gone(self)
        with suppress(OSError, ValueError):
            self._loop.close_later(self._sock)
