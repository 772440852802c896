"""How long a node waits before it tries again. Pure.

Waits double, so that a gateway that is down is not asked too often; and they differ by chance, so that nodes
do not all come at once when it is up again.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST, MOST = 0.5, 30.0  # seconds
# A connection that has lasted this long was a good one.
GOOD = 20.0  # seconds


class Backoff:
    """``chance`` returns numbers from 0 to 1."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._next = FIRST

    def wait(self, lasted: float) -> float:
        """Return how many seconds to wait after a try, or a connection, that has lasted this long."""
        if lasted >= GOOD:
            self._next = FIRST
        seconds = self._next * (0.5 + self._chance())
        self._next = min(self._next * 2, MOST)
        return seconds
