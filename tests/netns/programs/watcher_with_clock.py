"""A watcher whose clock tests put forward: ``watcher_with_clock.py running|standing CONFIGURATION``.

A running clock goes on by itself, too. With a standing clock, time passes only as far as it is put forward.
Each line of the program's input is a number of seconds to put the clock forward. The watcher then does
everything that is due in that time, one after the other, and prints ``done``. In all other respects it is
``tproxy watch``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from tproxy.kernel.loop import READ, Loop
from tproxy.watch import watcher

# Seconds that the clock goes on in each turn of the loop: less than any time for which the watcher waits.
STEP = 0.1


class Clock:
    """The watcher's time, in seconds."""

    def __init__(self, running: Callable[[], float]) -> None:
        self._running = running
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._running() + self.ahead


class Control:
    """Puts the clock forward as standard input says."""

    def __init__(self, loop: Loop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._left = 0.0  # seconds
        loop.add(sys.stdin.fileno(), READ, self)

    def on_event(self, fd: int, mask: int) -> None:
        line = os.read(fd, 100)
        if not line:
            self._loop.remove(fd)
            return
        self._left = float(line)
        self._go_on()

    def _go_on(self) -> None:
        """Each turn of the loop handles events and timers before the clock goes on."""
        if self._left <= 0:
            print("done", flush=True)
            return
        step = min(STEP, self._left)
        self._left -= step
        self._clock.ahead += step
        self._loop.call_later(0, self._go_on)


def main() -> None:
    how, configuration = sys.argv[1:]
    clock = Clock({"running": time.monotonic, "standing": lambda: 0.0}[how])
    loop = Loop(clock=clock)
    Control(loop, clock)
    watcher.run(configuration, None, None, loop=loop)


main()
