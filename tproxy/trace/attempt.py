"""One attempt of a guest: what all kinds have in common. Pure.

Theory of operation. An attempt hears of frames at four places: the guest's port and ours, each in both
directions. It hears of drops, and of what workers tell. It says a line for each step, and at its end one line
that says how it went. It never concludes what was not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tproxy.trace.frames import Frame
from tproxy.trace.line import FAILED, GOOD, OPEN

# Where a frame was seen: it came from the guest; the bridge gave it to our port; our port brought it; the
# bridge gave it to the guest.
FROM_GUEST, TO_US, FROM_US, TO_GUEST = "from-guest", "to-us", "from-us", "to-guest"

# Seconds without anything new after which an attempt that was not answered has failed. A guest sends its
# second SYN after one second, and its third after two more.
PATIENCE = 3.0

_MOST_LINES = 40  # of one attempt, besides its end

Say = Callable[[str, str], None]  # an event, as a word for programs, and the text


class Link(NamedTuple):
    """What is known of the way: our port, and whether rules are traced; otherwise why not."""

    bridge: str
    ours: str
    untraced: str = ""


class Missing(NamedTuple):
    """Which news may be missing, and why: of frames and drops, and of workers. "" for none."""

    frames: str = ""
    workers: str = ""

    def __bool__(self) -> bool:
        return bool(self.frames or self.workers)

    def __str__(self) -> str:
        return self.frames or self.workers


class Attempt:
    """``link`` is the way from guest to namespace. ``port`` is the guest's port of the bridge."""

    kind = ""

    def __init__(
        self, link: Link, port: str, first: Frame, at: float, say: Callable[[float, str, str], None]
    ):
        self.link = link
        self.port = port
        self.first = first
        self.started = self.touched = self.progressed = self.now = at
        self.outcome = ""
        self.text = ""  # of its end
        self.dropped = ""  # how the last frame of the guest was dropped
        self.answer_dropped = ""
        self._say = say
        self._lines = 0

    def say(self, event: str, text: str) -> None:
        """Say a line, unless there were too many."""
        if not event.endswith("-again"):
            self.progressed = self.touched
        self._lines += 1
        if self._lines < _MOST_LINES:
            self._say(self.now - self.started, event, text)
        elif self._lines == _MOST_LINES:
            self._say(self.now - self.started, "more", "more of the same is not shown")

    def touch(self, at: float) -> None:
        """Note that there is news, of this time."""
        self.now = max(self.now, at)
        self.touched = max(self.touched, at)

    def end(self, outcome: str, text: str) -> None:
        if not self.outcome:
            self.outcome, self.text = outcome, text

    def good(self, text: str) -> None:
        self.end(GOOD, text)

    def failed(self, text: str) -> None:
        self.end(FAILED, text)

    def cut(self) -> None:
        """End, because the trace does."""
        self.end(OPEN, "the trace ended before this did")

    def unknown(self, missing: object) -> None:
        """End, because not all news can be had."""
        self.end(OPEN, f"how it went on is not known: {missing}")

    def drop(self, frame: Frame, reason: str, *, answer: bool, at: float) -> None:
        """A frame of the guest, or an answer to it, was dropped."""
        self.touch(at)
        known = self.answer_dropped if answer else self.dropped
        if answer:
            self.answer_dropped = reason
        else:
            self.dropped = reason
        if known != reason:
            self.say("dropped", f"{'the answer was ' if answer else ''}dropped {reason}")

    def gone(self, at: float) -> None:
        """The guest's port has gone."""
        self.touch(at)
        self.say("port-gone", f"port {self.port} has left {self.link.bridge}")

    def lost_on_bridge(self) -> str:
        """Why the guest's frame did not reach our port, as far as it is known."""
        if self.dropped:
            return f"dropped {self.dropped}"
        if self.link.untraced:
            return f"it did not reach {self.link.ours}; by which rule is not known ({self.link.untraced})"
        return f"it did not reach {self.link.ours}, and no rule of nftables was seen to drop it"


def vlan_of(frame: Frame) -> str:
    return f", VLAN {frame.vlan}" if frame.vlan else ""
