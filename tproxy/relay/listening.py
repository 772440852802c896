"""The listening sockets of a relay: opened and closed as the daemon asks, accepted from while there is room.

The relay gets what was accepted as a ``Batch``. While it says that it has no room (``accept_while``), and for
a moment after accept(2) failed for want of descriptors or memory, no listening socket is polled: guests then
wait in the backlog, in the kernel.

A UDP socket is only bound here. The daemon gets a copy, as of each listening socket, for a worker.
"""

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator

from tproxy.kernel import tcp
from tproxy.kernel.limits import descriptor_limit
from tproxy.kernel.loop import READ, Loop
from tproxy.log.file import Log
from tproxy.model import TCP, UDP, ServiceKey
from tproxy.relay import wire
from tproxy.typed import NamedTuple

# How many guests may wait while there is no worker. The kernel lowers it to net.core.somaxconn.
BACKLOG = 4096

# How many connections are accepted in one go and passed on in one message. Under load they share the cost of
# the message; and no port keeps the others waiting for longer than this many take.
BATCH = 64

# Descriptors that listening sockets may not use up: they are for a batch, sockets that wait for a worker, the
# daemon, the workers, a successor and the log.
RESERVE = BATCH + 96

_SIOCGIFINDEX = 0x8933  # <linux/sockios.h>
_IFREQ = struct.Struct("=16si20x")  # struct ifreq with an index

# Seconds without accepting after accept(2) failed for want of descriptors or memory.
PAUSE = 0.2

# Seconds between two warnings that accept(2) fails, however often it does.
QUIET = 60.0

# Errors of accept(2) that concern one connection, which ended before it was accepted, and not the listener.
_ENDED_BEFORE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH})


class Batch(NamedTuple):
    """Accepted sockets on their way to a worker; owns its descriptors until ``close`` or ``reset``.

    ``guests`` are their guests' addresses, of 4 bytes (IPv4) or 16, and empty where nobody knows them.
    """

    key: ServiceKey
    guests: tuple[bytes, ...]
    fds: list[int]

    @property
    def message(self) -> wire.Accepted:
        return wire.Accepted(self.key)

    def close(self) -> None:
        """Close the descriptors, of which the receiver of the message has copies."""
        for fd in self.fds:
            os.close(fd)

    def reset(self) -> None:
        """End the connections with a reset: nobody will serve them."""
        for fd in self.fds:
            try:
                guest = socket.SocketType(fileno=fd)
            except OSError:
                os.close(fd)  # a relay before this one handed over something else than a socket
                continue
            tcp.reset_on_close(guest)
            guest.close()


