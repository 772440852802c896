"""The header that tells an endpoint who is calling, and what this process was told for it.

The service option ``proxy_protocol`` asks for it. The header has the addresses and, as far as they are
known, the values that docs/contract.md lists under PROXY protocol. The guest's MAC is that of its own SYN
(``kernel.tcp.caller_mac``), or else that of its address in the namespace's neighbour table. The rest comes
from the daemon: the networks of a bridge, which guest is of which, and behind which port of the bridge a MAC
was seen. What is not known is left out, and nothing waits for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from tproxy import proxy_protocol
from tproxy.addresses import SERVICE_ADDRESS_IPV6
from tproxy.datapath.membership import SEVERAL, WAIT, Card, Guests, Verdict
from tproxy.datapath.neighbours import Neighbours
from tproxy.kernel import tcp
from tproxy.model import Network, ServiceKey
from tproxy.proxy_protocol import (
    OF_BRIDGE,
    OF_HYPERVISOR,
    OF_MAC,
    OF_NETWORK,
    OF_NETWORK_ID,
    OF_PORT,
    STREAM,
    UNIQUE_ID,
)

_UNKNOWN = Network()


class _Bridge:
    __slots__ = ("coming", "guests", "hypervisor", "networks")

    def __init__(self) -> None:
        self.hypervisor = ""
        self.networks: dict[int, Network] = {}  # by order
        self.guests = Guests()
        self.coming: tuple[dict[str, int], list[Card]] = {}, []  # of a long list, what is here already


class Introductions:
    """What the daemon has said of guests, by bridge."""

    def __init__(self) -> None:
        # Ids are unique among all processes and hosts: 48 random bits, and a number.
        self._start = os.urandom(6).hex()
        self._bridges: dict[str, _Bridge] = {}
        self.neighbours = Neighbours()
        self.state = 0  # changes with all that the daemon says

    def id(self, number: int) -> str:
        """Return the id of this process's connection with this number."""
        return f"{self._start}-{number}"

    def caller_mac(self, bridge: str, guest: socket.SocketType, address: str) -> str:
        """Return the MAC address of the guest that has opened a connection; "" where nobody knows it."""
        return tcp.caller_mac(guest) or self.neighbours.mac(bridge, guest, address)

    def header(
        self,
        number: int,
        bridge: str,
        key: ServiceKey,
        peer: tuple[str, int],
        mac: str,
        transport: int = STREAM,
    ) -> bytes:
        """Return the header for a connection to a service; ``mac`` is "" where nobody knows it."""
        known = self._bridges.get(bridge) or _Bridge()
        if len(known.networks) == 1:
            network = next(iter(known.networks.values()))
        else:
            network = known.networks.get(key.network or known.guests.judge(mac).network, _UNKNOWN)
        place = known.guests.places.get(mac, "")
        return proxy_protocol.encode(
            peer,
            (SERVICE_ADDRESS_IPV6 if ":" in peer[0] else key.address, key.port),
            {
                UNIQUE_ID: self.id(number),
                OF_NETWORK: network.name,
                OF_NETWORK_ID: network.id,
                OF_BRIDGE: bridge,
                OF_MAC: mac,
                OF_PORT: "" if place == SEVERAL else place,
                OF_HYPERVISOR: known.hypervisor,
            },
            transport,
        )

    def network(self, bridge: str, order: int) -> Network | None:
        """Return the network of a bridge with this order, if it was told."""
        known = self._bridges.get(bridge)
        return known.networks.get(order) if known is not None else None

    def place(self, bridge: str, mac: str) -> str:
        """Return behind which port of the bridge a MAC was seen; "" where that is not known."""
        known = self._bridges.get(bridge)
        port = known.guests.places.get(mac, "") if known is not None else ""
        return "" if port == SEVERAL else port

    def judge(self, bridge: str, mac: str) -> Verdict:
        """Return the network of a caller (``membership``)."""
        known = self._bridges.get(bridge)
        return known.guests.judge(mac) if known is not None else Verdict(WAIT)

    def use_networks(
        self,
        bridge: str,
        first: bool,
        last: bool,
        hypervisor: str,
        networks: Iterable[tuple[int, Network]],
        members: Iterable[tuple[str, int]],
        cards: Iterable[Card],
    ) -> None:
        """Take over the networks of a bridge, and which guests are of which, where there are several.

        A long list comes in parts; it counts with the ``last`` one.
        """
        known = self._bridges.setdefault(bridge, _Bridge())
        self.state += 1
        if first:
            known.coming = {}, []
        known.coming[0].update(members)
        known.coming[1].extend(cards)
        if last:
            known.hypervisor, known.networks = hypervisor, dict(networks)
            known.guests.name(*known.coming)
            known.coming = {}, []

    def use_ports(self, bridge: str, first: bool, ports: Iterable[tuple[str, str]]) -> None:
        """Take over behind which ports MACs were seen; "" means that this is not known any more.

        ``first``: in place of all that was said before.
        """
        places = self._bridges.setdefault(bridge, _Bridge()).guests.places
        self.state += 1
        if first:
            places.clear()
        for mac, port in ports:
            if port:
                places[mac] = port
            else:
                places.pop(mac, None)

    def forget_ports(self) -> None:
        """Leave all ports out from now on: nobody tells when a guest moves to another."""
        self.state += 1
        for known in self._bridges.values():
            known.guests.places.clear()

    def forget(self, bridge: str) -> None:
        self._bridges.pop(bridge, None)
        self.neighbours.forget(bridge)
