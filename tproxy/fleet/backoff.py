"""How long a client waits after failures: longer each time, and at random, so that not all come back at once.

The way is "full jitter": any time up to a bound that doubles with each failure. A fleet that loses its store
then comes back spread over the bound, and not in waves.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST = 1.0  # seconds: the bound of the first wait
MOST = 60.0


class Backoff:
    """Waits after failures in a row. ``chance`` returns a number of 0 to 1."""

    def __init__(
        self, first: float = FIRST, most: float = MOST, chance: Callable[[], float] = random.random
    ) -> None:
        self._first, self._most, self._chance = first, most, chance
        self._failures = 0

    def reset(self) -> None:
        """Begin anew after a success."""
        self._failures = 0

    def next(self) -> float:
        """Return how many seconds to wait after one more failure."""
        bound = min(self._first * 2.0 ** min(self._failures, 30), self._most)
        self._failures += 1
        return bound * self._chance()


def spread(seconds: float, chance: Callable[[], float] = random.random) -> float:
    """Return a time near this one, for what each host of a fleet does now and then."""
    return seconds * (0.75 + 0.5 * chance())
