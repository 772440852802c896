"""Log lines of connections that have ended: limited for each target, and counted when left out."""

from __future__ import annotations

import socket

import pytest

from tests.unit.recorder import Recorder
from tests.unit.sockets import run_until, tcp_pair
from tproxy.datapath import ended_lines, target
from tproxy.datapath.connections import Connections
from tproxy.datapath.target import Target
from tproxy.kernel.loop import Loop
from tproxy.log.file import WARNING
from tproxy.model import Endpoint, Service, ServiceKey

PEER = ("10.0.0.7", 40000)


class Flood:
    """Connections to services whose endpoint refuses."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.log = Recorder()
        self.connections = Connections(self.loop, self.log)
        self._refusing = socket.socket()
        self._refusing.bind(("127.0.0.1", 0))

    def target(self, port: int) -> Target:
        return Target("br0", Service(ServiceKey(port), Endpoint(*self._refusing.getsockname())))

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
def flood(monkeypatch: pytest.MonkeyPatch) -> Flood:
    monkeypatch.setattr(target, "LINES_AT_ONCE", 3)
    monkeypatch.setattr(target, "LINE_INTERVAL", 1000.0)
    return Flood()


def test_a_flood_writes_a_burst_of_lines_and_one_that_tells_how_many_were_left_out(
    flood: Flood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_lines, "SUMMARY", 0.05)
    flooded, quiet = flood.target(80), flood.target(81)
    flood.add(flooded, 10)
    flood.add(quiet, 2)
    run_until(flood.loop, lambda: any("more like this" in line for line in flood.log.messages))
    lines = flood.log.messages
    assert sum(" port=80 endpoint=" in line for line in lines) == 3
    assert sum(" port=81 endpoint=" in line for line in lines) == 2
    assert [line for line in lines if "more" in line] == ["bridge=br0 port=80 7 more like this"]
    assert flooded.read().total == 10
    flood.close()


def test_no_timer_runs_while_nothing_is_left_out(flood: Flood) -> None:
    flood.add(flood.target(80), 3)
    assert flood.connections.lines._timer is None
    flood.close()


def test_the_count_starts_anew_after_each_summary(flood: Flood) -> None:
    flooded = flood.target(80)
    for count in (5, 4):
        flood.add(flooded, count)
        flood.connections.lines.summarize()
    summaries = [line for line in flood.log.messages if "more" in line]
    assert summaries == ["bridge=br0 port=80 2 more like this", "bridge=br0 port=80 4 more like this"]
    assert flood.connections.lines._timer is None
    flood.close()


def test_workers_share_the_limit_of_lines() -> None:
    alone, one_of_four = (
        Target("br0", Service(ServiceKey(80), Endpoint("192.0.2.1", 80)), sharers=n) for n in (1, 4)
    )
    count = target.LINES_AT_ONCE + 1
    assert sum(alone.lines.allows(0.0) for _ in range(count)) == target.LINES_AT_ONCE
    assert sum(one_of_four.lines.allows(0.0) for _ in range(count)) == target.LINES_AT_ONCE // 4
    an_hour = [3600.0 + 0.5 * step for step in range(7200)]
    assert sum(map(alone.lines.allows, an_hour)) <= 4 * sum(map(one_of_four.lines.allows, an_hour)) + 200


def test_below_the_level_of_info_no_line_is_written(flood: Flood) -> None:
    flood.log.level = WARNING
    flood.add(flood.target(80), 3)
    assert flood.log.messages == []
    flood.close()
