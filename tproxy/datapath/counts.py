"""What is counted of one service, as values. Pure: ``counters`` keeps the numbers in shared memory.

Connections are those of TCP, or the sessions of UDP.
"""

from __future__ import annotations

from tproxy.kernel.loop import LAGS
from tproxy.typed import NamedTuple

# How a connection ended. The sum of these and of the open connections is the total. "evicted": a UDP session
# that ended to make room for another one.
OUTCOMES = (
    *("finished", "reset_by_guest", "reset_by_endpoint", "lost", "dial_failed"),
    *("limited", "timed_out", "stopped", "worker_lost", "killed", "evicted"),
)
FINISHED, RESET_BY_GUEST, RESET_BY_ENDPOINT, LOST, DIAL_FAILED = range(5)
LIMITED, TIMED_OUT, STOPPED, WORKER_LOST, KILLED, EVICTED = range(5, 11)

# Why a dial failed. "silent": another endpoint was dialled beside it, and answered. "forbidden": by a rule of
# this host's firewall. "local": this host had no port, descriptor or address for it.
REASONS = ("refused", "timed_out", "unreachable", "silent", "forbidden", "local")
REFUSED, DIAL_TIMED_OUT, UNREACHABLE, SILENT, FORBIDDEN, LOCAL = range(6)

# Upper bounds, in seconds. An endpoint on this host answers within the first; 5 s is the default timeout.
CONNECT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# From a single request to a console that stays open for days.
DURATION_BOUNDS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 86400.0)

# Places in ``Counts.tallies``, and the number of these.
OF_OUTCOMES = 0
OF_REASONS = OF_OUTCOMES + len(OUTCOMES)
OF_CONNECTS = OF_REASONS + len(REASONS)
OF_DURATIONS = OF_CONNECTS + len(CONNECT_BOUNDS) + 1
TALLIES = OF_DURATIONS + len(DURATION_BOUNDS) + 1

# The places of the counts in ``Record.counts``.
OPEN, TOTAL, TO_ENDPOINT, TO_GUEST, DATAGRAMS_TO_ENDPOINT, DATAGRAMS_TO_GUEST = range(6)
NUMBERS = 6

# The limits and time-outs, by the names of their options, and their places in ``Counts.limited``. "network"
# is no option: it counts callers on whose network there is no such service, or whose network is not known.
CAUSES = (
    *("max_connections_per_guest", "max_connections_per_bridge", "max_connections_to_endpoint"),
    *("max_connections", "idle_timeout", "half_closed_timeout", "user_timeout", "drain_timeout"),
    "network",
)
PER_GUEST, PER_BRIDGE, TO_ENDPOINT_LIMIT, TOTAL_LIMIT, IDLE, HALF_CLOSED, USER, DRAIN, NETWORK = range(9)

_NEVER = (0,) * len(CAUSES)
_NO_TALLIES = (0,) * TALLIES


class EndpointState(NamedTuple):
    """What a worker knows of an endpoint; ``since`` in seconds since the epoch."""

    failed: bool
    since: float
    why: str


class LoopTimes(NamedTuple):
    """How long the turns of an event loop took: their number, their seconds, and as ``loop.Loop.slow``."""

    turns: int = 0
    seconds: float = 0.0
    slow: tuple[int, ...] = (0,) * len(LAGS)

    def plus(self, other: LoopTimes) -> LoopTimes:
        slow = map(sum, zip(self.slow, other.slow, strict=True))
        return LoopTimes(self.turns + other.turns, self.seconds + other.seconds, tuple(slow))


class Counts(NamedTuple):
    """The counts of one service. Bytes of open connections are counted when the daemon asks for that.

    Datagrams are those of UDP sessions, of open ones likewise.
    """

    open: int = 0
    total: int = 0
    to_endpoint: int = 0
    to_guest: int = 0
    last_error: str = ""
    last_error_at: float = 0.0
    limited: tuple[int, ...] = _NEVER
    tallies: tuple[int, ...] = _NO_TALLIES
    connect_seconds: float = 0.0
    seconds: float = 0.0
    datagrams_to_endpoint: int = 0
    datagrams_to_guest: int = 0

    @property
    def outcomes(self) -> tuple[int, ...]:
        """Connections that have ended, in the order of OUTCOMES."""
        return self.tallies[OF_OUTCOMES:OF_REASONS]

    @property
    def dial_failures(self) -> tuple[int, ...]:
        """Dials that failed, in the order of REASONS."""
        return self.tallies[OF_REASONS:OF_CONNECTS]

    @property
    def connects(self) -> tuple[int, ...]:
        """Connections that were accepted by the endpoint, by CONNECT_BOUNDS, each counted once."""
        return self.tallies[OF_CONNECTS:OF_DURATIONS]

    @property
    def durations(self) -> tuple[int, ...]:
        """Connections that have ended, by DURATION_BOUNDS, each counted once."""
        return self.tallies[OF_DURATIONS:]

    def of_lost_worker(self, outcome: int = WORKER_LOST) -> Counts:
        """Return the counts of a worker that has ended: its open connections have, with this outcome."""
        tallies = list(self.tallies)
        tallies[OF_OUTCOMES + outcome] += self.open
        return self._replace(open=0, tallies=tuple(tallies))

    def plus(self, other: Counts) -> Counts:
        """Return the sum, with the later one of the errors."""
        later = max(self, other, key=lambda each: each.last_error_at)
        return Counts(
            self.open + other.open,
            self.total + other.total,
            self.to_endpoint + other.to_endpoint,
            self.to_guest + other.to_guest,
            later.last_error,
            later.last_error_at,
            tuple(map(sum, zip(self.limited, other.limited, strict=True))),
            tuple(map(sum, zip(self.tallies, other.tallies, strict=True))),
            self.connect_seconds + other.connect_seconds,
            self.seconds + other.seconds,
            self.datagrams_to_endpoint + other.datagrams_to_endpoint,
            self.datagrams_to_guest + other.datagrams_to_guest,
        )
