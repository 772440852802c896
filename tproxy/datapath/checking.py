"""Checks failed endpoints in the background, so that no guest has to find out that one is back.

A check is a dial that ends with a reset as soon as it is answered. The endpoint's server sees a connection
without a byte. The daemon dials UNIX sockets (``unix_dials``), which know no reset.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from tproxy.datapath.endpoints import Endpoints
from tproxy.datapath.unix_dials import UnixDials, no_socket
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
        dials: UnixDials,
        failed: Callable[[Endpoint, int], None],
    ) -> None:
        self._loop = loop
        self._endpoints = endpoints
        self._connect = connect
        self._dials = dials
        self._failed = failed
        self._timer: Timer | None = None
        # By descriptor. What the daemon dials has its number there, below 0.
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
        if endpoint.is_unix:
            self._await(-self._dials.dial(endpoint, PATIENCE, self._answered), no_socket(), endpoint)
            return
        try:
            sock = tcp.dialling_socket(endpoint.address)
        except OSError:  # no descriptor is free now
            return
        tcp.reset_on_close(sock)
        if number := self._connect(sock, endpoint):
            sock.close()
            self._failed(endpoint, number)
            return
        self._await(sock.fileno(), sock, endpoint)
        self._loop.add(sock.fileno(), WRITE, self)

    def _await(self, fd: int, sock: socket.SocketType, endpoint: Endpoint) -> None:
        self._open[fd] = sock, endpoint, self._loop.call_later(PATIENCE, lambda: self._time_out(fd))

    def _answered(self, number: int, sock: socket.SocketType | None, error: int) -> None:
        """Handle the daemon's answer to a dial of a UNIX socket."""
        endpoint = self._open[-number][1]
        self._end(-number)
        if sock is not None:
            sock.close()
            self._endpoints.answered(endpoint, time.monotonic())
        else:
            self._failed(endpoint, error)

    def _time_out(self, fd: int) -> None:
        endpoint = self._open[fd][1]
        self._end(fd)
        self._failed(endpoint, errno.ETIMEDOUT)

    def _end(self, fd: int) -> None:
        sock, _, timer = self._open.pop(fd)
        timer.cancel()
        if fd < 0:
            self._dials.cancel(-fd)
        else:
            self._loop.close_later(sock)
