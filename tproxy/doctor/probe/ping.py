"""One ping (RFC 792) from this thread's namespace: whether IP packets arrive, and answers come back."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress

_ECHO, _ECHO_REPLY = 8, 0
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
PATIENCE = 2.0  # seconds


def ping(address: str) -> float | None:
    """The seconds until an answer came; None for none. Raises OSError."""
    mark = os.urandom(8)
    identifier = int.from_bytes(mark[:2], "big")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        began = time.monotonic()
        sock.sendto(echo(identifier, mark), (address, 0))
        while (left := began + PATIENCE - time.monotonic()) > 0:
            sock.settimeout(left)
            with suppress(TimeoutError):
                packet = sock.recv(2048)
                if is_answer(packet, identifier, mark):
                    return time.monotonic() - began
    return None


def echo(identifier: int, mark: bytes) -> bytes:
    """An echo request that carries ``mark``."""
    words = _HEADER.pack(_ECHO, 0, 0, identifier, 1) + mark
    return _HEADER.pack(_ECHO, 0, _checksum(words), identifier, 1) + mark


def is_answer(packet: bytes, identifier: int, mark: bytes) -> bool:
    """Whether an IP packet is the answer to such a request."""
    content = packet[(packet[0] & 0x0F) * 4 :] if packet else b""
    if len(content) < _HEADER.size:
        return False
    kind, _, _, found, _ = _HEADER.unpack_from(content)
    return (kind, found, content[_HEADER.size :]) == (_ECHO_REPLY, identifier, mark)


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ (total + (total >> 16)) & 0xFFFF
