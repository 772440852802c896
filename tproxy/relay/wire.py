"""The messages of a relay with the daemon and the workers, as bytes and as values. Nothing here does I/O.

One message is one SOCK_SEQPACKET datagram: a byte for its kind, then a fixed layout in network order.
Descriptors travel beside it (``channel``). Messages state what is wanted, never a change to it, so a repeated
or skipped message does no harm.
"""

import socket
import struct
from collections.abc import Iterable
from itertools import groupby

from tproxy.addresses import packed_address, unpacked_address
from tproxy.errors import ProtocolError
from tproxy.model import PROTOCOLS, ServiceKey
from tproxy.typed import NamedTuple

# Of this protocol; a relay names it in Hello. A daemon replaces a relay that has another version. A relay
# gives its sockets to a successor of any version: plain ones in the form of version 2, all others in messages
# that older versions refuse, and therefore last.
VERSION = 6

# The kernel takes at most SCM_MAX_FD descriptors in one message, <net/scm.h>.
MAX_DESCRIPTORS = 253

# The largest message is Report when all 65,535 ports have failed, for up to 256 different reasons. It is
# smaller than the default of net.core.wmem_default, so it can be sent. More ports than that, on several
# service addresses or of several protocols, are asked for by nobody.
MAX_BYTES = 1 + 4 + 2 * 65535 + 26 * 256

_HELLO = struct.Struct("!HI")
_LISTEN = struct.Struct("!IB")
_NUMBER = struct.Struct("!I")
_PORT = struct.Struct("!H")
_KEYS = struct.Struct("!BB16sH")  # protocol, IP version, address, and how many ports follow
_PROBLEM = struct.Struct("!HI")  # errno, and how many bytes of keys follow
_DIAL = struct.Struct("!Q16sH")
_DIALLED = struct.Struct("!QI")
_VERSIONS = {4: (socket.AF_INET, 4), 6: (socket.AF_INET6, 16)}


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
    """Daemon to relay: listen on exactly these ports. ``log_level`` as in ``logging``.

    Keys in messages of a relay are those of services without a network.
    """

    generation: int
    log_level: int
    keys: tuple[ServiceKey, ...]


class Report(NamedTuple):
    """Relay to daemon, after Listen: all ports listen, except for ``problems`` (errno by key)."""

    generation: int
    problems: dict[ServiceKey, int]


class Behind(NamedTuple):
    """Relay to daemon: the worker of this place in Workers has not taken sockets for some seconds."""

    place: int


class Accepted(NamedTuple):
    """Relay to worker: guests have connected to a service port. Beside it: their sockets."""

    key: ServiceKey


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
    """Relay to daemon or successor, daemon to relay. Beside it: the sockets that listen on these.

    For UDP these are bound sockets.

    At a successor, end of file follows the last.
    """

    keys: tuple[ServiceKey, ...]


class Dial(NamedTuple):
    """Worker to relay, on a data channel: begin to connect to a guest's address and port."""

    number: int
    address: str
    port: int


