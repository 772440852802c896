"""Streams: two ends that pass bytes to each other, each a channel of SSH or a socket of asyncio.

Theory of operation. Channels and sockets call the same methods: ``connection_made``, ``data_received``,
``eof_received``, ``pause_writing``, ``connection_lost``. An end does not read until it is joined. Then what
one end reads is written to the other. When the other can take no more, it pauses the reading of this one: a
socket's kernel buffer fills, or a channel's window. So an end holds at most one window and one write buffer.
A peer may give its channels any window and then not read: so the connection below a channel has a limit too.
The two directions end independently; the stream is over when both have ended, or one end is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Bytes that a sender may have under way on a channel: what an end holds at most. At 50 ms of round trip this
# allows 10 MB/s for a stream.
WINDOW = 512 * 1024

# Bytes that a connection of SSH may hold for its peer. What is more waits, and is looked at again so often.
MOST_UNSENT = 1024 * 1024
_AGAIN = 0.02  # seconds

# Seconds that a stream may be silent of which one direction has ended, as `half_closed_timeout` of services:
# a UNIX socket does not tell that its peer has gone.
HALF_CLOSED = 300.0

Ended = Callable[["End"], None]


class End(asyncio.Protocol):
    """One end of a stream. ``ended`` is called once, when this end is lost."""

    def __init__(self, ended: Ended | None = None) -> None:
        self.transport: Any = None  # a transport of asyncio, or a channel of SSH, which has the same methods
        self.other: End | None = None
        self.received = 0  # bytes
        self.ended = ended
        self._early: list[bytes] = []  # what came before the stream was joined: a packet or two
        self._full = False  # the transport takes no more for now
        self._waits = False  # the connection below holds too much
        self._eof = False
        self._lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.other is None or self.other.transport is None:
            transport.pause_reading()
        else:
            self._begin()
            self.other._begin()

    def session_started(self) -> None:
        """A channel of SSH calls it: nothing is to be done."""

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        self.received += len(data)
        if self.other is None or self.other.transport is None:
            self._early.append(data)
            self.transport.pause_reading()
        else:
            self.other._write(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self.other is not None and self.other.transport is not None:
            self._pass_eof(self.other)
        return True  # this end can still write

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        if self.other is not None and self.other.transport is not None and not self.other._lost:
            # What was read before is still to be written, unless this end was reset.
            self.other.transport.close() if error is None else self.other.transport.abort()
        if self.ended:
            self.ended(self)

    def pause_writing(self) -> None:
        self._full = True
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        known = self.other is not None and self.other.transport is not None and not self.other._lost
        if known and not self._waits:
            assert self.other is not None
            self.other.transport.resume_reading()

    def close(self) -> None:
        """End the stream, at once."""
        for each in (self, self.other):
            if each is not None and each.transport is not None and not each._lost:
                each.transport.abort()

    def push_back(self, data: bytes) -> None:
        """Have the other end get these bytes first, which came at this one before it was joined."""
        if data:
            self._early.insert(0, data)

    def _begin(self) -> None:
        """Read from now on; both ends have their transports."""
        assert self.other is not None
        for data in self._early:
            self.other._write(data)
        self._early.clear()
        if self._lost:
            self.other.transport.close()
            return
        if self._eof:
            self._pass_eof(self.other)
        self.transport.resume_reading()

    def _write(self, data: bytes) -> None:
        # A channel that its peer has closed raises BrokenPipeError, and will say that it is lost.
        with suppress(OSError):
            self.transport.write(data)
        if self._is_congested() and not self._waits and self.other is not None:
            self._waits = True
            self.other.transport.pause_reading()
            asyncio.get_running_loop().call_later(_AGAIN, self._look_again)

    def _is_congested(self) -> bool:
        """Whether the connection of SSH below this channel holds too much."""
        # asyncssh ignores the signs of its connection's transport, and has no public way to it.
        connection = self.transport.get_extra_info("connection")
        below = getattr(connection, "_transport", None)
        return below is not None and below.get_write_buffer_size() > MOST_UNSENT

    def _look_again(self) -> None:
        self._waits = False
        if self._lost or self.other is None or self.other._lost:
            return
        if self._is_congested():
            self._waits = True
            asyncio.get_running_loop().call_later(_AGAIN, self._look_again)
        elif not self._full:
            self.other.transport.resume_reading()

    def _pass_eof(self, other: End) -> None:
        with suppress(OSError):  # it is lost already
            other.transport.write_eof()
        if other._eof:
            self.transport.close()
            other.transport.close()
        else:
            asyncio.get_running_loop().call_later(HALF_CLOSED, self._give_up, other, other.received)

    def _give_up(self, other: End, before: int) -> None:
        """End a stream whose other direction has been silent since this one ended."""
        if self._lost or other._lost or other._eof:
            return
        if other.received == before:
            self.close()
        else:
            asyncio.get_running_loop().call_later(HALF_CLOSED, self._give_up, other, other.received)


def join(one: End, two: End) -> None:
    """Have two ends pass bytes to each other, as soon as both have their transports."""
    one.other, two.other = two, one
    if one.transport is not None and two.transport is not None:
        one._begin()
        two._begin()
