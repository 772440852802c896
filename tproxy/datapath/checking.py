"""Checks failed endpoints in the background, so that no guest has to find out that one is back.

A check is a dial that ends with a reset as soon as it is answered. The endpoint's server sees a connection
without a byte.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from tproxy.datapath.endpoints import Endpoints
from tproxy.kernel import tcp
from tproxy.kernel.loop import ERROR, HANGUP, WRITE, Loop, Timer
from tproxy.model import Endpoint

# Seconds that an endpoint may take to answer a check.
PATIENCE = 5.0


class Checks:
    """The checks of a worker. ``connect`` dials as ``Connections.connect``; ``failed`` notes a failure."""

    def __init__(
        self,
        loop: Loop,
        endpoints: Endpoints,
        connect: Callable[[socket.SocketType, Endpoint], int],
        failed: Callable[[Endpoint, int], None],
    ) -> None:
        self._loop = loop
        self._endpoints = endpoints
        self._connect = connect
        self._failed = failed
        self._timer: Timer | None = None
        self._open: dict[int, tuple[socket.SocketType, Endpoint, Timer]] = {}
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

    def on_event(self, fd: int, mask: int) -> None:
        sock, endpoint, _ = self._open[fd]
        number = 0
        if mask & (ERROR | HANGUP):
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._end(fd)
        if number in (0, errno.ECONNRESET, errno.EPIPE):  # answered
            self._endpoints.answered(endpoint, time.monotonic())
        else:
            self._failed(endpoint, number)

    def _look(self) -> None:
        self._timer = None
        checked = {endpoint for _, endpoint, _ in self._open.values()}
        for endpoint in self._endpoints.to_check(time.monotonic()):
            if endpoint not in checked:
                self._check(endpoint)
        self.plan()

    def _check(self, endpoint: Endpoint) -> None:
        try:
            sock = tcp.dialling_socket(endpoint.address)
        except OSError:  # no descriptor is free now
            return
        tcp.reset_on_close(sock)
        if number := self._connect(sock, endpoint):
            sock.close()
            self._failed(endpoint, number)
            return
        fd = sock.fileno()
        self._open[fd] = sock, endpoint, self._loop.call_later(PATIENCE, lambda: self._time_out(fd))
        self._loop.add(fd, WRITE, self)

    def _time_out(self, fd: int) -> None:
        endpoint = self._open[fd][1]
        self._end(fd)
        self._failed(endpoint, errno.ETIMEDOUT)

    def _end(self, fd: int) -> None:
        sock, _, timer = self._open.pop(fd)
        timer.cancel()
        self._loop.close_later(sock)
