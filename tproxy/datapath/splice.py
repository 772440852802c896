"""Moves the bytes of one direction: small messages with recv and send, bulk with splice(2).

Theory of operation. A read that does not fill the shared buffer is a message. It is sent on at once: two
system calls and no pipe. A read that fills the buffer is the beginning of bulk: the direction takes a pipe
from the pool, and from then on the kernel moves pages. When the source has no more to read, the direction
gives the pipe back. An idle direction holds neither pipe nor buffer. Bytes that the destination does not take
stay in the pipe, or, of a message, in ``_rest``. Nothing more is read until they are written.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress

from tproxy.datapath.flow import Direction
from tproxy.kernel import tcp

# One read of this size is the border between "a message" and "bulk". 64 KiB is what a default pipe
# holds, and copying more than that costs more than two splices.
SMALL = 64 * 1024

# Larger pipes carry bulk in fewer system calls; beyond 512 KiB nothing was gained
# (docs/performance-experiments.md).
PIPE_BYTES = 512 * 1024

# The number of directions that can use a pipe at once. More than these copy their bulk, which is only slower.
# A user without privileges may have 64 MiB in pipes, and gets useless ones beyond that (pipe(7),
# pipe-user-pages-soft): 56 MiB leave room. Each worker is a user of its own.
MAX_PIPES = 112

# Empty pipes that are kept for the next bulk transfer instead of being closed.
SPARE_PIPES = 32

# The number of reads after which other connections have their turn; epoll reports the rest again.
ROUNDS = 8

_RECEIVE = int(socket.MSG_DONTWAIT)  # an enum would cost a look-up at each call
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_SEND_MORE = _SEND | socket.MSG_MORE
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_buffer = memoryview(bytearray(SMALL))


class SideLost(Exception):
    """One side of the connection is broken: ``side`` is its socket, ``errno`` the error."""

    def __init__(self, side: socket.SocketType, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.side = side
        self.errno = errno


class Pipe:
    """A pipe that never blocks. ``size`` is its capacity in bytes.

    Raises OSError without a descriptor, or where the kernel grants less than SMALL bytes.
    """

    __slots__ = ("reader", "size", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            # The operator has lowered the limit of pipe(7), pipe-user-pages-soft or pipe-max-size.
            self.size = fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ)
            if self.size < SMALL:
                self.close()
                raise

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Lends empty pipes, and keeps some of those that come back empty."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self.lent = 0

    def take(self) -> Pipe | None:
        """Lend a pipe. Return None when MAX_PIPES are lent, or no descriptor is left."""
        if self.lent >= MAX_PIPES:
            return None
        try:
            pipe = self._spare.pop() if self._spare else Pipe()
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Take a lent pipe back. A pipe that is not ``empty`` is closed."""
        self.lent -= 1
        if empty and len(self._spare) < SPARE_PIPES:
            self._spare.append(pipe)
        else:
            # Another connection must never read the bytes of an aborted one.
            pipe.close()


