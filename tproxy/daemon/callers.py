"""What workers are told of the callers of services whose endpoints want to know them (``introduction``).

Only of bridges that have such a service. All of it is repeated to each worker before the bridge's services.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping

from tproxy.daemon.guest_ports import GuestPorts, Places
from tproxy.kernel.loop import Loop
from tproxy.model import Network, ServiceMap, is_stand_in
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
            each.bridge: each for each in maps if any(one.introduced for one in each.services.values())
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
        networks = tuple(map(_told, found.networks))
        hypervisor = _readable(self.hypervisor or socket.gethostname())
        members = []
        if len(networks) > 1:  # otherwise all are of the same
            places = {network: place for place, network in enumerate(found.networks)}
            members = [(mac, places[each.network]) for mac, each in (found.members or {}).items()]
        for start in range(0, len(members) or 1, orders.MOST_GUESTS):
            some = tuple(members[start : start + orders.MOST_GUESTS])
            yield orders.Networks(bridge, start == 0, hypervisor, networks, some)

    def _ports_changed(self, bridge: str, places: Places) -> None:
        for message in _port_messages(bridge, places, first=False):
            self._tell(message)


def _port_messages(bridge: str, places: Mapping[str, str], *, first: bool) -> Iterator[orders.Message]:
    pairs = tuple(places.items())
    for start in range(0, len(pairs) or 1, orders.MOST_GUESTS):
        yield orders.Ports(bridge, first and start == 0, pairs[start : start + orders.MOST_GUESTS])


def _told(network: Network) -> Network:
    """The network as the driver gave it: without a name that is not in the map, for want of room."""
    return Network("" if is_stand_in(network.name) else _readable(network.name), _readable(network.id))


def _readable(text: str) -> str:
    """The text if it is UTF-8, otherwise nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return text
