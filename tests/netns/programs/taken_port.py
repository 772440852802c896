"""The daemon's view of a relay whose port is always taken. A real relay would take minutes to show it.

Needs the namespace one_tproxy_br0. Prints as JSON how often the relay was asked by reloads and retries, and
how often by retries alone in the second that follows, or until there is one.
"""

from __future__ import annotations

import errno
import json
import socket
import tempfile
from typing import cast

from tproxy.daemon import link
from tproxy.daemon.catalog import Catalog
from tproxy.daemon.relays import Relays
from tproxy.daemon.spawner import Order, Spawner
from tproxy.daemon.workers import Workers
from tproxy.kernel import netns
from tproxy.kernel.loop import READ, Loop
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send

RELOADS = 20

near, far = pair()
near.setblocking(False)


class TakenPort:
    """The spawner, and the relay that it starts: it answers that its port is taken whenever it is asked."""

    asked = 0

    def spawn(self, order: Order, *fds: int) -> socket.socket:
        return near

    def on_event(self, fd: int, mask: int) -> None:
        delivery = receive(far)
        assert delivery is not None
        with delivery:
            if not isinstance(delivery.message, wire.Listen):
                return  # the data channels to workers
        self.asked += 1
        send(far, wire.Report(delivery.message.generation, {ServiceKey(5030): errno.EADDRINUSE}))


link.PORT_RETRY = 0.2
loop = Loop()
relay = TakenPort()
loop.add(far.fileno(), READ, relay)
spawner = cast(Spawner, relay)
workers = Workers(loop, spawner, tempfile.mkdtemp(), lambda: None, lambda: None)
workers._count = 1  # a place for a worker, and no process in it
workers._places.append(None)
relays = Relays(loop, spawner, Catalog(), workers, lambda: None)


def run(seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run()


relays.ensure("br0")
with netns.inside("one_tproxy_br0"):
    proof = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
send(far, wire.Hello(wire.VERSION), [proof.fileno()])
for number in range(RELOADS):
    while relay.asked <= number:
        run(0.01)
    run(0.01)  # the answer is heard
    relays.ensure("br0")
while relay.asked <= RELOADS:
    run(0.01)
before = relay.asked
run(1.0)
while relay.asked == before:  # nothing else had its turn in that second
    run(0.1)
print(json.dumps([before, relay.asked - before]))
