"""The event loop: epoll, timers, signals, and closing descriptors at the right moment.

Theory of operation. One batch of events can contain an event for a descriptor that the handler of an earlier
event in the batch closed. If the kernel has given the number to a new descriptor since, the old event would
reach the new handler. So no registered descriptor is closed while a batch is handled: ``close_later`` forgets
the handler at once, and closes after the batch. Polling is level-triggered: a handler that leaves something
unread is called again.

A sleeping processor needs tens of microseconds to wake up, as long as an endpoint nearby needs to answer. So
a loop can be alert: while single events follow each other within ``alert`` seconds, it polls for that long
before it sleeps, and yields the processor between two polls. After a longer pause it sleeps at once, so rare
events cost no more processor time. It also sleeps after a batch of several events: then the processors are
busy, and while the loop sleeps more events gather for the next batch.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from tproxy.typed import Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PEER_CLOSED = select.EPOLLRDHUP  # a hint that the data to be read ends with the end of file
ERROR = select.EPOLLERR
HANGUP = select.EPOLLHUP

# Enough that a busy batch shares one system call, few enough that timers and signals stay prompt.
EVENTS_PER_BATCH = 256

# Seconds. Turns that take longer are counted, by these bounds (``Loop.slow``).
LAGS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)


class Handler(Protocol):
    """Is called when something happens at its descriptor."""

    def on_event(self, fd: int, mask: int) -> None:
        """Called with the registered descriptor and the epoll mask of what happened."""


class Closable(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Timer:
    """A call that happens once, unless it is cancelled before."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Runs handlers until ``stop`` is called. Not thread-safe; one loop a process.

    ``alert`` is the time in seconds to poll before sleeping, while events come that fast; 0 always sleeps.
    ``clock`` returns the time in seconds by which timers are due.

    ``turns`` counts the turns of the loop, ``busy`` the seconds that they took without waiting, and ``slow``
    those that took longer than a bound of LAGS, and not longer than the next one. An event that came at the
    beginning of a turn has waited that long.
    """

    def __init__(self, alert: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._alert = alert
        self._clock = clock
        self._brisk = False
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._closing: list[Closable] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._signals: dict[int, Callable[[], None]] = {}
        self._running = False
        self.turns = 0
        self.busy = 0.0
        self.slow = [0] * len(LAGS)
        self._woke = time.monotonic()

    # Descriptors

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``, which must be watched and open."""
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def close_later(self, closable: Closable, *, shared: bool = False) -> None:
        """Forget the descriptor now, and close it after the batch (see the module's docstring).

        ``shared`` says that another process may have a copy: epoll forgets a descriptor by itself only when
        the last copy is closed (epoll(7), Q6).
        """
        fd = closable.fileno()
        if self._handlers.pop(fd, None) is not None and shared:
            self._epoll.unregister(fd)
        self._closing.append(closable)

    # Timers and signals

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` once, this many seconds from now."""
        timer = Timer(self._clock() + seconds, call)
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def on_signal(self, number: int, call: Callable[[], None]) -> None:
        """Call ``call`` when the signal arrives: from the loop, not from the signal handler."""
        if not self._signals:
            reader, writer = socket.socketpair()
            reader.setblocking(False)
            writer.setblocking(False)
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            self._wakeup = _Wakeup(reader, writer, self._signals)
            self.add(reader.fileno(), READ, self._wakeup)
        self._signals[number] = call
        signal.signal(number, lambda *_: None)  # Python writes the number to the wake-up descriptor

    # Running

    def run(self) -> None:
        """Wait for events and call handlers and timers, until ``stop`` is called."""
        self._running = True
        self._woke = time.monotonic()
        while self._running:
            for fd, mask in self._wait():
                # A handler of an earlier event in this batch may have ended it.
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler.on_event(fd, mask)
            self._run_timers()
            self._close_now()

    def stop(self) -> None:
        """Make ``run`` return after the current batch."""
        self._running = False

    def close(self) -> None:
        """Close the loop's own descriptors. A forked child calls this on its parent's loop."""
        self._close_now()
        self._epoll.close()
        if self._signals:
            signal.set_wakeup_fd(-1)
            self._wakeup.close()

    def _wait(self) -> list[tuple[int, int]]:
        asleep = time.monotonic()
        took = asleep - self._woke
        self.turns += 1
        self.busy += took
        if took > LAGS[0]:
            self.slow[sum(took > each for each in LAGS) - 1] += 1
        if self._brisk:
            end = asleep + self._alert
            while (now := time.monotonic()) < end:
                if events := self._epoll.poll(0, EVENTS_PER_BATCH):
                    self._woke = now
                    self._brisk = len(events) == 1
                    return events
                os.sched_yield()
            asleep = now
        events = self._epoll.poll(self._timeout(), EVENTS_PER_BATCH)
        self._woke = time.monotonic()
        self._brisk = len(events) == 1 and self._woke - asleep < self._alert
        return events

    def _timeout(self) -> float:
        if self._closing:
            return 0
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - self._clock())

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()

    def _close_now(self) -> None:
        for closable in self._closing:
            closable.close()
        self._closing.clear()


class _Wakeup:
    """Reads the signal numbers that Python's signal handler wrote, and makes the calls."""

    def __init__(
        self, reader: socket.socket, writer: socket.socket, calls: dict[int, Callable[[], None]]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._calls = calls

    def on_event(self, fd: int, mask: int) -> None:
        # A signal that arrived many times causes one call, as the kernel delivers a blocked signal once.
        for number in dict.fromkeys(os.read(fd, 4096)):
            call = self._calls.get(number)
            if call is not None:
                call()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
