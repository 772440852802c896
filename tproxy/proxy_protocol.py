"""Headers of the PROXY protocol, version 2, as values and as bytes.

A header stands before the first byte of a connection, or of a datagram, and says who speaks and to whom. It
can hold further values, called TLVs (type, length, value). The types that begin with ``OF_`` are ours, from
the range that the specification keeps for applications.

Source: "The PROXY protocol", Willy Tarreau, haproxy.org/download/2.6/doc/proxy-protocol.txt, section 2.2.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from tproxy.errors import ProtocolError
from tproxy.typed import NamedTuple

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

# Types of TLVs. The value of each is UTF-8 text.
UNIQUE_ID = 0x05  # the connection's id, the same as in our log
OF_NETWORK = 0xE0
OF_NETWORK_ID = 0xE1
OF_BRIDGE = 0xE2
OF_MAC = 0xE3  # of the guest
OF_PORT = 0xE4  # the bridge port behind which the guest is
OF_HYPERVISOR = 0xE5
OF_PROBE = 0xE6  # at in.sock: say whether the guest accepts, and end

# Bytes of all addresses and TLVs of a header that is accepted. Ours are shorter; the field allows 65,535.
MOST = 4096

STREAM, DATAGRAM = 1, 2

_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_UNSPECIFIED, _INET, _INET6 = 0, 1, 2
_START = struct.Struct("!12sBBH")  # signature, version and command, family and transport, length
_PORTS = struct.Struct("!HH")
_TLV = struct.Struct("!BH")
_ADDRESS_BYTES = {_INET: 4, _INET6: 16}
_SOCKET_FAMILIES = {_INET: socket.AF_INET, _INET6: socket.AF_INET6}

START = _START.size  # bytes of the part of each header that says how long the rest is


class Header(NamedTuple):
    """Who speaks to whom, with ports; None where the sender speaks for itself (a LOCAL header)."""

    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    values: Mapping[int, str]


def encode(
    source: tuple[str, int],
    destination: tuple[str, int],
    values: Mapping[int, str],
    transport: int = STREAM,
) -> bytes:
    """Return a header. Both addresses are IPv4, or both are IPv6. ``values`` without text are left out.

    Raises ValueError for anything else, and for more than 65,535 bytes.
    """
    family = _INET6 if ":" in source[0] else _INET
    parts = [
        socket.inet_pton(_SOCKET_FAMILIES[family], source[0]),
        socket.inet_pton(_SOCKET_FAMILIES[family], destination[0]),
        _PORTS.pack(source[1], destination[1]),
    ]
    for kind, text in values.items():
        if text:
            value = text.encode()
            parts += _TLV.pack(kind, len(value)), value
    body = b"".join(parts)
    return _START.pack(SIGNATURE, _PROXY, family << 4 | transport, len(body)) + body


def length(start: bytes) -> int:
    """Return how many bytes follow the first ``START`` bytes of a header, which are ``start``.

    Raises ProtocolError when they do not begin a header, or one that is longer than MOST.
    """
    signature, command, _, rest = _START.unpack(start)
    if signature != SIGNATURE or command not in (_LOCAL, _PROXY):
        raise ProtocolError("this is no header of the PROXY protocol, version 2")
    if rest > MOST:
        raise ProtocolError(f"a PROXY header of {rest} bytes is too long")
    found: int = rest
    return found


def decode(data: bytes) -> Header:
    """Return the header in ``data``, which holds the header and nothing else. Raises ProtocolError.

    The last of several values of one type counts. Types that are not known are in ``values`` too, unless they
    are no text.
    """
    if len(data) < START or len(data) != START + length(data[:START]):
        raise ProtocolError("a PROXY header is cut off, or too long")
    _, command, family, _ = _START.unpack_from(data)
    if command == _LOCAL or family == _UNSPECIFIED:
        return Header(None, None, {})
    size = _ADDRESS_BYTES.get(family >> 4)
    if size is None:
        raise ProtocolError(f"a PROXY header of family {family >> 4} cannot be used")
    first = START + 2 * size + _PORTS.size
    if len(data) < first:
        raise ProtocolError("a PROXY header has no room for its addresses")
    ends = [
        socket.inet_ntop(_SOCKET_FAMILIES[family >> 4], data[at : at + size]) for at in (START, START + size)
    ]
    source, destination = _PORTS.unpack_from(data, START + 2 * size)
    return Header((ends[0], source), (ends[1], destination), _values(data, first))


def _values(data: bytes, at: int) -> dict[int, str]:
    found: dict[int, str] = {}
    while at < len(data):
        if len(data) - at < _TLV.size:
            raise ProtocolError("a value in a PROXY header is cut off")
        kind, size = _TLV.unpack_from(data, at)
        at += _TLV.size + size
        if at > len(data):
            raise ProtocolError("a value in a PROXY header is cut off")
        try:
            found[kind] = data[at - size : at].decode()
        except UnicodeDecodeError:
            if kind >= OF_NETWORK:
                raise ProtocolError(f"value 0x{kind:02x} in a PROXY header is no UTF-8 text") from None
    return found
