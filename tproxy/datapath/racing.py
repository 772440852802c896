"""Dials the endpoints of one connection, one after the other or beside each other, until one answers.

Theory of operation. Endpoints are dialled in their order. When one refuses, the next one is dialled at once;
when one is silent for SILENCE, the next one is dialled beside it. The first that answers gets the connection,
and the other dials end. Nothing that the guest has sent leaves before that, so no byte can reach two
endpoints. A dial that was answered is never repeated, whatever becomes of it.

The socket of the newest dial is that of the connection meanwhile.

The daemon dials UNIX sockets (``unix_dials``). Until it answers, such a dial has no descriptor.
"""

from __future__ import annotations

import errno
import select
import socket
import time

from tproxy.datapath.counts import DIAL_TIMED_OUT, SILENT
from tproxy.datapath.endpoints import SILENCE
from tproxy.kernel.loop import ERROR, HANGUP, WRITE, Timer
from tproxy.model import Endpoint
from tproxy.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tproxy.datapath.connection import Connection
    from tproxy.datapath.connections import Connections


class Attempt(NamedTuple):
    """A dial that was not answered yet. ``began`` is by time.monotonic()."""

    sock: socket.SocketType
    endpoint: Endpoint
    began: float


class Race:
    """The dials of one connection. ``left`` are the endpoints behind the first one, in order."""

    __slots__ = ("_connection", "_keeper", "_last", "_left", "_open", "_timer")

    def __init__(self, connection: Connection, keeper: Connections, left: list[Endpoint]) -> None:
        self._connection = connection
        self._keeper = keeper
        self._left = left
        # By descriptor, the oldest first. What the daemon dials has its number there, below 0.
        self._open: dict[int, Attempt] = {}
        self._timer: Timer | None = None
        self._last = connection.dialed, 0  # the endpoint that failed last, and its errno

    def begin(self) -> None:
        """Dial the first endpoint with the connection's socket. If no dial can begin, end the connection."""
        first = self._connection.endpoint_socket
        if not self._start(first, self._connection.dialed):
            if self._next():
                first.close()
            else:
                self._give_up(errno.ETIMEDOUT)

    def on_event(self, fd: int, mask: int) -> None:
        """Handle one epoll event of a dial."""
        if not mask & (ERROR | HANGUP):
            self._won(fd)
            self._connection.on_dialed(mask)
            return
        number = self._open[fd].sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number in (errno.ECONNRESET, errno.EPIPE):  # it was answered, and then reset
            self._won(fd)
            self._connection.was_reset(number)
            return
        self._failed(self._open.pop(fd), number)

    def _answered(self, dialled: int, sock: socket.SocketType | None, number: int) -> None:
        """Handle the daemon's answer to a dial of a UNIX socket."""
        attempt = self._open.pop(-dialled)
        if sock is None:
            self._failed(attempt, number)
            return
        fd = sock.fileno()
        self._open[fd] = attempt._replace(sock=sock)
        self._keeper.loop.add(fd, WRITE, self._connection)
        self._won(fd)
        self._connection.on_dialed(WRITE)

    def _failed(self, attempt: Attempt, number: int) -> None:
        """Go on without a dial that has failed."""
        self._note(attempt.endpoint, number)
        if not self._next():
            if not self._open:
                self._give_up(number)
                return
            newest = next(reversed(self._open.values()))
            self._connection.use(newest.sock, newest.endpoint)
        self._keeper.loop.close_later(attempt.sock)

    def expire(self) -> None:
        """End the connection, unless an endpoint has answered by now."""
        look = select.poll()
        for fd in self._open:
            if fd >= 0:
                look.register(fd, select.POLLOUT)
        if look.poll(0):  # this process was stopped: the loop has not seen the answer yet
            return
        self._note_silent(time.monotonic(), "timed out")
        self._give_up(errno.ETIMEDOUT)

    def close(self) -> None:
        """End all dials but that with the connection's socket, which is the connection's to close."""
        if self._timer is not None:
            self._timer.cancel()
        for fd, each in self._open.items():
            if fd < 0:
                self._keeper.dials.cancel(-fd)
            elif each.sock is not self._connection.endpoint_socket:
                self._keeper.loop.close_later(each.sock)
        self._open.clear()
        self._left.clear()

    def _next(self) -> bool:
        """Dial the endpoints that are left until one does not fail at once. Return whether one does not."""
        while self._left:
            endpoint = self._left.pop(0)
            try:
                sock = self._connection.new_socket(endpoint)
            except OSError as error:  # no descriptor is free now
                if self._open:
                    self._left.insert(0, endpoint)
                    self._wait()
                    return False
                self._last = endpoint, error.errno or 0
                self._connection.count_failure(endpoint, error.errno or 0)
                continue
            if self._start(sock, endpoint):
                return True
            sock.close()
        return False

    def _start(self, sock: socket.SocketType, endpoint: Endpoint) -> bool:
        """Begin to dial. Return False if that fails at once."""
        if endpoint.is_unix:
            left = self._connection.deadline - time.monotonic()
            self._keeper.tell(self._connection, "dials", endpoint=endpoint)
            dialled = self._keeper.dials.dial(endpoint, left, self._answered)
            self._open[-dialled] = Attempt(sock, endpoint, time.monotonic())
            self._connection.use(sock, endpoint)
            self._wait()
            return True
        number = self._connection.connect(sock, endpoint)
        if number:
            self._note(endpoint, number)
            return False
        self._open[sock.fileno()] = Attempt(sock, endpoint, time.monotonic())
        self._connection.use(sock, endpoint)
        self._keeper.loop.add(sock.fileno(), WRITE, self._connection)
        self._wait()
        return True

    def _wait(self) -> None:
        """Dial the next endpoint beside, if there is no answer until then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left:
            self._timer = self._keeper.loop.call_later(SILENCE, self._silent)

    def _silent(self) -> None:
        self._timer = None
        self._next()

    def _won(self, fd: int) -> None:
        """Give the connection the socket that was answered, and end the other dials."""
        winner = self._open[fd]
        now = time.monotonic()
        self._connection.use(winner.sock, winner.endpoint)
        self._note_silent(min(now, winner.began + SILENCE), "silent", but=winner)
        self.close()
        self._connection.race = None

    def _note_silent(self, now: float, why: str, but: Attempt | None = None) -> None:
        """Note that endpoints that were dialled SILENCE seconds before ``now`` did not answer."""
        for each in self._open.values():
            if each is not but and now - each.began >= SILENCE:
                self._keeper.health.fail(each.endpoint, why, time.monotonic())
                self._keeper.tell(self._connection, "dial-failed", endpoint=each.endpoint, why=why)
                self._connection.target.record.dial_failed(SILENT if but is not None else DIAL_TIMED_OUT)

    def _note(self, endpoint: Endpoint, number: int) -> None:
        self._last = endpoint, number
        self._keeper.dial_failed(endpoint, number)
        self._connection.count_failure(endpoint, number)

    def _give_up(self, number: int) -> None:
        """No endpoint is left: end the connection as the last one failed."""
        endpoint, last = self._last
        if not self._open and last:
            self._keeper.limits.move(self._connection.dialed, endpoint)
            self._connection.dialed, number = endpoint, last
        self._connection.dial_failed(number)
