"""Admission: how many connections may be open at once, and whether there is room for more.

A worker has two descriptors for each connection. Before they run out, it hears of no more guests: relays then
do not accept, and guests wait in the backlog, in the kernel, until connections have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized

from tproxy.datapath.splice import MAX_PIPES
from tproxy.kernel.loop import Loop
from tproxy.log import limit
from tproxy.log.file import Log
from tproxy.relay.listening import BATCH

# Descriptors for everything that is not a connection: the log, the daemon, one for each relay.
RESERVE = 512

# Seconds between two looks for room.
LOOK = 0.1


def most_connections(descriptors: int) -> int:
    """Return how many connections may be open in a process that may have so many descriptors."""
    # Of few descriptors, only half are kept for other uses: it is unlikely that all of these come together.
    kept = min(RESERVE + 2 * MAX_PIPES, descriptors // 2)
    return max((descriptors - kept) // 2, BATCH)  # with less, no message of a relay could be taken


def most_sessions(connections: int) -> int:
    """Return how many UDP sessions may be open where so many connections may be.

    A session has one descriptor, so these take an eighth of all.
    """
    return max(connections // 4, 1)


class Used:
    """What the descriptors are used for, counted in connections, which have two each."""

    def __init__(self, connections: Sized, sessions: Sized) -> None:
        self._connections = connections
        self._sessions = sessions
        self.inward: Sized = ()

    def __len__(self) -> int:
        return len(self._connections) + (len(self._sessions) + 1) // 2 + len(self.inward)


class Admission:
    """Says whether there is room for another full message of a relay.

    ``connections`` are those that are open. ``changed`` is called whenever ``full`` has changed.
    """

    def __init__(
        self, loop: Loop, log: Log, most: int, connections: Sized, changed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._most = most
        self._connections = connections
        self._changed = changed
        self._warnings = limit.warnings()  # guests can open and end connections around the limit for ever
        self.full = False

    def check(self) -> None:
        """Look whether there is room left; to be called when connections have been added."""
        if not self.full and self._is_full():
            if self._warnings.allows(time.monotonic()):
                self._log.warning(
                    "%d connections are open: no more are accepted until some have ended%s",
                    len(self._connections),
                    self._warnings.suffix(),
                )
            self._set(full=True)
            self._loop.call_later(LOOK, self._look_for_room)

    def _look_for_room(self) -> None:
        if self._is_full():
            self._loop.call_later(LOOK, self._look_for_room)
        else:
            self._set(full=False)

    def _is_full(self) -> bool:
        return len(self._connections) + BATCH > self._most

    def _set(self, *, full: bool) -> None:
        self.full = full
        self._changed()
