"""When failed endpoints are checked in the background, so that no guest has to find out that one is back.

What a check is differs between streams (``stream_checks``) and datagrams (``datagram_checks``).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from tproxy.datapath.endpoints import Endpoints
from tproxy.kernel.loop import Loop, Timer
from tproxy.model import Endpoint


class Checks:
    """The checks of a worker; ``failed`` notes the number (errno(3)) of an endpoint's failure.

    A subclass begins a check in ``_check`` and ends it by ``_good`` or ``_bad``.
    """

    def __init__(self, loop: Loop, endpoints: Endpoints, failed: Callable[[Endpoint, int], None]) -> None:
        self._loop = loop
        self._endpoints = endpoints
        self._failed = failed
        self._timer: Timer | None = None
        self._open: dict[int, tuple[socket.SocketType, Endpoint, Timer]] = {}  # by descriptor
        self._stopped = False

    def plan(self) -> None:
        """Look when the next check is due; to be called when that may have changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._endpoints.next_check()
        if due is not None and not self._stopped:
            self._timer = self._loop.call_later(max(due - time.monotonic(), 0), self._look)

    def stop(self) -> None:
        """Check nothing any more."""
        self._stopped = True
        self.plan()
        for fd in [*self._open]:
            self._end(fd)

    def _look(self) -> None:
        self._timer = None
        checked = {endpoint for _, endpoint, _ in self._open.values()}
        for endpoint in self._endpoints.to_check(time.monotonic()):
            if endpoint not in checked:
                self._check(endpoint)
        self.plan()

    def _check(self, endpoint: Endpoint) -> None:
        """Begin a check."""
        raise NotImplementedError

    def _await(
        self,
        fd: int,
        sock: socket.SocketType,
        endpoint: Endpoint,
        seconds: float,
        then: Callable[[int], None],
    ) -> None:
        """Wait for an answer. Without one, ``then`` gets the descriptor after so many seconds."""
        self._open[fd] = sock, endpoint, self._loop.call_later(seconds, lambda: then(fd))

    def _good(self, fd: int) -> None:
        """End a check of an endpoint that is back."""
        endpoint = self._open[fd][1]
        self._end(fd)
        self._endpoints.answered(endpoint, time.monotonic())

    def _bad(self, fd: int, number: int) -> None:
        """End a check of an endpoint that still fails."""
        endpoint = self._open[fd][1]
        self._end(fd)
        self._failed(endpoint, number)

    def _end(self, fd: int) -> None:
        sock, _, timer = self._open.pop(fd)
        timer.cancel()
        self._close(fd, sock)

    def _close(self, fd: int, sock: socket.SocketType) -> None:
        self._loop.close_later(sock)
