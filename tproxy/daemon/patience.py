"""Decides when a relay hangs, so that neither a bridge nor a hook waits for it for ever.

A relay that sleeps, is stopped, or waits for what never comes is given up soon. One that runs, as the kernel
says, has more time: then the host is busy, or the relay is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tproxy.daemon.link import Link
from tproxy.kernel.loop import Loop

# Seconds that a relay may take to report what it was asked for, or to say Hello if it was there before.
REPORT = 3.0

# Seconds that a new relay may take to say Hello, and one that runs to report. A busy host that starts
# hundreds at once needs some of them.
GREETING = 30.0

# Seconds between two looks at a relay that has not said Hello.
LOOK = 1.0

# Seconds between the last two looks. The daemon may have been behind itself: then it hears meanwhile what the
# relay has said.
LAST_LOOK = 0.1


class Patience:
    """Calls ``give_up`` with a relay that hangs, and what it does not do.

    ``present`` says whether the link still is of interest.
    """

    def __init__(
        self, loop: Loop, present: Callable[[Link], bool], give_up: Callable[[Link, str], None]
    ) -> None:
        self._loop = loop
        self._present = present
        self._give_up = give_up

    def await_hello(self, link: Link) -> None:
        """Give the relay up if it does not say Hello. Every new daemon would find it again."""
        self._loop.call_later(REPORT, lambda: self._look_for_hello(link))

    def await_report(self, link: Link) -> None:
        """Give the relay up if it does not report what it was asked for last."""
        generation = link.generation
        self._loop.call_later(REPORT, lambda: self._look_for_report(link, generation, GREETING))

    def _look_for_hello(self, link: Link, *, last: bool = False) -> None:
        if link.greeted or link.killed or not self._present(link):
            return
        now = time.monotonic()
        hangs = link.adopted and now - link.adopted_at >= REPORT and not link.runs
        if not hangs and now - link.since < GREETING:
            self._loop.call_later(LOOK, lambda: self._look_for_hello(link))
        elif not last:
            self._loop.call_later(LAST_LOOK, lambda: self._look_for_hello(link, last=True))
        else:
            self._give_up(link, "answer")

    def _look_for_report(self, link: Link, generation: int, left: float, *, last: bool = False) -> None:
        """``left``: the seconds for which the relay may go on to run."""
        if link.has_reported(generation) or link.killed or not self._present(link):
            return
        if not last:
            self._loop.call_later(LAST_LOOK, lambda: self._look_for_report(link, generation, left, last=True))
        elif link.runs and left > 0:
            self._loop.call_later(REPORT, lambda: self._look_for_report(link, generation, left - REPORT))
        else:
            self._give_up(link, "report")
