"""What workers are told of callers: of services that differ between networks, or whose endpoints want it.

That is which guest is of which network, and behind which port of the bridge it is (``datapath.membership``,
``datapath.introduction``). Only of bridges that have such a service. All of it is repeated to each worker
before the bridge's services.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping

from tproxy.bridge.members import is_stand_in
from tproxy.daemon.guest_ports import GuestPorts, Places
from tproxy.datapath.membership import Card
from tproxy.kernel.loop import Loop
from tproxy.model import Network, ServiceMap
from tproxy.names import is_stand_in as is_short
from tproxy.worker import orders


class Callers:
    """``tell`` sends a message to all workers. ``named_uplinks`` is as in ``GuestPorts``."""

    def __init__(
        self,
        loop: Loop,
        tell: Callable[[orders.Message], None],
        named_uplinks: Callable[[str], Iterable[str]],
    ) -> None:
        self._tell = tell
        self._maps: dict[str, ServiceMap] = {}  # of bridges with such a service
        self._said: dict[str, list[orders.Networks]] = {}
        self._ports = GuestPorts(loop, self._ports_changed, named_uplinks)
        self.hypervisor = ""  # "" is the host name

    def serve(self, maps: Iterable[ServiceMap]) -> None:
        """Take over the maps of all bridges as they are now."""
        before, said = self._maps, self._said
        self._maps = {
            each.bridge: each
            for each in maps
            if any(one.introduced or one.key.network for one in each.services.values())
        }
        self._said = {bridge: [*self._networks(bridge)] for bridge in self._maps}
        self._ports.follow(self._maps)
        for bridge, networks in self._said.items():
            if bridge not in before:
                for message in self.messages(bridge):
                    self._tell(message)
            elif networks != said[bridge]:
                for each in networks:
                    self._tell(each)

    def messages(self, bridge: str) -> Iterator[orders.Message]:
        """Yield what a worker needs to know before it hears of the bridge's services."""
        if bridge in self._maps:
            yield from self._said[bridge]
            yield from _port_messages(bridge, self._ports.of(bridge), first=True)

    def close(self) -> None:
        self._ports.close()

    def _networks(self, bridge: str) -> Iterator[orders.Networks]:
        found = self._maps[bridge]
        networks = tuple((order, _told(network)) for network, order in found.orders.items())
        hypervisor = _readable(self.hypervisor or socket.gethostname())
        members: list[tuple[str, int]] = []
        cards: list[Card] = []
        if len(networks) > 1 or any(key.network for key in found.services):  # otherwise all are of the same
            known = found.members or {}
            # A guest could choose an address that stands for others.
            members = [(mac, each.order) for mac, each in known.items() if not is_stand_in(mac, each.network)]
            cards = [(port, mac, known[mac].order) for port, mac in sorted(found.cards) if mac in known]
        starts = range(0, max(len(members), len(cards), 1), orders.MOST_GUESTS)
        for start in starts:
            end = start + orders.MOST_GUESTS
            some = tuple(members[start:end]), tuple(cards[start:end])
            yield orders.Networks(bridge, start == 0, start == starts[-1], hypervisor, networks, *some)

    def _ports_changed(self, bridge: str, places: Places) -> None:
        for message in _port_messages(bridge, places, first=False):
            self._tell(message)


def _port_messages(bridge: str, places: Mapping[str, str], *, first: bool) -> Iterator[orders.Message]:
    pairs = tuple(places.items())
    for start in range(0, len(pairs) or 1, orders.MOST_GUESTS):
        yield orders.Ports(bridge, first and start == 0, pairs[start : start + orders.MOST_GUESTS])


def _told(network: Network) -> Network:
    """The network as the driver gave it: without a name that is not in the map, for want of room."""
    return Network("" if is_short(network.name) else _readable(network.name), _readable(network.id))


def _readable(text: str) -> str:
    """The text if it is UTF-8, otherwise nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return text
