"""The messages of a relay with the daemon and the workers, as bytes and as values. Nothing here does I/O.

One message is one SOCK_SEQPACKET datagram: a byte for its kind, then a fixed layout in network order.
Descriptors travel beside it (``channel``). Messages state what is wanted, never a change to it, so a repeated
or skipped message does no harm.
"""

import struct

from tproxy.errors import ProtocolError
from tproxy.typed import NamedTuple

# Of this protocol; a relay names it in Hello. A daemon replaces a relay that has another version.
VERSION = 2

# The kernel takes at most SCM_MAX_FD descriptors in one message, <net/scm.h>.
MAX_DESCRIPTORS = 253

# The largest message is Report when all 65,535 ports have failed, for up to 256 different reasons. It is
# smaller than the default of net.core.wmem_default, so it can be sent.
MAX_BYTES = 1 + 4 + 2 * 65535 + 4 * 256

_HELLO = struct.Struct("!HI")
_LISTEN = struct.Struct("!IB")
_NUMBER = struct.Struct("!I")
_PORT = struct.Struct("!H")
_PROBLEM = struct.Struct("!HH")  # errno, and how many ports follow


class Born(NamedTuple):
    """A new process to the daemon, first, while it still is our own code with all rights.

    Beside it: its pidfd, by which the daemon can end it, whatever becomes of it (pidfd_open(2)).
    """

    pid: int


class Hello(NamedTuple):
    """Relay to daemon, first. Beside it: a socket made in its namespace, as proof of where the relay is.

    Relays of version 1 name their process id. Nothing is done with it.
    """

    version: int
    pid: int = 0


class Workers(NamedTuple):
    """Daemon to relay. Beside it: a data channel to each worker, in the place of all earlier ones."""


class LogFile(NamedTuple):
    """Daemon to relay or worker. Beside it: the file to log to from now on."""


class Listen(NamedTuple):
    """Daemon to relay: listen on exactly these ports. ``log_level`` as in ``logging``."""

    generation: int
    log_level: int
    ports: tuple[int, ...]


class Report(NamedTuple):
    """Relay to daemon, after Listen: all ports listen, except for ``problems`` (errno by port)."""

    generation: int
    problems: dict[int, int]


class Behind(NamedTuple):
    """Relay to daemon: the worker of this place in Workers has not taken sockets for some seconds."""

    place: int


class Accepted(NamedTuple):
    """Relay to worker: guests have connected to a service port. Beside it: their sockets."""

    port: int


class Failed(NamedTuple):
    """Relay to daemon, instead of Hello: why the relay could not start."""

    reason: str


class Quit(NamedTuple):
    """Daemon to relay: end."""


class Adopt(NamedTuple):
    """New process to the relay that is there already: this connection leads to your new daemon."""


class Adopted(NamedTuple):
    """New process to daemon, instead of Hello. Beside it: a channel to the relay that was there already."""


class Takeover(NamedTuple):
    """Successor to relay: hand over the listening sockets, and end."""


class Listeners(NamedTuple):
    """Relay to daemon or successor, daemon to relay. Beside it: the sockets that listen on ``ports``.

    At a successor, end of file follows the last.
    """

    ports: tuple[int, ...]


Message = (
    Born
    | Hello
    | Workers
    | LogFile
    | Listen
    | Report
    | Behind
    | Accepted
    | Failed
    | Quit
    | Adopt
    | Adopted
    | Takeover
    | Listeners
)

_EMPTY: dict[bytes, type[Workers | LogFile | Quit | Adopt | Adopted | Takeover]] = {
    b"W": Workers,
    b"l": LogFile,
    b"Q": Quit,
    b"a": Adopt,
    b"d": Adopted,
    b"t": Takeover,
}


def encode(message: Message) -> bytes:
    """Return the message as bytes, at most MAX_BYTES."""
    match message:
        case Accepted(port):
            return b"A" + _PORT.pack(port)
        case Born(pid):
            return b"B" + _NUMBER.pack(pid)
        case Hello(version, pid):
            return b"H" + _HELLO.pack(version, pid)
        case Listen(generation, log_level, ports):
            return b"L" + _LISTEN.pack(generation, log_level) + _pack_ports(ports)
        case Report(generation, problems):
            return b"R" + _NUMBER.pack(generation) + _pack_problems(problems)
        case Behind(place):
            return b"b" + _PORT.pack(place)
        case Failed(reason):
            return b"F" + reason.encode(errors="backslashreplace")
        case Listeners(ports):
            return b"S" + _pack_ports(ports)
        case Workers():
            return b"W"
        case LogFile():
            return b"l"
        case Quit():
            return b"Q"
        case Adopt():
            return b"a"
        case Adopted():
            return b"d"
        case Takeover():
            return b"t"


def decode(data: bytes) -> Message:
    """Return the message in ``data``; raises ProtocolError for anything that ``encode`` cannot make."""
    kind, body = data[:1], data[1:]
    try:
        match kind:
            case b"A":
                # Behind the port, a relay of version 1 names the guests.
                return Accepted(*_PORT.unpack_from(body))
            case b"B":
                return Born(*_NUMBER.unpack(body))
            case b"H":
                return Hello(*_HELLO.unpack(body))
            case b"L":
                generation, log_level = _LISTEN.unpack_from(body)
                return Listen(generation, log_level, _unpack_ports(body[_LISTEN.size :]))
            case b"R":
                (generation,) = _NUMBER.unpack_from(body)
                return Report(generation, _unpack_problems(body[_NUMBER.size :]))
            case b"b":
                return Behind(*_PORT.unpack(body))
            case b"F":
                return Failed(body.decode())
            case b"S":
                return Listeners(_unpack_ports(body))
            case _ if kind in _EMPTY and not body:
                return _EMPTY[kind]()
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"a message of kind {kind!r} is malformed: {error}") from error
    raise ProtocolError(f"a message of unknown kind {kind!r}")


def _pack_ports(ports: tuple[int, ...]) -> bytes:
    return struct.pack(f"!{len(ports)}H", *ports)


def _unpack_ports(data: bytes) -> tuple[int, ...]:
    return tuple(port for (port,) in _PORT.iter_unpack(data))


def _pack_problems(problems: dict[int, int]) -> bytes:
    """Return the ports grouped by errno: there are many ports, and few reasons."""
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
            raise ProtocolError("the report is incomplete")
        problems |= dict.fromkeys(_unpack_ports(data[_PROBLEM.size : end]), number)
        data = data[end:]
    return problems
