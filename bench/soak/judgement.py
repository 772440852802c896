"""Whether a soak went well: which losses a fault explains, and what leaked. Performs no effect.

A loss is a connection of a guest that ended in another way than it should. Only these faults explain one:

* A killed worker: its own connections are reset, and no others. The host noted which these were.
* An endpoint that is away: connections to it are reset from then until it is back.
* A bridge that is taken down: all connections of its guests, until it is up again.

Bytes that are not those that were sent are never explained; neither is a loss when the daemon, a relay, the
spawner or the watcher was killed, on restart, reload, or when a map was changed.

A leak is a figure that is higher at the end, without traffic, than at the beginning; or memory that grew from
the first quarter to the last one of the time in which no process was replaced.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A guest sees the end of an outage later: its SYN may be lost, and is sent again after a second.
GRACE = 1.5  # seconds

# Private memory, in MB, that processes may have more at the end: what a process allocates once, for its
# first connections, it keeps. And how much they may grow while none is replaced.
KEPT, GROWTH = 16.0, 4.0

# Pipes that a worker keeps for the next bulk, at most; here are two workers (tproxy/datapath/splice.py).
KEPT_PIPES = 2 * 112

# EPIPE is none of these: it says that the peer's end of file came before its reset (tcp_reset in Linux).
_RESETS = ("ECONNRESET", "ECONNREFUSED")
_LOST_WITH_THE_BRIDGE = (*_RESETS, "EHOSTUNREACH", "timeout")


class Connection(NamedTuple):
    """A guest's connection, as the host sees it."""

    bridge: str
    address: str
    port: int


@dataclass(frozen=True)
class Loss:
    kind: str
    connection: Connection
    service: int  # the service port
    began: float  # seconds of the monotonic clock, as all times here
    ended: float
    error: str


@dataclass(frozen=True)
class Event:
    """A fault or a command. ``end`` is when its effect was over: a killed process had a successor."""

    name: str
    begin: float
    end: float
    connections: frozenset[Connection] = frozenset()  # that a killed worker carried
    service: int = 0  # whose endpoint was away
    bridge: str = ""  # that was taken down

    def explains(self, loss: Loss) -> bool:
        if loss.error.startswith("damaged"):
            # A killed worker and a bridge that is gone reset, and never end: that would be silent truncation.
            return False
        if self.connections:
            return loss.connection in self.connections and loss.error in _RESETS
        overlaps = loss.began <= self.end + GRACE and loss.ended >= self.begin
        if self.service:
            return loss.service == self.service and loss.error in _RESETS and overlaps
        if self.bridge:
            return loss.connection.bridge == self.bridge and loss.error in _LOST_WITH_THE_BRIDGE and overlaps
        return False


class Sample(NamedTuple):
    """Figures of the host at a time. The key says what, and of which processes."""

    time: float
    figures: Mapping[str, float]


# Keys that begin so are judged with tolerance.
MEMORY = "private memory"  # in MB
PIPES = "pipes"


@dataclass(frozen=True)
class Judgement:
    explained: Mapping[str, int]  # losses by the name of the event
    unexplained: Sequence[Loss]
    leaks: Sequence[str]

    @property
    def well(self) -> bool:
        return not self.unexplained and not self.leaks


def judge(
    losses: Sequence[Loss],
    events: Sequence[Event],
    before: Sample,
    after: Sequence[Sample],
    steady: Sequence[Sample],
) -> Judgement:
    """``before`` and those of ``after`` are without traffic; ``steady`` while no process was replaced."""
    explained: dict[str, int] = {}
    unexplained = []
    for loss in losses:
        event = next((event for event in events if event.explains(loss)), None)
        if event is None:
            unexplained.append(loss)
        else:
            explained[event.name] = explained.get(event.name, 0) + 1
    left = [leak for sample in after for leak in left_over(before, sample)]
    return Judgement(explained, unexplained, [*left, *growth(steady)])


def left_over(before: Sample, after: Sample) -> list[str]:
    """Return the objects that are there at the end and were not there at the beginning."""
    found = []
    for key, figure in after.figures.items():
        at_first = before.figures.get(key, 0.0)
        allowed = KEPT if key.startswith(MEMORY) else KEPT_PIPES if key.startswith(PIPES) else 0
        if figure > at_first + allowed:
            found.append(f"{key}: {figure:g}, at the beginning {at_first:g}")
    return found


def growth(samples: Sequence[Sample]) -> list[str]:
    """What grew under an even load: medians of the last quarter by those of the first one.

    Everything but memory changes with the traffic, and shows as what is left over.
    """
    quarter = len(samples) // 4
    if quarter < 3:
        return []  # too few to tell a leak from what is allocated once
    found = []
    for key in samples[0].figures:
        if not key.startswith(MEMORY):
            continue
        first, last = (
            statistics.median(sample.figures.get(key, 0.0) for sample in part)
            for part in (samples[:quarter], samples[-quarter:])
        )
        if last > first + GROWTH:
            found.append(f"{key} grew from {first:.1f} to {last:.1f}")
    return found
