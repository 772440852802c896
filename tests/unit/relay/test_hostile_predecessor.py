"""Whatever a relay hands over to its successor, that one goes on and keeps no descriptor."""

from __future__ import annotations

import socket
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.relay.hostile import KINDS, PAYLOADS, open_descriptors, send_hostile
from tests.unit.sockets import PATIENCE, run_until
from tproxy.relay.channel import pair
from tproxy.relay.relay import Relay, log


def turn(relay: Relay) -> None:
    for _ in range(3):
        run_until(relay._loop, lambda: True)


def close(relay: Relay) -> None:
    relay._passing.give_up()
    relay._passing.use([])
    relay._listening.listen(())
    if relay._channel is not None:
        relay._forget_daemon("test over")
    relay._loop.close()
    relay._rendezvous.close()
    log.close()  # of the module: a message may have brought another file


@given(messages=st.lists(st.tuples(PAYLOADS, KINDS), max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_successor_survives_whatever_the_relay_before_hands_over(
    messages: list[tuple[bytes, list[str]]],
) -> None:
    before = open_descriptors()
    relay = Relay()
    ours, theirs = pair()
    ours.settimeout(PATIENCE)
    theirs.setblocking(False)  # messages of the greatest length fill the channel
    for payload, kinds in messages:
        send_hostile(theirs, payload, kinds)
    with theirs, suppress(OSError):
        theirs.shutdown(socket.SHUT_WR)
    relay.take_over(ours)
    turn(relay)
    close(relay)
    assert open_descriptors() == before