class Dialled(NamedTuple):
    """Relay to worker, after Dial with this number. Beside it: the socket, whose connect(2) has begun.

    Where that failed at once, there is no socket, and ``errno`` says why.
    """

    number: int
    errno: int


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
    | Dial
    | Dialled
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
        case Accepted(key):
            return b"A" + _PORT.pack(key.port) if key.plain else b"C" + _pack_keys([key])
        case Born(pid):
            return b"B" + _NUMBER.pack(pid)
        case Hello(version, pid):
            return b"H" + _HELLO.pack(version, pid)
        case Listen(generation, log_level, keys):
            return b"L" + _LISTEN.pack(generation, log_level) + _pack_keys(keys)
        case Report(generation, problems):
            return b"R" + _NUMBER.pack(generation) + _pack_problems(problems)
        case Behind(place):
            return b"b" + _PORT.pack(place)
        case Failed(reason):
            return b"F" + reason.encode(errors="backslashreplace")
        case Listeners(keys):
            if all(key.plain for key in keys):
                return b"S" + _pack_ports(key.port for key in keys)
            return b"U" + _pack_keys(keys)
        case Dial(number, address, port):
            return b"D" + _DIAL.pack(number, packed_address(address), port)
        case Dialled(number, errno):
            return b"E" + _DIALLED.pack(number, errno)
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
                return Accepted(ServiceKey(*_PORT.unpack_from(body)))
            case b"C":
                (key,) = _unpack_keys(body)
                return Accepted(key)
            case b"B":
                return Born(*_NUMBER.unpack(body))
            case b"H":
                return Hello(*_HELLO.unpack(body))
            case b"L":
                generation, log_level = _LISTEN.unpack_from(body)
                return Listen(generation, log_level, _unpack_keys(body[_LISTEN.size :]))
            case b"R":
                (generation,) = _NUMBER.unpack_from(body)
                return Report(generation, _unpack_problems(body[_NUMBER.size :]))
            case b"b":
                return Behind(*_PORT.unpack(body))
            case b"F":
                return Failed(body.decode())
            case b"S":
                return Listeners(tuple(map(ServiceKey, _unpack_ports(body))))
            case b"U":
                return Listeners(_unpack_keys(body))
            case b"D":
                number, packed, port = _DIAL.unpack(body)
                return Dial(number, unpacked_address(packed), port)
            case b"E":
                return Dialled(*_DIALLED.unpack(body))
            case _ if kind in _EMPTY and not body:
                return _EMPTY[kind]()
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"a message of kind {kind!r} is malformed: {error}") from error
    raise ProtocolError(f"a message of unknown kind {kind!r}")


def _pack_ports(ports: Iterable[int]) -> bytes:
    return b"".join(map(_PORT.pack, ports))


def _unpack_ports(data: bytes) -> tuple[int, ...]:
    return tuple(port for (port,) in _PORT.iter_unpack(data))


def _pack_keys(keys: Iterable[ServiceKey]) -> bytes:
    """Return the keys, in their order. Those that follow each other share what they have in common."""
    packed = []
    for (protocol, address), same in groupby(keys, lambda key: (key.protocol, key.address)):
        version = 6 if ":" in address else 4
        ports = _pack_ports(key.port for key in same)
        binary = socket.inet_pton(_VERSIONS[version][0], address)
        packed.append(
            _KEYS.pack(PROTOCOLS.index(protocol), version, binary, len(ports) // _PORT.size) + ports
        )
    return b"".join(packed)


def _unpack_keys(data: bytes) -> tuple[ServiceKey, ...]:
    keys: list[ServiceKey] = []
    while data:
        protocol, version, packed, count = _KEYS.unpack_from(data)
        end = _KEYS.size + 2 * count
        if len(data) < end or protocol >= len(PROTOCOLS) or version not in _VERSIONS:
            raise ProtocolError("the ports in a message are incomplete, or of an unknown protocol")
        family, size = _VERSIONS[version]
        common = PROTOCOLS[protocol], socket.inet_ntop(family, packed[:size])
        keys += [ServiceKey(port, *common) for port in _unpack_ports(data[_KEYS.size : end])]
        data = data[end:]
    return tuple(keys)


def _pack_problems(problems: dict[ServiceKey, int]) -> bytes:
    """Return the keys grouped by errno: there are many ports, and few reasons."""
    packed = b""
    for number in sorted(set(problems.values())):
        keys = _pack_keys(key for key, each in problems.items() if each == number)
        packed += _PROBLEM.pack(number, len(keys)) + keys
    return packed


def _unpack_problems(data: bytes) -> dict[ServiceKey, int]:
    problems: dict[ServiceKey, int] = {}
    while data:
        number, size = _PROBLEM.unpack_from(data)
        end = _PROBLEM.size + size
        if len(data) < end:
            raise ProtocolError("the report is incomplete")
        problems |= dict.fromkeys(_unpack_keys(data[_PROBLEM.size : end]), number)
        data = data[end:]
    return problems
