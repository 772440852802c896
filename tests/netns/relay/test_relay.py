"""A relay whose daemon is behind, by itself: what it holds reaches one daemon, once, or is reset."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tproxy.lab.hypervisor import Hypervisor

# A relay in this process, with its loop; the test is its daemon, and stuffs the channel as it starts.
PREPARE = """
import json, os, socket
from contextlib import suppress
from tests.unit.sockets import tcp_pair
from tproxy.relay.channel import pair, receive, send
from tproxy.relay import wire
from tproxy.relay.relay import RENDEZVOUS, Batch, Relay

daemon, channel = pair()
daemon.setblocking(False)
relay = Relay()
guest, accepted = tcp_pair()

def receive_all(sock):
    heard = []
    with suppress(OSError):
        while received := receive(sock):
            heard.append(type(received[0]).__name__)
    return [each for each in heard if each != "Hello"]

def stuff():
    with suppress(BlockingIOError):
        while True:
            send(channel, wire.Hello(1, 1))

def hold_a_guest():
    relay._waiting = Batch(5030, (bytes(6),), [accepted.detach()])
    relay._settle()

def serve(*steps):
    left = list(steps)
    def next_step():  # sets the one after it: however late it comes, the relay has its turn in between
        left.pop(0)()
        if left:
            relay._loop.call_later(0.05, next_step)
    relay._loop.call_later(0.05, next_step)
    relay.serve(channel)
"""

HANDED_OVER = """
successor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

def come():  # and at the same moment the daemon catches up
    successor.connect(RENDEZVOUS)
    send(successor, wire.Takeover())
    receive_all(daemon)

serve(stuff, hold_a_guest, come)
successor.setblocking(False)
print(json.dumps([receive_all(successor), receive_all(daemon)]))
"""

REPORTED = """
kept = []

def ask():
    send(daemon, wire.Listen(7, 20, ()))

def catch_up():
    kept.append(relay._channel is not None)
    receive_all(daemon)

serve(stuff, ask, catch_up, lambda: kept.append(receive_all(daemon)), relay._loop.stop)
print(json.dumps(kept))
"""

TOLD_TO_END = """
serve(stuff, hold_a_guest, lambda: send(daemon, wire.Quit()))
try:
    print(json.dumps(guest.recv(1).decode()))
except ConnectionResetError:
    print(json.dumps("reset"))
"""


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (HANDED_OVER, [["Accepted"], []]),
        (REPORTED, [True, ["Report"]]),
        (TOLD_TO_END, "reset"),
    ],
    ids=["a guest goes to the successor only", "a report waits", "a guest that waits is reset"],
)
def test_while_the_daemon_is_behind(hypervisor: Hypervisor, steps: str, expected: Any) -> None:
    done = hypervisor.run(sys.executable, "-c", PREPARE + steps)
    assert json.loads(done.stdout) == expected


# The daemon's view of a relay whose port is always taken; a real one would take minutes to show it.
TAKEN_PORT = """
import json, os, socket
from tproxy.relay.channel import pair, receive, send
from tproxy.kernel import netns
from tproxy.daemon import relays
from tproxy.relay import wire
from tproxy.daemon.catalog import Catalog
from tproxy.datapath.connection import Connections
from tproxy.kernel.loop import READ, Loop

relays.RETRY_MOST = 0.2
loop = Loop()
near, far = pair()
near.setblocking(False)

class Relay:
    asked = 0

    def spawn(self, order):
        return near

    def on_event(self, fd, mask):
        (listen, _) = receive(far)
        self.asked += 1
        send(far, wire.Report(listen.generation, {5030: 98}))

relay = Relay()
loop.add(far.fileno(), READ, relay)
relays = relays.Supervisor(loop, relay, Catalog(), Connections(loop), lambda: None)

def run(seconds):
    loop.call_later(seconds, loop.stop)
    loop.run()

relays.ensure("br0")
with netns.inside("one_tproxy_br0"):
    proof = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
send(far, wire.Hello(wire.VERSION, os.getpid()), [proof.fileno()])
for number in range(20):  # so many reloads
    while relay.asked <= number:
        run(0.01)
    run(0.01)  # the answer is heard
    relays.ensure("br0")
while relay.asked < 21:
    run(0.01)
before = relay.asked
run(1.0)
while relay.asked == before:  # where nothing else had its turn in that time
    run(0.1)
print(json.dumps([before, relay.asked - before]))
"""


def test_a_taken_port_is_tried_once_a_period_however_many_reloads_there_were(hypervisor: Hypervisor) -> None:
    hypervisor.ip("netns add one_tproxy_br0")
    before, after = json.loads(hypervisor.run(sys.executable, "-c", TAKEN_PORT).stdout)
    assert before >= 20
    assert 1 <= after <= 10


# Relays that all have a full message for the daemon at once, when there is room for one.
CROWDED = """
import json, os, socket
from tproxy.relay.channel import pair, receive, send
from tproxy.kernel import netns
from tproxy.daemon import relays
from tproxy.relay import wire
from tproxy.daemon.catalog import Catalog
from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint, Service, ServiceMap
from tproxy.relay.relay import BATCH

bridges = ["br0", "br1", "br2", "br3"]
catalog, loop = Catalog(), Loop()
channels = {bridge: pair() for bridge in bridges}

class Spawner:
    def spawn(self, order):
        channels[order.bridge][0].setblocking(False)
        return channels[order.bridge][0]

class Connections(list):
    def accept(self, entry, guest, peer):
        self.append(guest)

def run(seconds):
    loop.call_later(seconds, loop.stop)
    loop.run()

connections = Connections()
relays = relays.Supervisor(loop, Spawner(), catalog, connections, lambda: None)
relays.limit(BATCH + 1)
for bridge in bridges:
    catalog.apply(ServiceMap(bridge, {5030: Service(5030, Endpoint("10.11.12.13", 80))}))
    relays.ensure(bridge)
    far = channels[bridge][1]
    with netns.inside(f"one_tproxy_{bridge}"):
        guests = [socket.socket() for _ in range(BATCH)]
    send(far, wire.Hello(wire.VERSION, os.getpid()), [guests[0].fileno()])
    run(0.01)
    send(far, wire.Report(receive(far)[0].generation, {}))
    run(0.01)
    send(far, wire.Accepted(5030, (bytes(6),) * BATCH), [each.fileno() for each in guests])
taken = []
for _ in bridges:
    while not connections:
        run(0.1)
    run(0.3)
    taken.append(len(connections))
    connections.clear()
print(json.dumps([each // BATCH for each in taken]))
"""


def test_where_all_that_can_be_open_is_open_no_relay_is_heard_that_spoke_at_the_same_moment(
    hypervisor: Hypervisor,
) -> None:
    hypervisor.ip(*(f"netns add one_tproxy_br{number}" for number in range(4)))
    assert json.loads(hypervisor.run(sys.executable, "-c", CROWDED).stdout) == [1, 1, 1, 1]
