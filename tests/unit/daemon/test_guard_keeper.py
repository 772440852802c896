"""Log lines of the guard keeper: guests that restart all the time cannot fill the disk with them."""

from __future__ import annotations

import logging
import time

import pytest

from tproxy.daemon.guard_keeper import LINES_AT_ONCE, GuardKeeper
from tproxy.kernel.loop import Loop

PORTS = frozenset(f"tap{number}" for number in range(1000))


@pytest.fixture
def keeper(caplog: pytest.LogCaptureFixture) -> GuardKeeper:
    caplog.set_level(logging.DEBUG, "tproxy")
    return GuardKeeper(Loop(), set)


def test_a_line_names_the_ports_that_changed_and_not_all(
    keeper: GuardKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    keeper._members = {"br0": PORTS | {"vnet0"}}
    keeper._tell("br0", PORTS | {"vnet1", "vnet2"})
    assert caplog.messages == ["bridge br0: guards follow its ports: vnet1 joined, vnet2 joined, vnet0 left"]


def test_lines_are_limited(
    keeper: GuardKeeper, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    for _ in range(LINES_AT_ONCE + 50):
        keeper._tell("br0", frozenset({"vnet0"}))
    assert len(caplog.messages) == LINES_AT_ONCE
