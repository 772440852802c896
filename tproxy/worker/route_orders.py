"""The messages about routes between daemon and worker (``orders``), as bytes and as values."""

from __future__ import annotations

import struct

from tproxy.errors import ProtocolError
from tproxy.names import INTERFACE_NAME_BYTES
from tproxy.typed import NamedTuple

# Routes in one message, with ids of at most 68 characters.
MOST_ROUTES = 1000

_ROUTES = struct.Struct(f"!{INTERFACE_NAME_BYTES}s?")
_ROUTE = struct.Struct("!IQ6sB")  # number, expires, MAC, and the length of the id that follows
_ABSENT = struct.Struct(f"!{INTERFACE_NAME_BYTES}sI")


class Told(NamedTuple):
    """What a worker needs to know of a route besides its service. ``mac`` is "" for any."""

    number: int
    id: str
    expires: int
    mac: str


class Routes(NamedTuple):
    """Daemon to worker: the routes of a bridge; their services follow with all others.

    A long list comes in several messages; the ``first`` replaces what was said before.
    """

    bridge: str
    first: bool
    routes: tuple[Told, ...]


class Inlet(NamedTuple):
    """Daemon to worker. Beside it: the listening socket for streams from outside; without it: accept none.

    Worker to a new daemon, after Ready: the socket that the daemon before it has made.
    """


class Absent(NamedTuple):
    """Worker to daemon: the guest of this route could not be reached, as if it were not there."""

    bridge: str
    number: int


Message = Routes | Inlet | Absent
KINDS = (b"R", b"I", b"A")


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    match message:
        case Routes(bridge, first, routes):
            packed = (
                _ROUTE.pack(each.number, each.expires, bytes.fromhex(each.mac.replace(":", "")), len(each.id))
                + each.id.encode()
                for each in routes
            )
            return b"R" + _ROUTES.pack(bridge.encode(), first) + b"".join(packed)
        case Inlet():
            return b"I"
        case Absent(bridge, number):
            return b"A" + _ABSENT.pack(bridge.encode(), number)


def decode(kind: bytes, body: bytes) -> Message:
    """Return the message; raises ProtocolError, struct.error or UnicodeDecodeError."""
    if kind == b"I" and not body:
        return Inlet()
    if kind == b"A":
        name, number = _ABSENT.unpack(body)
        return Absent(_text(name), number)
    name, first = _ROUTES.unpack_from(body)
    found = []
    at = _ROUTES.size
    while at < len(body):
        number, expires, mac, size = _ROUTE.unpack_from(body, at)
        at += _ROUTE.size + size
        if at > len(body):
            raise ProtocolError("the id of a route is cut off")
        known = mac.hex(":") if any(mac) else ""
        found.append(Told(number, body[at - size : at].decode(), expires, known))
    return Routes(_text(name), first, tuple(found))


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode()
