"""The state of one direction of a connection. It performs no I/O: callers do, and set the state.

The rules for half-close and backpressure:

* Read only when nothing is held. A pipe fills by slots, not by bytes, so reading into a pipe that is not
  empty can return EAGAIN while the source stays readable, and a level-triggered poll would spin. This rule is
  also the whole of backpressure: a direction never holds more than one read.
* Send FIN once, after the last byte.
* The two directions know nothing of each other. A connection is over when both have sent FIN.
"""

from __future__ import annotations

import select

# EPOLLRDHUP: the event says whether the end of file follows the data, epoll_ctl(2).
_READABLE = select.EPOLLIN | select.EPOLLRDHUP


class Direction:
    """One direction of a connection.

    ``held`` bytes are read but not yet written; ``moved`` bytes have been written, of which ``counted`` ones
    are in the counts of the target. ``ended`` is set at the end of file of the source.
    """

    __slots__ = ("counted", "ended", "fin_sent", "held", "moved")

    def __init__(self) -> None:
        self.held = 0
        self.moved = 0
        self.counted = 0
        self.ended = False
        self.fin_sent = False

    @property
    def wants_read(self) -> bool:
        return not self.ended and not self.held

    @property
    def fin_due(self) -> bool:
        return self.ended and not self.held and not self.fin_sent


def interest(reading: Direction, writing: Direction) -> int:
    """Return the epoll mask of a socket. ``reading`` is the direction it feeds, ``writing`` the other one.

    Epoll always reports resets and hang-ups. A socket that has sent and received FIN stays hung up while its
    last bytes wait elsewhere, so a level-triggered poll would spin. So a socket with nothing to ask for is
    polled edge-triggered: the hang-up is reported once, and a later reset once more.
    """
    mask = 0
    if reading.wants_read:
        mask |= _READABLE
    if writing.held:
        mask |= select.EPOLLOUT
    return mask or select.EPOLLET
