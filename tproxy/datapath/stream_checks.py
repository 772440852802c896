"""Checks failed endpoints of streams.

A check is a dial that ends with a reset as soon as it is answered. The endpoint's server sees a connection
without a byte. The daemon dials UNIX sockets (``unix_dials``), which know no reset.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from tproxy.datapath.checks import Checks
from tproxy.datapath.endpoints import Endpoints
from tproxy.datapath.unix_dials import UnixDials, no_socket
from tproxy.kernel import tcp
from tproxy.kernel.loop import ERROR, HANGUP, WRITE, Loop
from tproxy.model import Endpoint

# Seconds that an endpoint may take to answer a check.
PATIENCE = 5.0


class StreamChecks(Checks):
    """``connect`` dials as ``Connections.connect``. A dial of the daemon has a number below 0 as ``fd``."""

    def __init__(
        self,
        loop: Loop,
        endpoints: Endpoints,
        connect: Callable[[socket.SocketType, Endpoint], int],
        dials: UnixDials,
        failed: Callable[[Endpoint, int], None],
    ) -> None:
        super().__init__(loop, endpoints, failed)
        self._connect = connect
        self._dials = dials

    def on_event(self, fd: int, mask: int) -> None:
        number = 0
        if mask & (ERROR | HANGUP):
            number = self._open[fd][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number in (0, errno.ECONNRESET, errno.EPIPE):  # answered
            self._good(fd)
        else:
            self._bad(fd, number)

    def _check(self, endpoint: Endpoint) -> None:
        if endpoint.is_unix:
            number = -self._dials.dial(endpoint, PATIENCE, self._answered)
            self._await(number, no_socket(), endpoint, PATIENCE, self._time_out)
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
        self._await(sock.fileno(), sock, endpoint, PATIENCE, self._time_out)
        self._loop.add(sock.fileno(), WRITE, self)

    def _answered(self, number: int, sock: socket.SocketType | None, error: int) -> None:
        """Handle the daemon's answer to a dial of a UNIX socket."""
        if sock is not None:
            sock.close()
            self._good(-number)
        else:
            self._bad(-number, error)

    def _time_out(self, fd: int) -> None:
        self._bad(fd, errno.ETIMEDOUT)

    def _close(self, fd: int, sock: socket.SocketType) -> None:
        if fd < 0:
            self._dials.cancel(-fd)
        else:
            super()._close(fd, sock)
