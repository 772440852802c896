"""Messages with descriptors beside them, over a SOCK_SEQPACKET socket (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Sequence

from tproxy.errors import ProtocolError
from tproxy.relay import wire

_INT = array.array("i").itemsize
_SPACE = socket.CMSG_SPACE(wire.MAX_DESCRIPTORS * _INT)

# A plain number: to join members of an enumeration takes 0.3 µs in Python, and memory in each relay.
_CUT_SHORT = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)

# One for the process, so that receiving a few bytes does not allocate room for the largest message.
_BUFFER = bytearray(wire.MAX_BYTES)


class Delivery:
    """One received message, and the owner of the descriptors that came with it.

    Use it in a ``with`` statement: at its end, every descriptor that was not taken is closed. So a message
    may be judged, and refused, after its descriptors are in safe hands.
    """

    __slots__ = ("fds", "message")

    def __init__(self, message: object, fds: list[int]) -> None:
        self.message = message
        self.fds = fds

    def take(self) -> list[int]:
        """Hand over all descriptors; the caller owns them from now on."""
        taken, self.fds = self.fds, []
        return taken

    def take_socket(self) -> socket.socket:
        """Hand over the first descriptor that is left, as a socket; raises OSError if it is not a socket."""
        sock = socket.socket(fileno=self.fds[0])
        del self.fds[0]  # only now: had the line above failed, the descriptor would still be ours to close
        return sock

    def take_connection(self, family: int = socket.AF_INET) -> socket.SocketType:
        """Hand over the first descriptor that is left, as a TCP socket; raises OSError if it is not a socket.

        ``take_socket`` asks the kernel for family, type and protocol. This method knows them: it is called
        for each connection.
        """
        sock = socket.SocketType(family, socket.SOCK_STREAM, 0, self.fds[0])
        del self.fds[0]
        return sock

    def take_unix(self) -> socket.SocketType:
        """Hand over the first descriptor, which is a UNIX stream socket that never blocks."""
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        sock = socket.SocketType(socket.AF_UNIX, kind, 0, self.fds[0])
        del self.fds[0]
        return sock

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.take():
            os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a connected pair of message sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: wire.Message, fds: Sequence[int] = ()) -> None:
    """Send one message whole, or raise OSError (BlockingIOError when the peer is behind).

    The descriptors stay the caller's, who closes them.
    """
    send_bytes(channel, wire.encode(message), fds)


def send_bytes(channel: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    """Send one encoded message, as ``send`` does."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([message], rights, socket.MSG_NOSIGNAL)


def send_if_room(channel: socket.socket | None, message: bytes) -> bool:
    """Send one encoded message without descriptors; return False if there is no room for it now.

    If there is no channel, or nobody at its other end, nothing is sent.
    """
    try:
        if channel is not None:
            send_bytes(channel, message)
    except BlockingIOError:
        return False
    except OSError:
        pass  # the peer has ended, which the channel tells too
    return True


def receive(channel: socket.socket, decode: Callable[[bytes], object] = wire.decode) -> Delivery | None:
    """Receive one message with its descriptors; None at the end of file.

    Raises ProtocolError when the message is malformed or was cut short, after closing its descriptors, and
    OSError when receiving fails (BlockingIOError when there is nothing to receive yet).
    """
    # Not socket.recv_fds(): before Python 3.13 it drops the flags, and with them close-on-exec.
    size, ancillary, flags, _ = channel.recvmsg_into([_BUFFER], _SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if flags & _CUT_SHORT:
            raise ProtocolError("a message was cut short; are there too few descriptors?")
        if not size:
            if fds:
                raise ProtocolError("descriptors without a message")
            return None
        return Delivery(decode(bytes(_BUFFER[:size])), fds)
    except BaseException:  # whatever it is: nobody else owns them yet
        for fd in fds:
            os.close(fd)
        raise


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in the ancillary data of a message (cmsg(3))."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
    return fds.tolist()
