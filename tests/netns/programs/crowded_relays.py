"""Four relays that all have a full message for the daemon at once, while it has room for one.

Needs the namespaces one_tproxy_br0 to one_tproxy_br3. Prints as JSON how many full messages are taken each
time all connections have ended.
"""

from __future__ import annotations

import json
import os
import socket
from typing import cast

from tproxy.daemon.catalog import Catalog
from tproxy.daemon.relays import Relays
from tproxy.datapath.connection import Connections
from tproxy.datapath.target import Target
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint, Service, ServiceMap
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send
from tproxy.relay.listening import BATCH
from tproxy.relay.spawner import Order, Spawner

BRIDGES = ["br0", "br1", "br2", "br3"]

channels = {bridge: pair() for bridge in BRIDGES}


class FakeSpawner:
    def spawn(self, order: Order) -> socket.socket:
        near = channels[order.bridge][0]
        near.setblocking(False)
        return near


class OpenConnections(list[socket.SocketType]):
    """Connections that stay open until they are cleared."""

    def accept(self, entry: Target, guest: socket.SocketType, peer: bytes) -> None:
        self.append(guest)


catalog, loop = Catalog(), Loop()
connections = OpenConnections()
relays = Relays(
    loop,
    cast(Spawner, FakeSpawner()),
    catalog,
    cast(Connections, connections),
    lambda: None,
    most_connections=BATCH + 1,
)


def run(seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run()


def start(bridge: str) -> None:
    """Have a relay for the bridge, which sends a full message as soon as it has reported."""
    catalog.apply(ServiceMap(bridge, {5030: Service(5030, Endpoint("10.11.12.13", 80))}))
    relays.ensure(bridge)
    far = channels[bridge][1]
    with netns.inside(f"one_tproxy_{bridge}"):
        guests = [socket.socket() for _ in range(BATCH)]
    send(far, wire.Hello(wire.VERSION, os.getpid()), [guests[0].fileno()])
    run(0.01)
    delivery = receive(far)
    assert delivery is not None
    assert isinstance(delivery.message, wire.Listen)
    send(far, wire.Report(delivery.message.generation, {}))
    run(0.01)
    send(far, wire.Accepted(5030, (bytes(6),) * BATCH), [each.fileno() for each in guests])


for each in BRIDGES:
    start(each)
taken = []
for _ in BRIDGES:
    while not connections:
        run(0.1)
    run(0.3)
    taken.append(len(connections))
    connections.clear()
print(json.dumps([each // BATCH for each in taken]))
