"""Says of an endpoint whether its address is this host's own, and whether a dial of it can meet itself."""

from __future__ import annotations

from tproxy.datapath.local_ports import LocalPorts
from tproxy.kernel import tcp
from tproxy.model import Endpoint
from tproxy.typed import Any

_PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_ANY_PORT = range(1, 1 << 16)


class ThisHost:
    """Keeps what it was told by the kernel until ``forget``, because each connection asks."""

    def __init__(self) -> None:
        self._near: dict[str, bool] = {}
        self._chosen_ports = _ANY_PORT
        self.local_ports = LocalPorts(_ANY_PORT)

    def has(self, address: str) -> bool:
        """Return whether an address is one of this host."""
        near = self._near.get(address)
        if near is None:
            near = self._near[address] = tcp.on_this_host(address)
        return near

    def chooses(self, port: int) -> bool:
        """Return whether the kernel may choose this port for a socket that dials."""
        return port in self._chosen_ports

    def forget(self, ports: tuple[int, int]) -> None:
        """Ask the kernel again: addresses may have moved. ``ports`` are as ``chosen_ports`` returns them."""
        self._near.clear()
        first, last = ports
        self._chosen_ports = range(first, last + 1)
        self.local_ports.use(self._chosen_ports)


def met_itself(name: tuple[Any, ...], endpoint: Endpoint) -> bool:
    """Return whether a socket of this name (getsockname(2)) that dials the endpoint is its own peer.

    Where nothing listens on a port that the kernel may choose, it can choose the endpoint's own port for the
    dial. The SYN then meets the socket that sent it, which is a simultaneous open (RFC 9293, 3.5): the
    connection succeeds, echoes all that is sent, and keeps the endpoint's server from binding its port.
    """
    return name[:2] == endpoint


def chosen_ports() -> tuple[int, int]:
    """Return the first and last port that the kernel chooses from, ip_local_port_range in ip(7).

    All ports where that is unknown.
    """
    try:
        with open(_PORT_RANGE) as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        return _ANY_PORT[0], _ANY_PORT[-1]
    return first, last
