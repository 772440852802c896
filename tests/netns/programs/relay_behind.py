"""A relay whose daemon does not read for a while. This process is both.

Argument: what happens while the daemon is behind, a function's name below. Prints what came of it as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from tests.unit.sockets import tcp_pair
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send
from tproxy.relay.listening import Batch
from tproxy.relay.relay import RENDEZVOUS, Relay

daemon, channel = pair()
daemon.setblocking(False)
relay = Relay()
guest, accepted = tcp_pair()


def receive_all(sock: socket.socket) -> list[str]:
    """The kinds of all messages that are there, without those with which ``stuff`` filled the channel."""
    heard = []
    with suppress(OSError):
        while delivery := receive(sock):
            with delivery:
                heard.append(type(delivery.message).__name__)
    return [each for each in heard if each != "Hello"]


def stuff() -> None:
    """Fill the channel: the relay's next message to the daemon has no room."""
    with suppress(BlockingIOError):
        while True:
            send(channel, wire.Hello(1, 1))


def hold_a_guest() -> None:
    relay._waiting = Batch(5030, (bytes(6),), [accepted.detach()])
    relay._settle()


def serve(*steps: Callable[[], object]) -> None:
    """Run the relay, and take these steps while it runs; it has its turn between any two of them."""
    left = list(steps)

    def next_step() -> None:
        left.pop(0)()
        if left:
            relay._loop.call_later(0.05, next_step)

    relay._loop.call_later(0.05, next_step)
    relay.serve(channel)


def handed_over() -> object:
    """A successor comes. Returns the messages that it gets, and those that the daemon gets afterwards."""
    successor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def come() -> None:  # and at the same moment the daemon catches up
        successor.connect(RENDEZVOUS)
        send(successor, wire.Takeover())
        receive_all(daemon)

    serve(stuff, hold_a_guest, come)
    successor.setblocking(False)
    return [receive_all(successor), receive_all(daemon)]


def reported() -> object:
    """The daemon asks, and reads later. Returns whether the channel was kept, and what the relay sends."""
    kept: list[object] = []

    def catch_up() -> None:
        kept.append(relay._channel is not None)
        receive_all(daemon)

    serve(
        stuff,
        lambda: send(daemon, wire.Listen(7, 20, ())),
        catch_up,
        lambda: kept.append(receive_all(daemon)),
        relay._loop.stop,
    )
    return kept


def told_to_end() -> object:
    """The daemon tells the relay to end. Returns what the waiting guest gets."""
    serve(stuff, hold_a_guest, lambda: send(daemon, wire.Quit()))
    try:
        return guest.recv(1).decode()
    except ConnectionResetError:
        return "reset"


print(json.dumps({each.__name__: each for each in (handed_over, reported, told_to_end)}[sys.argv[1]]()))
