"""The axes on which peers are compared, and how each is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench import load
from bench.lab import BODIES
from bench.peers import HAPROXY, SOCAT, Peer

CONNECTIONS = (1, 64, 512)

# Connections over which the memory of one is measured: many, so that the processes' own memory does not
# count. A pair of socats forks two processes for each connection.
HELD, HELD_BY_SOCAT = 2000, 100
BUSY, BUSY_WITH = 64, "64 KiB answers"


@dataclass(frozen=True)
class Goal:
    """The wanted ratio of tproxy's median to another peer's median."""

    at: str  # "≥" or "≤"
    value: float
    to: str = HAPROXY

    def met(self, figure: float) -> bool:
        return figure >= self.value if self.at == "≥" else figure <= self.value


@dataclass(frozen=True)
class Axis:
    """One figure to compare. ``key`` names it in results.json; ``title`` is its row in the tables."""

    key: str
    title: str
    digits: int = 0
    goal: Goal | None = None
    summed: bool = False  # report the sum over all rounds instead of the median


def _size(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"


def _request_axes(size: int, connections: int) -> list[Axis]:
    key = f"{size}x{connections}"
    rate = {1: Goal("≥", 1.2), 64: Goal("≥", 1.15)}.get(connections) if size == 1 else None
    p99 = Goal("≤", 1.0) if (size, connections) == (1, 64) else None
    plural = "s" if connections > 1 else ""
    return [
        Axis(f"{key} rate", f"{_size(size)}, {connections} connection{plural}: requests/s", goal=rate),
        Axis(f"{key} p50", "p50, µs"),
        Axis(f"{key} p99", "p99, µs", goal=p99),
        Axis(f"{key} p999", "p99.9, µs"),
    ]


# The axes by the heading under which the page has them.
AXES: dict[str, list[Axis]] = {
    "Bulk, Gbit/s": [
        Axis("up1", "up, 1 stream", 1, Goal("≥", 2.2)),
        Axis("down1", "down, 1 stream", 1, Goal("≥", 2.0)),
        Axis("up8", "up, 8 streams", 1),
        Axis("down8", "down, 8 streams", 1),
    ],
    "New connections, 32 at a time": [
        Axis("new rate", "connections/s", goal=Goal("≥", 1.4)),
        Axis("new p50", "p50, µs"),
        Axis("new p99", "p99, µs"),
    ],
    "Requests and answers on connections that stay": [
        axis for size in BODIES for connections in CONNECTIONS for axis in _request_axes(size, connections)
    ],
    "CPU seconds, user and system, of all processes of a peer": [
        Axis("cpu up1", "per GB up", 3, Goal("≤", 0.5)),
        Axis("cpu down1", "per GB down", 3, Goal("≤", 0.5)),
        Axis("cpu new", "per 10,000 connections", 2),
        Axis("cpu 1x64", "per 10,000 requests, 64 connections", 2),
    ],
    "Memory of all processes of a peer": [
        Axis("private idle", "private, per idle connection, bytes", goal=Goal("≤", 0.15)),
        Axis("pss idle", "PSS, per idle connection, bytes"),
        Axis("private busy", f"private, per connection busy with {BUSY_WITH}, bytes"),
        Axis("pipes busy", f"capacity of pipes, per connection busy with {BUSY_WITH}, bytes"),
        Axis("private rest", "private, one bridge, no connection, MB", 2),
        Axis("pss rest", "PSS, one bridge, no connection, MB", 2),
        Axis("private relay", "private, in the bridge's namespace, MB", 2),
        Axis("pss relay", "PSS, in the bridge's namespace, MB", 2),
    ],
    "Errors that clients saw, of any kind": [Axis("errors", "all rounds", summed=True)],
    "Processor time that other virtual machines took (steal), per cent of the time that was wanted": [
        Axis("stolen", "all measurements", 1)
    ],
}

Measure = Callable[[Peer, float], dict[str, float]]


def bulk(key: str, streams: int, down: bool, peer: Peer, seconds: float) -> dict[str, float]:
    """Gbit/s of one or more streams; of a single one also the CPU seconds per GB."""
    before = peer.cpu()
    done = load.bulk(peer.guest, seconds, streams, down=down)
    figures = {key: done.gigabits}
    if streams == 1 and peer.find():
        figures[f"cpu {key}"] = (peer.cpu() - before) / done.bytes * 1e9
    return figures


def requests(size: int, connections: int, peer: Peer, seconds: float) -> dict[str, float]:
    """Requests per second, and their latencies, on connections that stay open."""
    key = f"{size}x{connections}"
    before = peer.cpu()
    done = load.requests(peer.guest, seconds, connections, size)
    figures = _latencies(key, done)
    if (size, connections) == (1, 64) and peer.find():
        figures[f"cpu {key}"] = (peer.cpu() - before) / done.count * 10_000
    return figures


def new_connections(at_once: int, peer: Peer, seconds: float) -> dict[str, float]:
    """Connections per second, with one request on each, so many at a time."""
    before = peer.cpu()
    done = load.requests(peer.guest, seconds, at_once, close=True)
    figures = _latencies("new", done)
    if peer.find():
        figures["cpu new"] = (peer.cpu() - before) / done.count * 10_000
    return figures


def _latencies(key: str, done: load.Requests) -> dict[str, float]:
    return {
        f"{key} rate": done.rate,
        f"{key} p50": done.p50,
        f"{key} p99": done.p99,
        f"{key} p999": done.p999,
        "errors": done.errors,
    }


def idle_memory(peer: Peer, _: float) -> dict[str, float]:
    """Bytes per open connection, after one request on each."""
    if not peer.find():
        return {}
    with load.holder(peer.guest) as holder:
        holder.hold(1)  # what a process allocates once, for its first connection, is not the cost of each
        rest = peer.memory()
        count = HELD_BY_SOCAT if peer.name == SOCAT else HELD
        holder.hold(count + 1)
        held = peer.memory()
    return {
        "private idle": (held.private - rest.private) / count,
        "pss idle": (held.pss - rest.pss) / count,
    }


def memory_at_rest(peer: Peer, _: float) -> dict[str, float]:
    """MB of all processes, and of those in the bridge's namespace, without a connection."""
    if not peer.find():
        return {}
    load.requests(peer.guest, 1.0, 1)  # a process that has never worked has not touched its memory yet
    rest, relay = peer.memory(), peer.relay_memory()
    return {
        "private rest": rest.private / 1e6,
        "pss rest": rest.pss / 1e6,
        "private relay": relay.private / 1e6,
        "pss relay": relay.pss / 1e6,
    }


