"""A relay that is asked to dial, here where nobody has the service address."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

import pytest

from tproxy.errors import ProtocolError
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive
from tproxy.relay.dialling import answer


def test_the_worker_is_told_why_no_dial_could_begin() -> None:
    ours, theirs = pair()
    with ours, theirs:
        answer(ours, wire.Dial(7, "10.0.0.5", 80), "nosuchlink")
        delivery = receive(theirs)
        assert delivery is not None
        assert delivery.fds == []
        assert delivery.message in (wire.Dialled(7, errno.ENODEV), wire.Dialled(7, errno.EPERM))


@pytest.mark.parametrize(
    "message", [wire.Dial(1 << 63, "10.0.0.5", 65535), wire.Dialled(1, errno.EHOSTUNREACH)]
)
def test_questions_and_answers_read_as_they_were_sent(message: wire.Dial | wire.Dialled) -> None:
    assert wire.decode(wire.encode(message)) == message
    with pytest.raises(ProtocolError):
        wire.decode(wire.encode(message)[:-1])


def test_a_worker_that_takes_no_answer_costs_no_descriptor() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        before = len(os.listdir("/proc/self/fd"))
        with suppress(BlockingIOError):
            while True:
                answer(ours, wire.Dial(1, "10.0.0.5", 80), "nosuchlink")
        assert len(os.listdir("/proc/self/fd")) == before
