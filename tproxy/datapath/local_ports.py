"""Dials an endpoint so that the kernel finds a local port at once, also when few are free.

A connection whose guest closes first stays in TIME_WAIT at the endpoint's side for a minute, and keeps its
local port. The kernel tries one port after the other, and with some 14,000 in use towards an endpoint that
takes 5 to 50 ms for each dial, in which no other guest of the worker is served. A guest that connects as fast
as it can gets there.

So when a dial took long, the next ones choose from a few ports at a time, another part of the range for each
(IP_LOCAL_PORT_RANGE, ip(7), Linux 6.3). Then the kernel fails soon, and the guest is reset. Older kernels do
without.
"""

from __future__ import annotations

import errno
import socket
import struct
import time

IP_LOCAL_PORT_RANGE = 51  # <linux/in.h>
_BOUNDS = struct.Struct("I")  # the first port, and 65,536 times the last one

# Seconds. A dial takes some 0.05 ms in the kernel. A busy host may stop this process for longer than that in
# the middle of one, which then costs a system call for each dial for a while.
SLOW = 0.001

# Seconds in which dials choose from a part of the ports after one that was slow.
SCARCE = 10.0

# Ports from which one attempt chooses, and attempts for each dial.
PART, ATTEMPTS = 256, 4


class LocalPorts:
    """The local ports of this host. ``ports`` is what ip_local_port_range says."""

    def __init__(self, ports: range) -> None:
        self._scarce_until = 0.0  # by time.monotonic()
        self._supported = True
        self.use(ports)

    def use(self, ports: range) -> None:
        """Choose from these ports from now on."""
        self._ports = ports
        self._next = ports.start

    def connect(self, sock: socket.SocketType, endpoint: tuple[str, int]) -> int:
        """Dial, and return what connect_ex does: EADDRNOTAVAIL where no port was found."""
        began = time.monotonic()
        if began < self._scarce_until:
            return self._connect_from_parts(sock, endpoint)
        number = sock.connect_ex(endpoint)
        if self._supported and (now := time.monotonic()) - began > SLOW:
            self._scarce_until = now + SCARCE
        return number

    def _connect_from_parts(self, sock: socket.SocketType, endpoint: tuple[str, int]) -> int:
        number = errno.EADDRNOTAVAIL
        for _ in range(ATTEMPTS):
            first, end = self._next, min(self._next + PART, self._ports.stop)
            self._next = end if end < self._ports.stop else self._ports.start
            try:
                sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, _BOUNDS.pack(end - 1 << 16 | first))
            except OSError:  # ENOPROTOOPT: an older kernel
                self._supported, self._scarce_until = False, 0.0
                return sock.connect_ex(endpoint)
            number = sock.connect_ex(endpoint)
            if number != errno.EADDRNOTAVAIL:
                break
        return number
