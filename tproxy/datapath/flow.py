"""One direction of a connection as a state. Pure: callers perform the I/O and report it here.

The rules that make half-close and backpressure right:

* Read only when nothing is held. A pipe fills by slots, not by bytes, so reading into one that is
  not empty can say EAGAIN while the source stays readable, and a level-triggered poll would spin.
  It is also the whole of backpressure: what is held is bounded by one read.
* FIN goes out only behind the last byte, and once.
* The two directions know nothing of each other; a connection is over when both have sent FIN.
"""

from __future__ import annotations

import select

# EPOLLRDHUP: with it an event tells that the end of file is behind the data (epoll_ctl(2)).
_READABLE = select.EPOLLIN | select.EPOLLRDHUP


class Direction:
    """``held`` bytes are read but not yet written; ``moved`` bytes have been written."""

    __slots__ = ("ended", "fin_sent", "held", "moved")

    def __init__(self) -> None:
        self.held = 0
        self.moved = 0
        self.ended = False
        self.fin_sent = False

    @property
    def wants_read(self) -> bool:
        return not self.ended and not self.held

    @property
    def fin_due(self) -> bool:
        return self.ended and not self.held and not self.fin_sent


def interest(reading: Direction, writing: Direction) -> int:
    """What to poll a socket for, given the direction it feeds and the direction that feeds it.

    Epoll reports resets and hang-ups whether asked for or not, and a socket on which FIN has gone both ways
    is hung up for ever while its last bytes wait elsewhere. So where there is nothing to ask for it is
    edge-triggered: told once, and a reset that comes later is told as well.
    """
    mask = 0
    if reading.wants_read:
        mask |= _READABLE
    if writing.held:
        mask |= select.EPOLLOUT
    return mask or select.EPOLLET
