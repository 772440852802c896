"""The rates that squid's configuration has a delay pool for.

squid reads pools with its configuration only, and a change of the policy must not make it read that again: it
closes its ports meanwhile. So there is a pool for each of these steps, and a rate of the policy has the one
below it, at most a quarter slower.
"""

from __future__ import annotations

# Ten in a decade; those that people write are among them.
_STEPS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)

# From 1 kB to 2 GB a second: squid counts in 32 bits.
STEPS: tuple[int, ...] = tuple(
    step * 10**power for power in range(2, 9) for step in _STEPS if step * 10**power < 2**31
)


def step(rate: int) -> int:
    """Return the step of a rate, in bytes per second; the lowest one for those below it."""
    return max((each for each in STEPS if each <= rate), default=STEPS[0])
