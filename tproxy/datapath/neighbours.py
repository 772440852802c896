"""Which MAC address a guest has, by the neighbour tables of the bridges' namespaces.

Needed where no SYN tells it: for datagrams, and under SYN cookies. The daemon gives a netlink socket for each
bridge with IPv6 (``kernel.neighbours``); for IPv4 any socket of the namespace will do.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from tproxy.kernel import neighbours
from tproxy.names import BridgeNames

_SIOCGIFINDEX = 0x8933  # <linux/sockios.h>
_IFREQ = struct.Struct("=16si20x")  # struct ifreq with an index


class Neighbours:
    """The tables by bridge. The sockets are this object's."""

    def __init__(self) -> None:
        self._tables: dict[str, socket.SocketType] = {}

    def use(self, bridge: str, table: socket.SocketType) -> None:
        """Ask the bridge's namespace through this socket from now on."""
        self.forget(bridge)
        self._tables[bridge] = table

    def forget(self, bridge: str) -> None:
        """Close the socket of a bridge, if there is one."""
        if (table := self._tables.pop(bridge, None)) is not None:
            table.close()

    def mac(self, bridge: str, sock: socket.SocketType, address: str) -> str:
        """Return the MAC of a guest; "" where it is not known. ``sock`` is any socket of the namespace."""
        device = BridgeNames(bridge).veth_namespace
        if ":" not in address:
            return neighbours.of_ipv4(sock, address, device)
        table = self._tables.get(bridge)
        if table is None:
            return ""
        try:
            # Asked each time: a link that is made again has another index.
            answer = fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, _IFREQ.pack(device.encode(), 0))
        except OSError:
            return ""
        return neighbours.of_ipv6(table, address, _IFREQ.unpack(answer)[1])
