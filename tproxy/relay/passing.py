"""Passes accepted sockets on to the workers, each guest's to the same one.

Which worker serves a guest follows from the guest's address. So what is counted for a guest is counted in one
place, a bridge with many guests uses all workers, and a guest that asks for too much holds up only the worker
that it has.

A worker that is behind leaves its channel full. Then the sockets for it wait here, up to MOST_WAITING, while
the guests of other workers are served. Beyond that the relay accepts nothing more, and guests wait in the
backlog. A channel without a reader is dropped, and the guests of that worker go to the next one. While a
worker or the daemon still has the other end open, a channel is never without a reader.
"""

import array
import errno
import fcntl
import socket
from collections.abc import Callable

from tproxy.kernel.limits import descriptor_limit
from tproxy.kernel.loop import WRITE, Loop
from tproxy.log.file import Log
from tproxy.relay.channel import send
from tproxy.relay.listening import Batch

# Sockets that wait for workers in this process, at most. There are as many again in the channels.
MOST_WAITING = 1024

# Seconds until the daemon is told that a worker may have taken no sockets. It asks the worker (worker_link).
BEHIND = 3.0

_SIOCOUTQ = 0x5411  # <linux/sockios.h>: what was sent and not received, tcp(7); here with its overhead

# Seconds until another try, after the kernel said that too many descriptors are in flight (ETOOMANYREFS,
# unix(7)): no event tells when a worker has taken some.
TOO_MANY_PAUSE = 0.01


class Outlet:
    """The data channel to one worker, and the batches that wait for it."""

    def __init__(self, place: int, channel: socket.socket) -> None:
        self.place = place
        self.channel = channel
        self.waiting: list[Batch] = []
        self.polled = False
        self.judged = False  # whether a timer looks at it

    @property
    def unread(self) -> bool:
        """Whether the worker has not received all that was sent."""
        return bool(array.array("i", fcntl.ioctl(self.channel, _SIOCOUTQ, bytes(4)))[0])


class Passing:
    """All data channels of a relay.

    ``changed`` is called when ``room`` may have changed, and ``behind`` with the place of a worker that may
    have taken nothing for some seconds.
    """

    def __init__(
        self, loop: Loop, log: Log, changed: Callable[[], None], behind: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._changed = changed
        self._behind = behind
        self._outlets: list[Outlet | None] = []  # None: nobody has the other end any more
        self._places: dict[int, Outlet] = {}  # by descriptor
        self._orphans: list[Batch] = []  # accepted by a predecessor, and there is no worker yet
        self._most = min(MOST_WAITING, descriptor_limit() // 8)
        self._held = 0  # sockets that wait

    @property
    def room(self) -> bool:
        """Whether more sockets can be taken."""
        return bool(self._places) and self._held < self._most

    def use(self, channels: list[socket.socket]) -> None:
        """Use these channels in the place of all earlier ones; the descriptors are this object's."""
        waiting = self._take_waiting()
        for outlet in self._places.values():
            self._close(outlet)
        self._places.clear()
        outlets = [Outlet(place, channel) for place, channel in enumerate(channels)]
        for outlet in outlets:
            outlet.channel.setblocking(False)
            self._places[outlet.channel.fileno()] = outlet
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
        self._flush(self._places[fd])

    def _split(self, batch: Batch) -> list[tuple[Outlet, Batch]]:
        """Return the batch by worker. The last bytes of an address differ most between guests."""
        parts: dict[int, tuple[list[bytes], list[int]]] = {}
        for guest, fd in zip(batch.guests, batch.fds, strict=True):
            place = int.from_bytes(guest, "big") % len(self._outlets)
            guests, fds = parts.setdefault(place, ([], []))
            guests.append(guest)
            fds.append(fd)
        return [
            (self._find(place), Batch(batch.port, tuple(guests), fds))
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
        outlet.waiting.append(batch)
        self._held += len(batch.fds)
        if len(outlet.waiting) == 1:
            self._flush(outlet)

    def _flush(self, outlet: Outlet) -> None:
        """Send what waits for a worker, as far as its channel has room."""
        before = self._held
        while outlet.waiting:
            batch = outlet.waiting[0]
            try:
                send(outlet.channel, batch.message, batch.fds)
            except OSError as error:
                self._refused(outlet, error)
                break
            batch.close()
            del outlet.waiting[0]
            self._held -= len(batch.fds)
        else:
            self._poll(outlet, wanted=False)
        if not outlet.judged and self._is_open(outlet):
            outlet.judged = True
            self._judge_later(outlet)
        if self._held != before:
            self._changed()

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
        waiting, outlet.waiting = outlet.waiting, []
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
        if wanted:
            self._loop.add(outlet.channel.fileno(), WRITE, self)
        else:
            self._loop.remove(outlet.channel.fileno())

    def _judge_later(self, outlet: Outlet) -> None:
        self._loop.call_later(BEHIND, lambda: self._judge(outlet))

    def _judge(self, outlet: Outlet) -> None:
        """Tell the daemon of a worker that has not received all; then look again.

        A busy worker is told of now and then: that only makes the daemon ask it.
        """
        if self._is_open(outlet) and (outlet.waiting or outlet.unread):
            self._behind(outlet.place)
            self._judge_later(outlet)
        else:
            outlet.judged = False

    def _is_open(self, outlet: Outlet) -> bool:
        return self._places.get(outlet.channel.fileno()) is outlet

    def _take_waiting(self) -> list[Batch]:
        waiting, self._orphans = self._orphans, []
        for outlet in self._places.values():
            waiting += outlet.waiting
            outlet.waiting = []
        self._held = 0
        return waiting

    def _close(self, outlet: Outlet) -> None:
        outlet.polled = False
        self._loop.close_later(outlet.channel, shared=True)
