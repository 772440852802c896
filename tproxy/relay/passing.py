"""Passes accepted sockets on to the workers, each guest's to the same one, and fairly between guests.

Which worker serves a guest follows from the guest's address. So what is counted for a guest is counted in one
place, a bridge with many guests uses all workers, and a guest that asks for too much holds up only the worker
that it has.

A worker that is behind leaves its channel full. Then the sockets for it wait here, in a queue for each guest,
and the guests take turns. The channel is kept short, because what is in it is passed on in the order in which
it came. The relay goes on accepting: the backlog is in that order too, and once it is full the kernel drops
everybody's SYNs, which costs each guest a second. When MOST_WAITING sockets wait, the guest with the most of
them gets a reset for the newest one.

A channel without a reader is dropped, and the guests of that worker go to the next one. While a worker or the
daemon still has the other end open, a channel is never without a reader.
"""

import array
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable

from tproxy.errors import ProtocolError
from tproxy.kernel.limits import descriptor_limit
from tproxy.kernel.loop import READ, WRITE, Loop
from tproxy.log.file import Log
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import receive, send
from tproxy.relay.dialling import answer
from tproxy.relay.listening import BATCH, QUIET, Batch

# Sockets that wait for workers in this process, at most: twice the backlog, since a guest that opens some
# thousand connections at once while its worker is busy should get them all.
MOST_WAITING = 8192

# The size of a channel, for setsockopt(2): the kernel's minimum, which is six or seven messages. A worker
# takes the 400 sockets in them in 25 ms.
CHANNEL_BYTES = 0

# Seconds until the daemon is told that a worker may have taken no sockets. It asks the worker (worker_link).
BEHIND = 3.0

_SIOCOUTQ = 0x5411  # <linux/sockios.h>: what was sent and not received, tcp(7); here with its overhead

# Seconds until another try, after the kernel said that too many descriptors are in flight (ETOOMANYREFS,
# unix(7)): no event tells when a worker has taken some.
TOO_MANY_PAUSE = 0.01


