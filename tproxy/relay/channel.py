"""Messages with descriptors beside them, over a SOCK_SEQPACKET socket (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

from tproxy.errors import ProtocolError
from tproxy.relay import wire

_INT = array.array("i").itemsize
_SPACE = socket.CMSG_SPACE(wire.MAX_DESCRIPTORS * _INT)

# One for the process, so that receiving a few bytes does not allocate room for the largest message.
_BUFFER = bytearray(wire.MAX_BYTES)


def pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of message sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: wire.Message, fds: Sequence[int] = ()) -> None:
    """Send one message whole, or raise OSError (BlockingIOError when the peer is behind).

    The descriptors stay the caller's, who closes them.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([wire.encode(message)], rights, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[wire.Message, list[int]] | None:
    """Take one message and its descriptors, which the caller then owns; None at the end of file.

    Raises ProtocolError when the message is malformed or was cut short; its descriptors are closed.
    """
    # Not socket.recv_fds(): before Python 3.13 it drops the flags, and with them close-on-exec.
    size, ancillary, flags, _ = channel.recvmsg_into([_BUFFER], _SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ProtocolError("a message was cut short: out of descriptors?")
        if not size:
            if fds:
                raise ProtocolError("descriptors without a message")
            return None
        return wire.decode(bytes(_BUFFER[:size])), fds
    except ProtocolError:
        for fd in fds:
            os.close(fd)
        raise


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
    return fds.tolist()
