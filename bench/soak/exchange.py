"""Exchanges of bytes between guests and endpoints of the soak, of which both ends take the hash.

The guest sends a header and ``up`` bytes. The endpoint sends ``down`` bytes, and a trailer with the SHA-256
of what it received and of what it sent. A connection carries one exchange after the other. All bytes are
random and different in each exchange, so a byte that is lost, repeated or another
connection's changes a hash.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

CHUNK = 1 << 16
TRAILER = 64  # bytes

_HEADER = struct.Struct("!QQ?")


class Header(NamedTuple):
    up: int
    down: int
    last: bool  # the guest ends its direction behind ``up`` bytes, and the endpoint answers to that end only


class Damaged(Exception):
    """Bytes are not those that were sent, or too few. No fault explains that."""


def chunks(size: int) -> Iterator[bytes]:
    """Yield random bytes, ``size`` in all."""
    source = random.Random(os.urandom(8))
    while size > 0:
        yield source.randbytes(min(size, CHUNK))
        size -= CHUNK


def ask(sock: socket.socket, header: Header, pause: float = 0.0) -> None:
    """Do one exchange as the guest; reads no more than 16 KiB each ``pause`` seconds.

    Raises Damaged, and OSError when the connection ends with an error.
    """
    sock.sendall(_HEADER.pack(*header))
    sender = _Sender(sock, header.up, header.last)
    # Both directions at the same time: with little to send nothing is gained by a thread.
    with sender.beside() if header.up > CHUNK and header.down > CHUNK else sender.first():
        received = hashlib.sha256()
        for part in read(sock, header.down, pause):
            received.update(part)
        trailer = b"".join(read(sock, TRAILER))
    if trailer != sender.hash.digest() + received.digest():
        raise Damaged("another hash")
    if header.last and sock.recv(1):
        raise Damaged("more than was sent")


def answer(sock: socket.socket) -> bool:
    """Do one exchange as the endpoint; false when the guest has ended the connection instead."""
    if not (first := sock.recv(1)):
        return False
    header = Header(*_HEADER.unpack(first + b"".join(read(sock, _HEADER.size - 1))))
    sender = _Sender(sock, header.down)
    both = header.up > CHUNK and header.down > CHUNK
    with sender.beside() if both else nullcontext():
        received = hashlib.sha256()
        for part in read(sock, header.up):
            received.update(part)
        if header.last and sock.recv(1):
            raise Damaged("more than was sent")
    if not both:
        sender.send()
    sock.sendall(received.digest() + sender.hash.digest())
    return not header.last


def read(sock: socket.socket, size: int, pause: float = 0.0) -> Iterator[bytes]:
    """Yield what comes, ``size`` bytes in all. Raises Damaged when the peer ends before."""
    while size > 0:
        part = sock.recv(min(size, 1 << 14 if pause else CHUNK))
        if not part:
            raise Damaged(f"the end, {size} bytes too early")
        size -= len(part)
        yield part
        if pause:
            threading.Event().wait(pause)


class _Sender:
    """Sends ``size`` bytes, and with ``last`` the end of file."""

    def __init__(self, sock: socket.socket, size: int, last: bool = False) -> None:
        self.hash = hashlib.sha256()
        self._sock = sock
        self._size = size
        self._last = last
        self._error: OSError | None = None

    def send(self) -> None:
        for chunk in chunks(self._size):
            self.hash.update(chunk)
            self._sock.sendall(chunk)
        if self._last:
            self._end()

    def _end(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # ENOTCONN: the connection is over, and the socket still holds the error that ended it.
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error.errno != errno.ENOTCONN or not number:
                raise
            raise OSError(number, os.strerror(number)) from None

    @contextmanager
    def first(self) -> Iterator[None]:
        """Send before the block begins."""
        self.send()
        yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Send while the block reads, and return when both is done.

        The kernel reports a reset once. Where sending meets it, reading meets the end of file instead, and
        the reset is what is raised then. EPIPE is no such error: it says that the peer's end of file came
        before its reset (tcp_reset in Linux).
        """
        thread = threading.Thread(target=self._send_beside)
        thread.start()
        try:
            yield
        except Damaged:
            thread.join()
            if self._error is not None and self._error.errno != errno.EPIPE:
                raise self._error from None
            raise
        finally:
            thread.join()

    def _send_beside(self) -> None:
        try:
            self.send()
        except OSError as error:
            self._error = error
