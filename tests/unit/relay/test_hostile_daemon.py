"""Whatever comes on the channel from a daemon, a relay goes on, and keeps no descriptor without need."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.relay.hostile import KINDS, PAYLOADS, open_descriptors, send_hostile
from tests.unit.relay.test_hostile_predecessor import close, turn
from tests.unit.sockets import PATIENCE
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send
from tproxy.relay.relay import Relay


@given(messages=st.lists(st.tuples(PAYLOADS, KINDS), max_size=12))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_relay_follows_the_next_daemon_whatever_the_one_before_sent(
    messages: list[tuple[bytes, list[str]]],
) -> None:
    before = open_descriptors()
    relay = Relay()
    near, far = pair()
    far.setblocking(False)  # messages of the greatest length fill the channel
    relay._greet(near)
    for payload, kinds in messages:
        send_hostile(far, payload, kinds)
        turn(relay)
        if relay._channel is None:  # the relay has cut the daemon off, and another one comes
            far.close()
            near, far = pair()
            far.setblocking(False)
            relay._greet(near)
    far.close()
    turn(relay)
    assert relay._channel is None
    ours, theirs = pair()
    theirs.settimeout(PATIENCE)
    relay._greet(ours)
    hello = receive(theirs)
    assert hello is not None
    with hello:
        assert hello.message == wire.Hello(wire.VERSION)
    send(theirs, wire.Listen(9, 20, ()))
    turn(relay)
    report = receive(theirs)
    assert report is not None
    with report:
        assert report.message == wire.Report(9, {})
    close(relay)
    theirs.close()
    assert open_descriptors() == before
