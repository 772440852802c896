"""Log lines of connections that have ended: limited for each target, and counted when left out."""

from __future__ import annotations

import logging
import socket

import pytest

from tests.unit.sockets import run_until, tcp_pair
from tproxy.datapath import ended_lines, target
from tproxy.datapath.connection import Connections
from tproxy.datapath.target import Target
from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint, Service

PEER = socket.inet_aton("10.0.0.7") + (40000).to_bytes(2, "big")


class Flood:
    """Connections to services whose endpoint refuses."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.connections = Connections(self.loop)
        self._refusing = socket.socket()
        self._refusing.bind(("127.0.0.1", 0))

    def target(self, port: int) -> Target:
        return Target("br0", Service(port, Endpoint(*self._refusing.getsockname())))

    def add(self, target: Target, count: int) -> None:
        for _ in range(count):
            far, near = tcp_pair()
            far.close()
            self.connections.accept(target, socket.SocketType(fileno=near.detach()), PEER)
        run_until(self.loop, lambda: not self.connections)

    def close(self) -> None:
        self._refusing.close()
        self.loop.close()


@pytest.fixture
def flood(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Flood:
    monkeypatch.setattr(target, "LINES_AT_ONCE", 3)
    monkeypatch.setattr(target, "LINE_INTERVAL", 1000.0)
    caplog.set_level(logging.DEBUG, "tproxy")
    return Flood()


def test_a_flood_writes_a_burst_of_lines_and_one_that_tells_how_many_were_left_out(
    flood: Flood, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_lines, "SUMMARY", 0.05)
    flooded, quiet = flood.target(80), flood.target(81)
    flood.add(flooded, 10)
    flood.add(quiet, 2)
    run_until(flood.loop, lambda: "more like this" in caplog.text)
    lines = [record.message for record in caplog.records if record.name.startswith("tproxy.datapath")]
    assert sum(" port=80 endpoint=" in line for line in lines) == 3
    assert sum(" port=81 endpoint=" in line for line in lines) == 2
    assert [line for line in lines if "more" in line] == ["bridge=br0 port=80 7 more like this"]
    assert flooded.total == 10
    flood.close()


def test_no_timer_runs_while_nothing_is_left_out(flood: Flood) -> None:
    flood.add(flood.target(80), 3)
    assert flood.connections.lines._timer is None
    flood.close()


def test_the_count_starts_anew_after_each_summary(flood: Flood, caplog: pytest.LogCaptureFixture) -> None:
    flooded = flood.target(80)
    for count in (5, 4):
        flood.add(flooded, count)
        flood.connections.lines.summarize()
    summaries = [record.message for record in caplog.records if "more" in record.message]
    assert summaries == ["bridge=br0 port=80 2 more like this", "bridge=br0 port=80 4 more like this"]
    assert flood.connections.lines._timer is None
    flood.close()
