"""The actions of a soak, in their order. Performs no effect."""

from __future__ import annotations

import random
from collections.abc import Iterator

# While no process is replaced, so that what a process leaks shows as growth.
STEADY = ("reload", "map changes", "warm hook", "bridge down and up", "refresh")

# What replaces processes, or makes others answer for those that are gone.
FAULTS = (
    *("kill daemon", "kill relay", "kill worker", "kill spawner", "kill watcher"),
    *("restart", "endpoint away", *STEADY),
)

# The part of a soak without faults.
STEADY_PART = 0.35


def actions(names: tuple[str, ...], seed: int) -> Iterator[str]:
    """Yield the actions for ever: all of them in some order, then all of them in another order."""
    source = random.Random(seed)
    while True:
        yield from source.sample(names, len(names))


def pause(seconds: float) -> float:
    """Seconds between two actions: short soaks do everything once, long ones leave time to see effects."""
    return max(0.2, min(5.0, seconds / 60))
