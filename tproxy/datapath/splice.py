"""Moves the bytes of one direction: small messages by recv and send, bulk by splice(2).

Theory of operation. A read that does not fill the shared buffer is written straight on: two system
calls, no pipe. A read that fills it means bulk, so the direction takes a pipe from the pool and the
kernel moves pages from then on; when the source runs dry it gives the pipe back. An idle direction
holds neither pipe nor buffer. What the destination does not take stays in the pipe, or, of a small
message, in ``_rest``, and nothing more is read until it is gone.
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

# Larger pipes carry bulk in fewer system calls; beyond 512 KiB nothing was gained (docs/performance.md).
PIPE_BYTES = 512 * 1024

# So many directions can be in bulk at once by splice; further ones copy, which is only slower.
MAX_PIPES = 256

# Pipes kept for the next bulk transfer instead of being closed; their pages are empty.
SPARE_PIPES = 32

# After so many rounds the others have their turn; what is left is reported again by epoll.
ROUNDS = 8

_RECEIVE = int(socket.MSG_DONTWAIT)  # an enum costs a look-up at each call
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_SEND_MORE = _SEND | socket.MSG_MORE
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_buffer = memoryview(bytearray(SMALL))


class SideLost(Exception):
    """One side of the connection is gone: ``side`` is its socket, ``errno`` says how."""

    def __init__(self, side: socket.SocketType, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.side = side
        self.errno = errno


class Pipe:
    __slots__ = ("reader", "size", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            # Over /proc/sys/fs/pipe-user-pages-soft without CAP_SYS_RESOURCE (pipe(7)): as it is.
            self.size = fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Lends pipes that are empty, and takes them back when they are empty again."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self.lent = 0

    def take(self) -> Pipe | None:
        """A pipe, or None when there are enough or no descriptor is left for one."""
        if self.lent >= MAX_PIPES:
            return None
        try:
            pipe = self._spare.pop() if self._spare else Pipe()
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        self.lent -= 1
        if empty and len(self._spare) < SPARE_PIPES:
            self._spare.append(pipe)
        else:
            # Bytes of an aborted connection must never come out of another one's pipe.
            pipe.close()


class Mover(Direction):
    """A Direction with its two sockets. ``near``: the source's peer is (see stream.set_options)."""

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
        """Take what the source has sent, to be written when there is a destination; raise SideLost."""
        try:
            count = self.source.recv_into(_buffer, 0, _RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            # Not to be met again later: it is told once, and "end of file" from then on.
            raise SideLost(self.source, error.errno or 0) from None
        if count:
            self._rest = bytes(_buffer[:count])
            self.held = count
        else:
            self.ended = True

    def send_ahead(self) -> bool:
        """Write what was read ahead; False while the destination is not connected yet."""
        return self._write()

    def pass_on(self, pipes: PipePool) -> bool:
        """Let one message through; whether that was all there is to do, as for most events.

        What ``pump`` does as well, by the shortest way: Python is a tenth of what a small request costs.
        What to poll for is as before then; the rest is left to ``pump``. Raises SideLost.
        """
        return (
            self._pipe is None
            and not (self.held or self.ended)
            and 0 < self._copy(_SEND, pipes) < SMALL
            and not self.held
        )

    def pump(self, pipes: PipePool, peer_closed: bool) -> None:
        """Move what can be moved now; raise SideLost when a socket is broken.

        ``peer_closed`` (EPOLLRDHUP): the end of file is behind what there is to read, so one
        look more is worth a system call, and FIN can go out in one packet with the last bytes.
        """
        if self._pipe is not None and self.near:
            tcp.bound_window(self.source)  # again: as its own tuning goes on, the kernel lifts it
        for _ in range(ROUNDS):
            if self.held and not self._write():
                return
            if self.ended or not self._read(pipes, peer_closed):
                break
        if self.ended and self.fin_due:
            self._send_fin()

    def release(self, pipes: PipePool) -> None:
        """Give back what the direction holds; whatever was under way is dropped."""
        if self._pipe is not None:
            pipes.give_back(self._pipe, empty=not self.held)
            self._pipe = None
        self._rest = None
        self.held = 0

    def _read(self, pipes: PipePool, peer_closed: bool) -> bool:
        """Read once, and write a small message on; whether another round is worth it."""
        pipe = self._pipe
        try:
            if pipe is not None:
                count = self._fill(pipe)
            else:
                count = self._copy(_SEND_MORE if peer_closed else _SEND, pipes)
        except SideLost as lost:
            if peer_closed and lost.side is self.source:
                # A reset where the end was due: what waits for it in the destination goes now.
                self.destination.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raise
        if count <= 0:
            if pipe is not None:
                pipes.give_back(pipe, empty=True)
                self._pipe = None
                # splice(2) ends at an urgent byte as well: recv(2) knows, and goes on behind it.
                return count == 0
            self.ended = count == 0
            return False
        return peer_closed or pipe is not None or count == SMALL

    def _fill(self, pipe: Pipe) -> int:
        """Read into the pipe; the bytes read, 0 at the end of file, -1 when there is nothing yet."""
        try:
            count = os.splice(self.source.fileno(), pipe.writer, pipe.size, flags=_FLAGS)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise SideLost(self.source, error.errno or 0) from None
        self.held = count
        return count

    def _copy(self, flags: int, pipes: PipePool) -> int:
        """Read, and write it on; as _fill. What fills the buffer is bulk, of which a pipe takes the rest."""
        try:
            count = self.source.recv_into(_buffer, 0, _RECEIVE)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise SideLost(self.source, error.errno or 0) from None
        if count:
            self._send(_buffer[:count], flags)
            # Only when nothing is left over, so that a direction never holds bytes in two places.
            if count == SMALL and not self.held:
                self._go_by_pipe(pipes)
        return count

    def _go_by_pipe(self, pipes: PipePool) -> None:
        self._pipe = pipes.take()
        if self._pipe is not None:
            # recv and send are told not to block; splice looks at the sockets themselves, and
            # most connections never get here.
            for sock in (self.source, self.destination):
                if sock.getblocking():  # asks no kernel
                    sock.setblocking(False)

    def _write(self) -> bool:
        """Write what is held; False when the destination takes no more for now."""
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
        """Send, and keep what the destination does not take."""
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
        # ENOTCONN: a reset came first, and epoll reports that as well.
        with suppress(OSError):
            self.destination.shutdown(socket.SHUT_WR)