def busy_memory(peer: Peer, seconds: float) -> dict[str, float]:
    """Bytes per connection in the middle of a load of large answers."""
    if not peer.find():
        return {}
    rest = peer.memory()
    seen: list[tuple[float, float]] = []
    load.requests(
        peer.guest,
        seconds,
        BUSY,
        BODIES[-1],
        meanwhile=lambda: seen.append((peer.memory().private - rest.private, peer.pipes())),
    )
    private, pipes = seen[0]
    return {"private busy": private / BUSY, "pipes busy": pipes / BUSY}


# Measured before the rounds, since a process does not always give back memory that it has used.
ONCE: dict[str, Measure] = {
    "memory at rest": memory_at_rest,
    "memory of busy connections": busy_memory,
    "memory of idle connections": idle_memory,
}

EACH_ROUND: dict[str, Measure] = {
    "bulk up, 1 stream": partial(bulk, "up1", 1, False),
    "bulk down, 1 stream": partial(bulk, "down1", 1, True),
    "bulk up, 8 streams": partial(bulk, "up8", 8, False),
    "bulk down, 8 streams": partial(bulk, "down8", 8, True),
    **{
        f"requests of {_size(size)} on {connections} connections": partial(requests, size, connections)
        for size in BODIES
        for connections in CONNECTIONS
    },
    "new connections": partial(new_connections, 32),
}
