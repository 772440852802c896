"""How much a relay or a worker may say to the daemon.

The daemon hears all of them in one loop. So one that was taken over, and sends as fast as it can, must not
cost the others more than a part of a second. What ours have to say is little, and comes in answer to what the
daemon has asked; whatever says more than that is not ours any more, and is ended.
"""

from __future__ import annotations

# Of one message, and of each descriptor beside it, in units of about 10 µs of the daemon's time.
MESSAGE, DESCRIPTOR = 16, 1

# Units at once: a relay that listens on all 65,535 ports gives copies of its sockets in 260 messages.
BURST = 100_000

# Units a second: a relay tells each 3 seconds of each of up to 64 workers that may be behind.
RATE = 1_000


class Budget:
    """A bucket of units, which fills up again with time. ``now`` is ``time.monotonic()``."""

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._then = now

    def spend(self, descriptors: int, now: float) -> bool:
        """Take the units of one message with so many descriptors; return whether they were there."""
        self._left = min(self._left + (now - self._then) * RATE, BURST)
        self._then = now
        self._left -= MESSAGE + DESCRIPTOR * descriptors
        return self._left >= 0