class Mover(Direction):
    """A Direction with its two sockets. ``near``: the peer of the source is near (tcp.set_options)."""

    __slots__ = ("_pipe", "_rest", "destination", "near", "source")

    def __init__(
        self, source: socket.SocketType, destination: socket.SocketType, *, near: bool = False
    ) -> None:
        super().__init__()
        self.near = near
        self.source = source
        self.destination = destination
        self._pipe: Pipe | None = None
        self._rest: bytes | None = None

    def read_ahead(self) -> None:
        """Read what the source has sent, before the destination is connected. Raises SideLost.

        It can be called again: what is read then comes behind.
        """
        if self.ended or self.held >= SMALL:
            return
        try:
            count = self.source.recv_into(_buffer, 0, _RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            # The kernel reports an error once, and the end of file from then on.
            raise SideLost(self.source, error.errno or 0) from None
        if count:
            self._rest = (self._rest or b"") + bytes(_buffer[:count])
            self.held += count
        else:
            self.ended = True

    def put_first(self, data: bytes, instead_of: int) -> None:
        """Put bytes before what was read ahead, and in place of so many that were put there before."""
        self._rest = data + (self._rest or b"")[instead_of:]
        self.held = len(self._rest)

    def send_ahead(self) -> bool:
        """Write what was read ahead. Return False if the destination is not connected. Raises SideLost."""
        return self._write()

    def pass_on(self, pipes: PipePool) -> bool:
        """Pass one message on. Return whether that was all there is to do, as it is for most events.

        ``pump`` would do the same in more steps, and Python is a tenth of the cost of a small request. After
        True the poll interest is unchanged; after False the caller calls ``pump``. Raises SideLost.
        """
        return (
            self._pipe is None
            and not (self.held or self.ended)
            and 0 < self._copy(_SEND, pipes) < SMALL
            and not self.held
        )

    def pump(self, pipes: PipePool, peer_closed: bool) -> None:
        """Move what can be moved now. Raises SideLost.

        ``peer_closed`` (EPOLLRDHUP): the end of file follows the bytes to read. So one more read is worth its
        system call, and FIN can go out in one packet with the last bytes.
        """
        if self._pipe is not None and self.near:
            tcp.bound_window(self.source)  # again, because the kernel's tuning raises it
        for _ in range(ROUNDS):
            if self.held and not self._write():
                return
            if self.ended or not self._read(pipes, peer_closed):
                break
        if self.ended and self.fin_due:
            self._send_fin()

    def release(self, pipes: PipePool) -> None:
        """Give back what the direction holds, and drop the bytes in it."""
        if self._pipe is not None:
            pipes.give_back(self._pipe, empty=not self.held)
            self._pipe = None
        self._rest = None
        self.held = 0

    def _read(self, pipes: PipePool, peer_closed: bool) -> bool:
        """Read once, and send a message on. Return whether to read again. Raises SideLost."""
        pipe = self._pipe
        try:
            if pipe is not None:
                count = self._fill(pipe)
            else:
                count = self._copy(_SEND_MORE if peer_closed else _SEND, pipes)
        except SideLost as lost:
            if peer_closed and lost.side is self.source:
                # A reset in place of the end of file: the bytes sent with MSG_MORE must not wait for it.
                with suppress(OSError):  # a UNIX socket, where nothing waits
                    self.destination.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raise
        if count <= 0:
            if pipe is not None:
                pipes.give_back(pipe, empty=True)
                self._pipe = None
                # splice(2) returns 0 at an urgent byte too. The next recv(2) tells, and reads on behind it.
                return count == 0
            self.ended = count == 0
            return False
        return peer_closed or pipe is not None or count == SMALL

    def _fill(self, pipe: Pipe) -> int:
        """Read into the pipe. Return the bytes read, 0 at the end of file, -1 if there is nothing to read."""
        try:
            count = os.splice(self.source.fileno(), pipe.writer, pipe.size, flags=_FLAGS)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise SideLost(self.source, error.errno or 0) from None
        self.held = count
        return count

    def _copy(self, flags: int, pipes: PipePool) -> int:
        """Read into the buffer, and send it on; return as ``_fill``. A read that fills it begins bulk."""
        try:
            count = self.source.recv_into(_buffer, 0, _RECEIVE)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise SideLost(self.source, error.errno or 0) from None
        if count:
            self._send(_buffer[:count], flags)
            # Not with bytes left over: a direction never holds bytes in two places.
            if count == SMALL and not self.held:
                self._go_by_pipe(pipes)
        return count

    def _go_by_pipe(self, pipes: PipePool) -> None:
        self._pipe = pipes.take()
        if self._pipe is not None:
            # recv and send have a flag for not blocking. splice(2) looks at the sockets' own mode, which is
            # set only here, because most connections never send bulk.
            for sock in (self.source, self.destination):
                if sock.getblocking():  # no system call
                    sock.setblocking(False)

    def _write(self) -> bool:
        """Write what is held. Return False when the destination takes no more now. Raises SideLost."""
        if self._pipe is None:
            assert self._rest is not None
            rest, self._rest, self.held = self._rest, None, 0
            self._send(memoryview(rest), _SEND)
            return not self.held
        try:
            while self.held:
                count = os.splice(self._pipe.reader, self.destination.fileno(), self.held, flags=_FLAGS)
                self.held -= count
                self.moved += count
        except BlockingIOError:
            return False
        except OSError as error:
            raise SideLost(self.destination, error.errno or 0) from None
        return True

    def _send(self, data: memoryview, flags: int) -> None:
        """Send, and hold what the destination does not take. Raises SideLost."""
        try:
            sent = self.destination.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise SideLost(self.destination, error.errno or 0) from None
        self.moved += sent
        if sent < len(data):
            self._rest = bytes(data[sent:])
            self.held = len(self._rest)

    def _send_fin(self) -> None:
        self.fin_sent = True
        # From here on, closing the destination must not discard what it has still to send.
        tcp.linger_on_close(self.destination)
        # ENOTCONN: a reset came first, which epoll reports too.
        with suppress(OSError):
            self.destination.shutdown(socket.SHUT_WR)
