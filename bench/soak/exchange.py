"""Exchanges of bytes between guests and endpoints of the soak, of which both ends take the hash.

The guest sends a header and ``up`` bytes. The endpoint sends ``down`` bytes, and a trailer with the SHA-256
of what it received and of what it sent. A connection carries one exchange after the other. All bytes are
random and different in each exchange, so a byte that is lost, repeated or another
connection's changes a hash.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
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
    sent = hashlib.sha256()
    # Both directions at the same time: with little to send nothing is gained by a thread.
    sender = None
    if header.up > CHUNK and header.down > CHUNK:
        sender = threading.Thread(target=_send_caught, args=(sock, header.up, sent, header.last))
        sender.start()
    else:
        _send(sock, header.up, sent, header.last)
    received = hashlib.sha256()
    try:
        for part in read(sock, header.down, pause):
            received.update(part)
        trailer = b"".join(read(sock, TRAILER))
    finally:
        if sender:
            sender.join()
    if trailer != sent.digest() + received.digest():
        raise Damaged("another hash")
    if header.last and sock.recv(1):
        raise Damaged("more than was sent")


def answer(sock: socket.socket) -> bool:
    """Do one exchange as the endpoint; false when the guest has ended the connection instead."""
    if not (first := sock.recv(1)):
        return False
    header = Header(*_HEADER.unpack(first + b"".join(read(sock, _HEADER.size - 1))))
    sent, received = hashlib.sha256(), hashlib.sha256()
    both = header.up > CHUNK and header.down > CHUNK
    sender = threading.Thread(target=_send_caught, args=(sock, header.down, sent))
    if both:
        sender.start()
    try:
        for part in read(sock, header.up):
            received.update(part)
        if header.last and sock.recv(1):
            raise Damaged("more than was sent")
    finally:
        if both:
            sender.join()
    if not both:
        _send(sock, header.down, sent)
    sock.sendall(received.digest() + sent.digest())
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


def _send(sock: socket.socket, size: int, into: hashlib._Hash, last: bool = False) -> None:
    for chunk in chunks(size):
        into.update(chunk)
        sock.sendall(chunk)
    if last:
        sock.shutdown(socket.SHUT_WR)


def _send_caught(sock: socket.socket, size: int, into: hashlib._Hash, last: bool = False) -> None:
    with suppress(OSError):  # who reads meets it too
        _send(sock, size, into, last)
