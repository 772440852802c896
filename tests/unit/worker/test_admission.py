"""Admission: guests are held back while all connections are open that may be, and no longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.recorder import Recorder
from tests.unit.sockets import run_until
from tproxy.datapath.splice import MAX_PIPES
from tproxy.kernel.loop import Loop
from tproxy.relay.listening import BATCH
from tproxy.worker import admission
from tproxy.worker.admission import RESERVE, Admission, most_connections


@given(st.integers(0, 2_000_000))
def test_connections_never_need_more_descriptors_than_there_are(descriptors: int) -> None:
    most = most_connections(descriptors)
    assert most == BATCH or 2 * most <= descriptors


def test_many_descriptors_are_all_for_connections_but_for_a_reserve() -> None:
    assert most_connections(1_000_000) == (1_000_000 - RESERVE - 2 * MAX_PIPES) // 2


def test_there_is_no_room_when_a_full_batch_would_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK", 0.001)
    loop, log = Loop(), Recorder()
    connections = [0] * 10
    changes: list[bool] = []
    admitting = Admission(loop, log, 10 + BATCH, connections, lambda: changes.append(admitting.full))
    admitting.check()
    assert changes == []
    connections.append(0)
    admitting.check()
    admitting.check()
    assert changes == [True]
    assert log.messages == ["11 connections are open: no more are accepted until some have ended"]
    run_until(loop, lambda: True)
    assert changes == [True]
    connections.pop()
    run_until(loop, lambda: len(changes) == 2)
    assert changes == [True, False]
    loop.close()


def test_guests_around_the_limit_cannot_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK", 0.0)
    loop, log = Loop(), Recorder()
    connections = [0] * 11
    admitting = Admission(loop, log, 10 + BATCH, connections, lambda: None)
    for _ in range(50):
        admitting.check()
        connections.pop()
        run_until(loop, lambda: not admitting.full)
        connections.append(0)
    assert len(log.messages) == 10
    loop.close()