class Listening:
    """All listening sockets of one relay. ``accepted`` is called with each batch, which it then owns.

    ``link`` is the one that has the service addresses: an IPv6 address of a link means nothing without it.
    """

    def __init__(self, loop: Loop, log: Log, accepted: Callable[[Batch], None], link: str = "") -> None:
        self._link = link
        self._loop = loop
        self._log = log
        self._accepted = accepted
        self._sockets: dict[ServiceKey, socket.socket] = {}
        self._keys: dict[int, ServiceKey] = {}  # by descriptor
        self._room = False
        self._paused = False
        self._polled = False
        self._warned = -QUIET  # when, by time.monotonic()

    @property
    def keys(self) -> tuple[ServiceKey, ...]:
        return tuple(self._sockets)

    def messages(
        self, most: int, without: Collection[ServiceKey] = ()
    ) -> Iterator[tuple[wire.Listeners, list[int]]]:
        """Yield messages with all listening sockets but those of keys ``without``, ``most`` in each.

        The sockets stay this object's. Those of plain keys come first, in messages of their own (``wire``).
        """
        for plain in (True, False):
            keys = tuple(key for key in self._sockets if key.plain == plain and key not in without)
            for start in range(0, len(keys), most):
                some = keys[start : start + most]
                yield wire.Listeners(some), [self._sockets[key].fileno() for key in some]

    def keep(self, key: ServiceKey, listener: socket.socket) -> None:
        """Own a listening socket from now on, and accept from it, unless there is one for the key."""
        if key in self._sockets:
            listener.close()
            return
        listener.setblocking(False)  # whoever had it before may have changed that
        self._sockets[key] = listener
        if key.protocol == TCP:
            self._keys[listener.fileno()] = key
            if self._polled:
                self._loop.add(listener.fileno(), READ, self)

    def listen(self, keys: tuple[ServiceKey, ...]) -> dict[ServiceKey, int]:
        """Listen on exactly these ports; return, as errno by key, why some could not be had.

        Sockets that listen on one of these ports already are not touched.
        """
        for key in set(self._sockets) - set(keys):
            listener = self._sockets.pop(key)
            if self._keys.pop(listener.fileno(), None) is not None:
                # The loop closes it after the report has been sent; from now on it does not listen any more.
                listener.shutdown(socket.SHUT_RD)
                self._loop.close_later(listener)
            else:
                listener.close()
            self._log.info("port %s does not listen any more", key.in_words)
        problems = {}
        limit = descriptor_limit()
        most = max(limit - RESERVE, limit // 2)
        for key in sorted(set(keys) - set(self._sockets)):
            try:
                if len(self._sockets) >= most:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                listener = _open(key, self._link)
            except OSError as error:
                problems[key] = error.errno or errno.EINVAL
                self._log.error("port %s cannot listen: %s", key.in_words, error.strerror)
                continue
            self.keep(key, listener)
            self._log.info("port %s listens", key.in_words)
        return problems

    def accept_while(self, room: bool) -> None:
        """Say whether there is room for accepted connections from now on."""
        self._room = room
        self._settle()

    def on_event(self, fd: int, mask: int) -> None:
        key = self._keys[fd]
        listener = self._sockets[key]
        fds: list[int] = []
        guests: list[bytes] = []
        while len(fds) < BATCH:
            try:
                # The private half of socket.accept(), which makes a socket object of the descriptor that it
                # returns: one system call more (getsockname), and an object that nobody wants here.
                # accept() and detach() take 1.65 times as long: 4.7 instead of 2.8 microseconds for each
                # connection (medians of 61 interleaved rounds of 300, Python 3.11, two runs within 2 %).
                accepted, (address, *_) = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _ENDED_BEFORE:
                    continue
                # EMFILE, ENFILE, ENOBUFS, ENOMEM: trying again at once would only spin.
                self._warn(error)
                self._pause()
                break
            fds.append(accepted)
            guests.append(_packed(address))
        if fds:
            self._accepted(Batch(key, tuple(guests), fds))

    def _warn(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._warned >= QUIET:
            self._warned = now
            self._log.warning("cannot accept for now: %s", error.strerror)

    def _pause(self) -> None:
        self._paused = True
        self._settle()
        self._loop.call_later(PAUSE, self._end_pause)

    def _end_pause(self) -> None:
        self._paused = False
        self._settle()

    def _settle(self) -> None:
        """Poll the listening sockets if, and only if, connections may be accepted now."""
        polled = self._room and not self._paused
        if polled != self._polled:
            self._polled = polled
            for fd in self._keys:
                if polled:
                    self._loop.add(fd, READ, self)
                else:
                    self._loop.remove(fd)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address) if ":" in address else socket.inet_aton(address)


def _name(key: ServiceKey, link: str) -> tuple[str, int] | tuple[str, int, int, int]:
    """What bind(2) gets for a key. Raises OSError."""
    if ":" not in key.address:
        return key.address, key.port
    # Not socket.if_nametoindex(), which makes a socket that no relay may have.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFINDEX, _IFREQ.pack(link.encode(), 0))
    return key.address, key.port, 0, _IFREQ.unpack(answer)[1]


def _open(key: ServiceKey, link: str) -> socket.socket:
    if key.protocol == UDP:
        return _bind(key, link)
    listener = socket.socket(tcp.family(key.address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.set_options(listener, near=True)
        tcp.watch_peer(listener)
        # Connections inherit that until they end in good order (datapath/splice.py).
        tcp.reset_on_close(listener)
        listener.bind(_name(key, link))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _bind(key: ServiceKey, link: str) -> socket.socket:
    bound = socket.socket(tcp.family(key.address), socket.SOCK_DGRAM)
    try:
        bound.bind(_name(key, link))
    except OSError:
        bound.close()
        raise
    return bound
