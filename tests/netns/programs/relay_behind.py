"""A relay whose daemon does not read for a while. This process is both. Prints what came of it as JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress

from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send
from tproxy.relay.relay import Relay

daemon, channel = pair()
daemon.setblocking(False)
relay = Relay()


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


def serve(*steps: Callable[[], object]) -> None:
    """Run the relay, and take these steps while it runs; it has its turn between any two of them."""
    left = list(steps)

    def next_step() -> None:
        left.pop(0)()
        if left:
            relay._loop.call_later(0.05, next_step)

    relay._loop.call_later(0.05, next_step)
    relay.serve(channel)


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


print(json.dumps(reported()))
