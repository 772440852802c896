"""What workers are told of the service addresses of bridges, and of the neighbours at the IPv6 address.

A worker resets what goes on at an address that the bridge has no longer. That must happen while the address
is still in the namespace: without it the kernel sends no reset. So ``operations.reconcile`` takes addresses
away when the daemon has answered, which is when all workers have.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6
from tproxy.errors import KernelError
from tproxy.kernel import neighbours, netns
from tproxy.model import ServiceMap
from tproxy.names import BridgeNames
from tproxy.worker import orders

log = logging.getLogger(__name__)


class ServiceAddresses:
    """``tell`` sends a message to all workers. ``give_tables`` has each of them get a socket for a bridge."""

    def __init__(self, tell: Callable[[orders.Message], None], give_tables: Callable[[str], None]) -> None:
        self._tell = tell
        self._give_tables = give_tables
        self._said: dict[str, orders.Addresses] = {}

    def serve(self, maps: Iterable[ServiceMap]) -> None:
        """Take over the maps of all bridges as they are now."""
        before = self._said
        self._said = {
            each.bridge: orders.Addresses(each.bridge, tuple(sorted({SERVICE_ADDRESS, *each.addresses})))
            for each in maps
        }
        for bridge, message in self._said.items():
            if bridge in before and message != before[bridge]:
                self._tell(message)
                self._give_tables(bridge)

    def messages(self, bridge: str) -> Iterable[orders.Message]:
        """Return what a worker is told before it hears of the bridge's services."""
        return [self._said[bridge]] if bridge in self._said else []

    def open_table(self, bridge: str) -> socket.socket | None:
        """Return a socket that tells which MAC an IPv6 address has; None for a bridge without IPv6."""
        said = self._said.get(bridge)
        if said is None or SERVICE_ADDRESS_IPV6 not in said.addresses:
            return None
        try:
            with netns.inside(BridgeNames(bridge).namespace):
                return neighbours.open_table()
        except (KernelError, OSError) as error:  # then workers do not know these MAC addresses
            log.warning("bridge %s: MAC addresses of guests with IPv6 cannot be asked for: %s", bridge, error)
            return None
