"""Checks failed UDP endpoints with datagrams that have no content.

DNS, NTP and syslog servers ignore such a datagram. Where nobody listens, the kernel of the endpoint refuses
it. So an endpoint that neither answers nor refuses is taken for good again.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from tproxy.datapath.checks import Checks
from tproxy.datapath.endpoints import Endpoints
from tproxy.kernel.loop import READ, Loop
from tproxy.model import Endpoint

# Seconds without a refusal after which an endpoint is good again. A router says only after its ARP requests
# have failed, for 3 s, that a host cannot be reached.
REFUSAL, UNREACHABLE = 1.0, 4.0


class DatagramChecks(Checks):
    """``connected`` returns a socket to an endpoint, or raises OSError."""

    def __init__(
        self,
        loop: Loop,
        endpoints: Endpoints,
        connected: Callable[[Endpoint], socket.SocketType],
        failed: Callable[[Endpoint, int], None],
    ) -> None:
        super().__init__(loop, endpoints, failed)
        self._connected = connected

    def on_event(self, fd: int, mask: int) -> None:
        try:
            self._open[fd][0].recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._bad(fd, error.errno or 0)
        else:
            self._good(fd)

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
        refused = self._endpoints.state(endpoint).why == "refused"
        self._await(sock.fileno(), sock, endpoint, REFUSAL if refused else UNREACHABLE, self._good)
        self._loop.add(sock.fileno(), READ, self)
