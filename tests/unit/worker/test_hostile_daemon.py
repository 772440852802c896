"""Whatever comes on the channel from a daemon, a worker goes on, and keeps no descriptor without need."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.relay.hostile import KINDS, open_descriptors, send_hostile
from tests.unit.sockets import PATIENCE, run_until
from tests.unit.worker.test_orders import messages as sensible
from tproxy.log.file import Log
from tproxy.relay.channel import pair, receive, send_bytes
from tproxy.relay.wire import MAX_BYTES
from tproxy.worker import orders
from tproxy.worker.worker import Worker

ENCODED = st.one_of(sensible, st.just(orders.Meeting())).map(orders.encode)
PAYLOADS = st.one_of(
    ENCODED,
    st.binary(max_size=60),
    st.tuples(
        st.sampled_from([b"S", b"P", b"B", b"F", b"L", b"M", b"Q", b"s", b"D"]), st.binary(max_size=90)
    ).map(b"".join),
    st.tuples(ENCODED, st.integers(0, 60)).map(lambda each: each[0][: each[1]]),  # partial
    st.tuples(ENCODED, st.binary(min_size=1, max_size=60)).map(b"".join),
    st.sampled_from([b"P", b"S", b"M"]).map(lambda kind: kind.ljust(MAX_BYTES + 9, b"\0")),
)


class Hostile:
    """A worker in this process, and the channel to it."""

    def __init__(self) -> None:
        meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        meeting.bind("")  # unix(7): to an abstract name that nobody else has
        meeting.listen()
        self.worker = Worker(meeting, Log())
        self.worker._loop.add(meeting.fileno(), 1, self.worker)
        self.channel = self.follow()

    def follow(self) -> socket.socket:
        """Have the worker follow another daemon; return the channel to it."""
        theirs, ours = pair()
        ours.setblocking(False)
        self.worker._greet(theirs)
        return ours

    def turn(self) -> None:
        for _ in range(3):
            run_until(self.worker._loop, lambda: True)

    def say(self, payload: bytes, kinds: list[str]) -> None:
        send_hostile(self.channel, payload, kinds)
        self.turn()
        if self.worker._channel is None:
            self.channel.close()
            self.channel = self.follow()

    def is_obeyed(self) -> bool:
        """Whether the worker does what another daemon says."""
        self.channel.close()
        self.turn()
        self.channel = self.follow()
        self.channel.settimeout(PATIENCE)
        ready = receive(self.channel, orders.decode)
        assert ready is not None
        with ready:
            assert isinstance(ready.message, orders.Ready)
        send_bytes(self.channel, orders.encode(orders.Sync(9, True)))
        self.turn()
        synced = receive(self.channel, orders.decode)
        assert synced is not None
        return synced.message == orders.Synced(9)

    def close(self) -> None:
        worker = self.worker
        for intake in list(worker._intakes):
            worker.ended(intake)
        worker._forget_daemon()
        worker._loop.close()
        worker._meeting.close()
        worker._log.close()
        os.close(worker._counters.fd)
        self.channel.close()


@given(said=st.lists(st.tuples(PAYLOADS, KINDS), max_size=12))
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_a_worker_obeys_the_next_daemon_whatever_the_one_before_sent(
    monkeypatch: pytest.MonkeyPatch, said: list[tuple[bytes, list[str]]]
) -> None:
    monkeypatch.setattr("tproxy.worker.worker.set_title", lambda _: None)  # this process is no worker
    before = open_descriptors()
    hostile = Hostile()
    for payload, kinds in said:
        hostile.say(payload, kinds)
    assert hostile.is_obeyed()
    hostile.close()
    del hostile
    assert open_descriptors() == before
