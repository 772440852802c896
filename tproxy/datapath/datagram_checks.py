"""Checks failed UDP endpoints in the background, with datagrams that have no content.

DNS, NTP and syslog servers ignore such a datagram. Where nobody listens, the kernel of the endpoint refuses
it. So an endpoint that neither answers nor refuses is taken for good again.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from tproxy.datapath.endpoints import Endpoints
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.model import Endpoint

# Seconds without a refusal after which an endpoint is good again. A router says only after its ARP requests
# have failed, for 3 s, that a host cannot be reached.
REFUSAL, UNREACHABLE = 1.0, 4.0


class DatagramChecks:
    """The checks of a worker. ``connected`` returns a socket to an endpoint; ``failed`` notes a failure."""

    def __init__(
        self,
        loop: Loop,
        endpoints: Endpoints,
        connected: Callable[[Endpoint], socket.SocketType],
        failed: Callable[[Endpoint, int], None],
    ) -> None:
        self._loop = loop
        self._endpoints = endpoints
        self._connected = connected
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
        try:
            sock.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(fd)
            self._failed(endpoint, error.errno or 0)
        else:
            self._end(fd)
            self._endpoints.answered(endpoint, time.monotonic())

    def _look(self) -> None:
        self._timer = None
        checked = {endpoint for _, endpoint, _ in self._open.values()}
        for endpoint in self._endpoints.to_check(time.monotonic()):
            if endpoint not in checked:
                self._check(endpoint)
        self.plan()

    def _check(self, endpoint: Endpoint) -> None:
        try:
            sock = self._connected(endpoint)
        except OSError as error:  # no route, or no descriptor
            self._failed(endpoint, error.errno or 0)
            return
        try:
            sock.send(b"", socket.MSG_DONTWAIT)
        except OSError as error:
            sock.close()
            self._failed(endpoint, error.errno or errno.EIO)
            return
        fd = sock.fileno()
        refused = self._endpoints.state(endpoint).why == "refused"
        patience = REFUSAL if refused else UNREACHABLE
        self._open[fd] = sock, endpoint, self._loop.call_later(patience, lambda: self._no_refusal(fd))
        self._loop.add(fd, READ, self)

    def _no_refusal(self, fd: int) -> None:
        endpoint = self._open[fd][1]
        self._end(fd)
        self._endpoints.answered(endpoint, time.monotonic())

    def _end(self, fd: int) -> None:
        sock, _, timer = self._open.pop(fd)
        timer.cancel()
        self._loop.close_later(sock)