class Outlet:
    """The data channel to one worker, and the sockets that wait for it."""

    def __init__(self, place: int, channel: socket.socket) -> None:
        self.place = place
        self.channel = channel
        self.next: Batch | None = None  # is sent before all that waits
        self.waiting: dict[bytes, list[tuple[ServiceKey, int]]] = {}  # by guest, in turns
        self.polled = False  # whether an event tells when the channel has room
        self.judged = False  # whether a timer looks at it

    @property
    def unread(self) -> bool:
        """Whether the worker has not received all that was sent."""
        return bool(array.array("i", fcntl.ioctl(self.channel, _SIOCOUTQ, bytes(4)))[0])

    def choose(self) -> Batch | None:
        """Return the batch to send next, which stays ``next`` until it is sent; None when nothing waits."""
        if self.next is None and self.waiting:
            self.next = self._gather()
        return self.next

    def drain(self) -> list[Batch]:
        """Return all that waits; it is the caller's."""
        batches = []
        while (batch := self.choose()) is not None:
            batches.append(batch)
            self.next = None
        return batches

    def _gather(self) -> Batch:
        """Return a batch with equal parts for guests that wait. Those in it have their next turn last."""
        part = max(BATCH // len(self.waiting), 1)
        key = next(iter(self.waiting.values()))[0][0]  # a message is about one port
        guests: list[bytes] = []
        fds: list[int] = []
        served = []
        for guest, queue in self.waiting.items():
            some = []
            for each, fd in queue[:part]:
                if each != key:
                    break
                some.append(fd)
            if some:
                del queue[: len(some)]
                fds += some
                guests += [guest] * len(some)
                served.append(guest)
                if len(fds) >= BATCH:
                    break
        for guest in served:
            if queue := self.waiting.pop(guest):
                self.waiting[guest] = queue
        return Batch(key, tuple(guests), fds)


class Passing:
    """All data channels of a relay.

    ``changed`` is called when ``room`` may have changed, and ``behind`` with the place of a worker that may
    have taken nothing for some seconds.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        changed: Callable[[], None],
        behind: Callable[[int], None],
        link: str = "",
    ) -> None:
        self._link = link
        self._loop = loop
        self._log = log
        self._changed = changed
        self._behind = behind
        self._outlets: list[Outlet | None] = []  # None: nobody has the other end any more
        self._places: dict[int, Outlet] = {}  # by descriptor
        self._orphans: list[Batch] = []  # accepted by a predecessor, and there is no worker yet
        self._most = min(MOST_WAITING, descriptor_limit() // 2)
        self._held = 0  # sockets that wait
        self._refusals = 0  # since the last warning
        self._warned = -QUIET  # when, by time.monotonic()

    @property
    def room(self) -> bool:
        """Whether more sockets can be taken."""
        return bool(self._places)

    def use(self, channels: list[socket.socket]) -> None:
        """Use these channels in the place of all earlier ones; the descriptors are this object's."""
        waiting = self._take_waiting()
        for outlet in self._places.values():
            self._close(outlet)
        self._places.clear()
        outlets = [Outlet(place, channel) for place, channel in enumerate(channels)]
        for outlet in outlets:
            outlet.channel.setblocking(False)
            outlet.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BYTES)
            self._places[outlet.channel.fileno()] = outlet
            self._loop.add(outlet.channel.fileno(), READ, self)
        self._outlets = [*outlets]
        for batch in waiting:
            self.take(batch)
        self._changed()

    def take(self, batch: Batch) -> None:
        """Own a batch, and pass its sockets on, now or as soon as their workers take them."""
        if not self._places:
            self._orphans.append(batch)
            self._held += len(batch.fds)
        elif len(self._outlets) == 1:
            self._pass(self._find(0), batch)
        else:
            for outlet, part in self._split(batch):
                self._pass(outlet, part)

    def give_up(self) -> None:
        """End all connections that wait, with a reset."""
        for batch in self._take_waiting():
            batch.reset()

    def hand_over(self) -> list[Batch]:
        """Return the batches that wait, for a successor; they are the caller's."""
        return self._take_waiting()

    def on_event(self, fd: int, mask: int) -> None:
        outlet = self._places[fd]
        if mask & WRITE:
            self._flush(outlet)
        if mask & ~WRITE and self._is_open(outlet):
            self._hear(outlet)

    def _hear(self, outlet: Outlet) -> None:
        """Dial for a worker. One that was taken over may say anything: what is no question is left out."""
        try:
            delivery = receive(outlet.channel)
            if delivery is None:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            with delivery:
                if isinstance(delivery.message, wire.Dial):
                    answer(outlet.channel, delivery.message, self._link)
        except (BlockingIOError, ProtocolError):
            pass  # while its channel is full, a worker gets no answer, and asks again
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                self._drop(outlet, error)

    def _split(self, batch: Batch) -> list[tuple[Outlet, Batch]]:
        """Return the batch by worker. The last bytes of an address differ most between guests."""
        parts: dict[int, tuple[list[bytes], list[int]]] = {}
        for guest, fd in zip(batch.guests, batch.fds, strict=True):
            place = int.from_bytes(guest, "big") % len(self._outlets)
            guests, fds = parts.setdefault(place, ([], []))
            guests.append(guest)
            fds.append(fd)
        return [
            (self._find(place), Batch(batch.key, tuple(guests), fds))
            for place, (guests, fds) in parts.items()
        ]

    def _find(self, place: int) -> Outlet:
        """Return the outlet at this place, or the next one that has a reader."""
        while (outlet := self._outlets[place]) is None:
            place = (place + 1) % len(self._outlets)
        return outlet

    def _pass(self, outlet: Outlet, batch: Batch) -> None:
        if outlet.channel.fileno() not in self._places:  # it was dropped for an earlier part of the batch
            self.take(batch)
            return
        if outlet.next is None and not outlet.waiting:
            outlet.next = batch
            self._held += len(batch.fds)
            self._flush(outlet)
        else:
            self._queue(outlet, batch)

    def _queue(self, outlet: Outlet, batch: Batch) -> None:
        """Have the sockets of a batch wait, as far as there is room for them."""
        for guest, fd in zip(batch.guests, batch.fds, strict=True):
            queue = outlet.waiting.get(guest)
            if self._held >= self._most and not self._make_room(guest, len(queue or ())):
                Batch(batch.key, (guest,), [fd]).reset()
            elif queue is None:
                outlet.waiting[guest] = [(batch.key, fd)]
                self._held += 1
            else:
                queue.append((batch.key, fd))
                self._held += 1

    def _make_room(self, newcomer: bytes, has: int) -> bool:
        """Reset a socket of the guest that has most, to make room for one of a guest that ``has`` so many.

        Return False when that guest is the newcomer itself.
        """
        outlets = self._places.values()
        if has * sum(len(outlet.waiting) for outlet in outlets) < self._most:  # has less than the average
            most, guest, outlet = max(
                (
                    (len(queue), guest, outlet)
                    for outlet in outlets
                    for guest, queue in outlet.waiting.items()
                ),
                key=lambda found: found[0],
                default=(0, b"", None),
            )
            if outlet is not None and most > has + 1:
                self._warn(guest, most)
                key, fd = outlet.waiting[guest].pop()
                Batch(key, (guest,), [fd]).reset()
                self._held -= 1
                return True
        self._warn(newcomer, has)
        return False

    def _warn(self, guest: bytes, waiting: int) -> None:
        """Count a connection that is reset because too many wait, and tell of it now and then."""
        self._refusals += 1
        if (now := time.monotonic()) - self._warned >= QUIET:
            self._warned = now
            self._log.warning(
                "%d connections wait for workers; %d were reset, the last one of guest %s, of which %d wait",
                self._held,
                self._refusals,
                _readable(guest),
                waiting,
            )
            self._refusals = 0

    def _flush(self, outlet: Outlet) -> None:
        """Send what waits for a worker, as far as its channel has room."""
        while (batch := outlet.choose()) is not None:
            try:
                send(outlet.channel, batch.message, batch.fds)
            except OSError as error:
                self._refused(outlet, error)
                break
            batch.close()
            outlet.next = None
            self._held -= len(batch.fds)
        else:
            self._poll(outlet, wanted=False)
        if not outlet.judged and self._is_open(outlet):
            outlet.judged = True
            self._judge_later(outlet)

    def _refused(self, outlet: Outlet, error: OSError) -> None:
        if isinstance(error, BlockingIOError):
            self._poll(outlet, wanted=True)
        elif error.errno == errno.ETOOMANYREFS:
            self._poll(outlet, wanted=False)  # the channel has room, which would be reported again and again
            self._loop.call_later(TOO_MANY_PAUSE, lambda: self._retry(outlet))
        else:
            self._drop(outlet, error)

    def _retry(self, outlet: Outlet) -> None:
        if self._is_open(outlet):
            self._flush(outlet)

    def _drop(self, outlet: Outlet, error: OSError) -> None:
        """Forget a channel that nobody reads, and pass what waits for it to another worker."""
        self._log.warning("worker %d is gone: %s", outlet.place, error.strerror)
        waiting = outlet.drain()
        self._held -= sum(len(batch.fds) for batch in waiting)
        del self._places[outlet.channel.fileno()]
        self._close(outlet)
        self._outlets[outlet.place] = None
        for batch in waiting:
            self.take(batch)
        self._changed()

    def _poll(self, outlet: Outlet, *, wanted: bool) -> None:
        if outlet.polled == wanted:
            return
        outlet.polled = wanted
        self._loop.modify(outlet.channel.fileno(), READ | WRITE if wanted else READ)

    def _judge_later(self, outlet: Outlet) -> None:
        self._loop.call_later(BEHIND, lambda: self._judge(outlet))

    def _judge(self, outlet: Outlet) -> None:
        """Tell the daemon of a worker that has not received all; then look again.

        A busy worker is told of now and then: that only makes the daemon ask it.
        """
        if self._is_open(outlet) and (outlet.next is not None or outlet.unread):
            self._behind(outlet.place)
            self._judge_later(outlet)
        else:
            outlet.judged = False

    def _is_open(self, outlet: Outlet) -> bool:
        return self._places.get(outlet.channel.fileno()) is outlet

    def _take_waiting(self) -> list[Batch]:
        waiting, self._orphans = self._orphans, []
        for outlet in self._places.values():
            waiting += outlet.drain()
        self._held = 0
        return waiting

    def _close(self, outlet: Outlet) -> None:
        outlet.polled = False
        self._loop.close_later(outlet.channel, shared=True)


def _readable(guest: bytes) -> str:
    if len(guest) == 16:
        return socket.inet_ntop(socket.AF_INET6, guest)
    return socket.inet_ntoa(guest) if guest else "unknown"
