"""What relay and daemon say to each other, as bytes. Pure: nothing here touches a socket.

One message is one SOCK_SEQPACKET datagram: a byte that says which, then a fixed layout in network
order. Descriptors travel beside it (``channel``). All is stated as wanted state, never as a change
to it, so a repeated or skipped message does no harm.
"""

import struct

from tproxy.errors import ProtocolError
from tproxy.typed import NamedTuple

# Told in Hello; a daemon replaces a relay that speaks another version.
VERSION = 1

# The kernel takes at most SCM_MAX_FD descriptors in one message, <net/scm.h>.
MAX_DESCRIPTORS = 253

PEER_BYTES = 6

# The largest message is Report with all 65,535 ports, each of which may fail for one of the reasons
# there are; below the default net.core.wmem_default.
MAX_BYTES = 1 + 4 + 2 * 65535 + 4 * 256

_HELLO = struct.Struct("!HI")
_LISTEN = struct.Struct("!IB")
_REPORT = struct.Struct("!I")
_PORT = struct.Struct("!H")
_PROBLEM = struct.Struct("!HH")  # errno, and how many ports follow


class Hello(NamedTuple):
    """Relay to daemon, first; beside it one socket made in the namespace, which proves where."""

    version: int
    pid: int


class Listen(NamedTuple):
    """Daemon to relay: exactly these ports, from now on. ``log_level`` as in ``logging``."""

    generation: int
    log_level: int
    ports: tuple[int, ...]


class Report(NamedTuple):
    """Relay to daemon: what became of Listen; ports that are not in ``problems`` (errno) listen."""

    generation: int
    problems: dict[int, int]


class Accepted(NamedTuple):
    """Relay to daemon: connections of one service port; a socket beside it for each peer.

    A peer is PEER_BYTES long: address and port in network order. It is only for the log.
    """

    port: int
    peers: tuple[bytes, ...]


class Failed(NamedTuple):
    """Instead of Hello: the relay could not be started, and why."""

    reason: str


class Quit(NamedTuple):
    """Daemon to relay: end."""


class Adopt(NamedTuple):
    """To a relay, from one who speaks for a new daemon: serve this connection instead."""


class Adopted(NamedTuple):
    """To the daemon: beside this, the connection of a relay that was alive already."""


class Takeover(NamedTuple):
    """To a relay, from its successor: hand over your listening sockets and end."""


class Listeners(NamedTuple):
    """To the successor: beside this, listening sockets for these ports. The end of file ends them."""

    ports: tuple[int, ...]


Message = Hello | Listen | Report | Accepted | Failed | Quit | Adopt | Adopted | Takeover | Listeners

_EMPTY: dict[bytes, type[Quit | Adopt | Adopted | Takeover]] = {
    b"Q": Quit,
    b"a": Adopt,
    b"d": Adopted,
    b"t": Takeover,
}


def encode(message: Message) -> bytes:
    match message:
        case Accepted(port, peers):
            return b"A" + _PORT.pack(port) + b"".join(peers)
        case Hello(version, pid):
            return b"H" + _HELLO.pack(version, pid)
        case Listen(generation, log_level, ports):
            return b"L" + _LISTEN.pack(generation, log_level) + _pack_ports(ports)
        case Report(generation, problems):
            return b"R" + _REPORT.pack(generation) + _pack_problems(problems)
        case Failed(reason):
            return b"F" + reason.encode(errors="backslashreplace")
        case Listeners(ports):
            return b"S" + _pack_ports(ports)
        case Quit():
            return b"Q"
        case Adopt():
            return b"a"
        case Adopted():
            return b"d"
        case Takeover():
            return b"t"


def decode(data: bytes) -> Message:
    """The message in ``data``; raises ProtocolError for anything that ``encode`` cannot make."""
    kind, body = data[:1], data[1:]
    try:
        match kind:
            case b"A":
                (port,) = _PORT.unpack_from(body)
                return Accepted(port, _split_peers(body[_PORT.size :]))
            case b"H":
                return Hello(*_HELLO.unpack(body))
            case b"L":
                generation, log_level = _LISTEN.unpack_from(body)
                return Listen(generation, log_level, _unpack_ports(body[_LISTEN.size :]))
            case b"R":
                (generation,) = _REPORT.unpack_from(body)
                return Report(generation, _unpack_problems(body[_REPORT.size :]))
            case b"F":
                return Failed(body.decode())
            case b"S":
                return Listeners(_unpack_ports(body))
            case b"Q" | b"a" | b"d" | b"t" if not body:
                return _EMPTY[kind]()
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"a message of kind {kind!r} is malformed: {error}") from error
    raise ProtocolError(f"a message of unknown kind {kind!r}")


def _split_peers(data: bytes) -> tuple[bytes, ...]:
    if len(data) % PEER_BYTES:
        raise ProtocolError("half a peer")
    return tuple(data[start : start + PEER_BYTES] for start in range(0, len(data), PEER_BYTES))


def _pack_ports(ports: tuple[int, ...]) -> bytes:
    return struct.pack(f"!{len(ports)}H", *ports)


def _unpack_ports(data: bytes) -> tuple[int, ...]:
    return tuple(port for (port,) in _PORT.iter_unpack(data))


def _pack_problems(problems: dict[int, int]) -> bytes:
    """Ports by errno: there are many ports, and few reasons."""
    packed = b""
    for number in sorted(set(problems.values())):
        ports = tuple(port for port, each in problems.items() if each == number)
        packed += _PROBLEM.pack(number, len(ports)) + _pack_ports(ports)
    return packed


def _unpack_problems(data: bytes) -> dict[int, int]:
    problems: dict[int, int] = {}
    while data:
        number, count = _PROBLEM.unpack_from(data)
        end = _PROBLEM.size + 2 * count
        if len(data) < end:
            raise ProtocolError("half a report")
        problems |= dict.fromkeys(_unpack_ports(data[_PROBLEM.size : end]), number)
        data = data[end:]
    return problems
