"""One ping (RFC 792, RFC 4443) from this thread's namespace: whether packets arrive and are answered."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress

_ECHO, _ECHO_REPLY = 8, 0
_ECHO_IPV6, _ECHO_REPLY_IPV6 = 128, 129
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
PATIENCE = 2.0  # seconds


def ping(address: str, scope: int = 0) -> float | None:
    """The seconds until an answer came; None for none. Raises OSError.

    ``scope`` is the index of the link that an address of a link is at.
    """
    mark = os.urandom(8)
    identifier = int.from_bytes(mark[:2], "big")
    over_ipv6 = ":" in address
    where = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if over_ipv6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    with socket.socket(where[0], socket.SOCK_RAW, where[1]) as sock:
        began = time.monotonic()
        if over_ipv6:  # the kernel fills in the checksum
            sock.sendto(echo(identifier, mark, _ECHO_IPV6), (address, 0, 0, scope))
        else:
            sock.sendto(echo(identifier, mark), (address, 0))
        while (left := began + PATIENCE - time.monotonic()) > 0:
            sock.settimeout(left)
            with suppress(TimeoutError):
                packet = sock.recv(2048)
                if over_ipv6:
                    found = says(packet, _ECHO_REPLY_IPV6, identifier, mark)
                else:
                    found = is_answer(packet, identifier, mark)
                if found:
                    return time.monotonic() - began
    return None


def echo(identifier: int, mark: bytes, kind: int = _ECHO) -> bytes:
    """An echo request that carries ``mark``."""
    words = _HEADER.pack(kind, 0, 0, identifier, 1) + mark
    return _HEADER.pack(kind, 0, checksum(words), identifier, 1) + mark


def is_answer(packet: bytes, identifier: int, mark: bytes) -> bool:
    """Whether an IP packet is the answer to such a request."""
    content = packet[(packet[0] & 0x0F) * 4 :] if packet else b""
    return says(content, _ECHO_REPLY, identifier, mark)


def says(content: bytes, kind: int, identifier: int, mark: bytes) -> bool:
    """Whether this is an ICMP message of this kind, with this identifier and ``mark``."""
    if len(content) < _HEADER.size:
        return False
    found, _, _, number, _ = _HEADER.unpack_from(content)
    return (found, number, content[_HEADER.size :]) == (kind, identifier, mark)


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ (total + (total >> 16)) & 0xFFFF
