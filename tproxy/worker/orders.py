"""The messages between daemon and worker, as bytes and as values. Nothing here does I/O.

The daemon says what is wanted, and repeats all of it to a worker that it starts or adopts. As in
``relay.wire``, a message is one SOCK_SEQPACKET datagram with descriptors beside it. ``Ready``, ``Drain``,
``Forget`` and ``LogFile`` keep their form in all versions: a daemon of another version must be able to tell a
worker to finish, and that a bridge is gone meanwhile.
"""

from __future__ import annotations

import struct

from tproxy.addresses import packed_address
from tproxy.datapath.membership import Card
from tproxy.errors import ProtocolError
from tproxy.model import Network, Service, ServiceKey
from tproxy.names import INTERFACE_NAME_BYTES
from tproxy.typed import NamedTuple
from tproxy.worker import packing, route_orders
from tproxy.worker.route_orders import Absent as Absent
from tproxy.worker.route_orders import Inlet as Inlet
from tproxy.worker.route_orders import Routes as Routes
from tproxy.worker.route_orders import Told as Told

# Of this protocol. A daemon tells a worker of another version to finish, and starts one of its own.
VERSION = 10

# The first bytes of the messages to a worker that have the same form in all versions.
IN_ALL_VERSIONS = (b"D", b"F", b"L", b"M")

# Guests in one message.
MOST_GUESTS = 2048

_NAME = struct.Struct(f"!{INTERFACE_NAME_BYTES}s")
_BRIDGE = struct.Struct(f"!{INTERFACE_NAME_BYTES}s?Q")
_UNREACHABLE = struct.Struct(f"!{INTERFACE_NAME_BYTES}sd")
_SERVICES = struct.Struct(f"!{INTERFACE_NAME_BYTES}s??")
_SETTINGS = struct.Struct("!BHHHI")
_NUMBER = struct.Struct("!I")
_NETWORKS = struct.Struct(f"!{INTERFACE_NAME_BYTES}s??HH")
_ORDER = struct.Struct("!I")
_PORTS = struct.Struct(f"!{INTERFACE_NAME_BYTES}s?")
_LABELS = struct.Struct(f"!{INTERFACE_NAME_BYTES}s?H")
_MEMBER = struct.Struct("!6sI")
_CARD = struct.Struct(f"!{INTERFACE_NAME_BYTES}s6sI")
_PORT = struct.Struct(f"!6s{INTERFACE_NAME_BYTES}s")
_LENGTH = struct.Struct("!H")
_READY = struct.Struct("!H?")
_SYNC = struct.Struct("!I?")
_DIAL = struct.Struct("!Id")
_DIALLED = struct.Struct("!IH")


class Settings(NamedTuple):
    """Daemon to worker. ``workers``: how many share the limits. ``ports``: what ip_local_port_range says.

    ``max_connections``: how many may be open in all workers; 0: as many as they have descriptors for.
    """

    log_level: int
    workers: int
    ports: tuple[int, int]
    max_connections: int = 0


class Services(NamedTuple):
    """Daemon to worker: the services of a bridge. A long list comes in several messages, in order."""

    bridge: str
    first: bool
    last: bool
    services: tuple[Service, ...]


class Networks(NamedTuple):
    """Daemon to worker: what endpoints are told of a bridge's guests (``datapath.introduction``).

    Networks have their order before them. ``members``: MAC addresses, each with the order of its network.
    ``cards``: ports, each with a MAC and the order. A long list comes in several messages, which all have the
    networks; it replaces what was said before.
    """

    bridge: str
    first: bool
    last: bool
    hypervisor: str
    networks: tuple[tuple[int, Network], ...]
    members: tuple[tuple[str, int], ...] = ()
    cards: tuple[Card, ...] = ()


class Ports(NamedTuple):
    """Daemon to worker: behind which port of the bridge MAC addresses are.

    "" where that is not known now, and ``membership.SEVERAL`` where there are several.

    ``first``: in place of all that was said before.
    """

    bridge: str
    first: bool
    ports: tuple[tuple[str, str], ...]


class Labels(NamedTuple):
    """Daemon to worker: what the log calls a bridge's network, and its services by key.

    A long list comes in several messages; the ``first`` replaces what was said before.
    """

    bridge: str
    first: bool
    network: str
    names: tuple[tuple[ServiceKey, str], ...]


class Addresses(NamedTuple):
    """Daemon to worker: the bridge has these service addresses alone. What goes on at another one ends."""

    bridge: str
    addresses: tuple[str, ...]


class Neighbours(NamedTuple):
    """Daemon to worker. Beside it: a netlink socket of the bridge's namespace, for it alone.

    It tells which MAC an IPv6 address has there (``kernel.neighbours``).
    """

    bridge: str


class Bridge(NamedTuple):
    """Daemon to worker. Beside it: a data channel, on which the bridge's relay passes sockets on.

    Each of them must be of the namespace with this cookie; None where the kernel has no cookies (before
    5.14).
    """

    bridge: str
    cookie: int | None


class Gate(NamedTuple):
    """Daemon to worker. Beside it: the bound UDP socket of a service, to read and to answer guests from.

    The worker is the only one that has it.
    """

    bridge: str
    key: ServiceKey


class LetGo(NamedTuple):
    """Daemon to worker: another worker has the bridge's UDP sockets now; finish the sessions."""

    bridge: str


class Unreachable(NamedTuple):
    """Worker to daemon: no endpoint of a UDP service can be reached; refuse guests for so many seconds.

    0: refuse them no longer.
    """

    bridge: str
    key: ServiceKey
    seconds: float


class Dial(NamedTuple):
    """Worker to daemon: connect to the UNIX socket with this path, and go on trying for so many seconds.

    ``number`` is in the answer.
    """

    number: int
    seconds: float
    path: str


class HangUp(NamedTuple):
    """Worker to daemon: a Dial is not wanted any more."""

    number: int


class Dialled(NamedTuple):
    """Daemon to worker. Beside it, where ``error`` is 0: the connected socket. Otherwise it is an errno."""

    number: int
    error: int


class Forget(NamedTuple):
    """Daemon to worker: the bridge has no services any more; its connections end."""

    bridge: str


class LogFile(NamedTuple):
    """Daemon to worker. Beside it: the file to log to from now on."""


class Meeting(NamedTuple):
    """Daemon to worker. Beside it: a bound socket at which later daemons find the worker from now on."""


class Sync(NamedTuple):
    """Daemon to worker: say Synced when all earlier messages have taken effect.

    ``counting``: bring the counts of bytes up to date before, for connections that are still open.
    """

    number: int
    counting: bool


class Drain(NamedTuple):
    """Daemon to worker: finish. Take what relays still pass on, and end with the last connection."""


class Question(NamedTuple):
    """Daemon to worker. Beside it: a socket on which somebody waits for the answer (``questions``)."""

    kind: str
    words: tuple[str, ...]


class Ready(NamedTuple):
    """Worker to a new daemon, first. Beside it: the memory with its counters (``counters``)."""

    version: int
    draining: bool


class Synced(NamedTuple):
    """Worker to daemon, after Sync."""

    number: int


Message = (
    Settings
    | Services
    | Networks
    | Labels
    | Ports
    | Addresses
    | Neighbours
    | Bridge
    | Gate
    | LetGo
    | Unreachable
    | Dial
    | HangUp
    | Dialled
    | Forget
    | LogFile
    | Meeting
    | Sync
    | Drain
    | Question
    | Ready
    | Synced
    | route_orders.Message
)


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    match message:
        case Settings(log_level, workers, (first, last), max_connections):
            return b"S" + _SETTINGS.pack(log_level, workers, first, last, max_connections)
        case Services(bridge, first, last, services):
            return b"P" + _SERVICES.pack(bridge.encode(), first, last) + b"".join(map(packing.pack, services))
        case Networks(bridge, first, last, hypervisor, networks, members, cards):
            texts = [hypervisor, *(text for _, network in networks for text in network)]
            return b"".join(
                (
                    b"N" + _NETWORKS.pack(bridge.encode(), first, last, len(networks), len(members)),
                    *(_ORDER.pack(order) for order, _ in networks),
                    packing.pack_texts(texts),
                    *(_MEMBER.pack(_mac_bytes(mac), order) for mac, order in members),
                    *(_CARD.pack(port.encode(), _mac_bytes(mac), order) for port, mac, order in cards),
                )
            )
        case Labels(bridge, first, network, names):
            called = [network, *(name for _, name in names)]
            return b"".join(
                (
                    b"n" + _LABELS.pack(bridge.encode(), first, len(names)),
                    *(packing.pack_key(key) for key, _ in names),
                    packing.pack_texts(called),
                )
            )
        case Ports(bridge, first, ports):
            packed = (_PORT.pack(_mac_bytes(mac), port.encode()) for mac, port in ports)
            return b"p" + _PORTS.pack(bridge.encode(), first) + b"".join(packed)
        case Addresses(bridge, addresses):
            return b"a" + _NAME.pack(bridge.encode()) + b"".join(map(packed_address, addresses))
        case Neighbours(bridge):
            return b"h" + _NAME.pack(bridge.encode())
        case Bridge(bridge, cookie):
            return b"B" + _BRIDGE.pack(bridge.encode(), cookie is not None, cookie or 0)
        case Gate(bridge, key):
            return b"G" + _NAME.pack(bridge.encode()) + packing.pack_key(key)
        case LetGo(bridge):
            return b"g" + _NAME.pack(bridge.encode())
        case Unreachable(bridge, key, seconds):
            return b"U" + _UNREACHABLE.pack(bridge.encode(), seconds) + packing.pack_key(key)
        case Dial(number, seconds, path):
            return b"c" + _DIAL.pack(number, seconds) + path.encode()
        case HangUp(number):
            return b"e" + _NUMBER.pack(number)
        case Dialled(number, error):
            return b"C" + _DIALLED.pack(number, error)
        case Forget(bridge):
            return b"F" + _NAME.pack(bridge.encode())
        case LogFile():
            return b"L"
        case Meeting():
            return b"M"
        case Sync(number, counting):
            return b"s" + _SYNC.pack(number, counting)
        case Drain():
            return b"D"
        case Question(kind, words):
            return b"Q" + _LENGTH.pack(len(words)) + packing.pack_texts((kind, *words))
        case Ready(version, draining):
            return b"r" + _READY.pack(version, draining)
        case Synced(number):
            return b"d" + _NUMBER.pack(number)
        case Routes() | Inlet() | Absent():
            return route_orders.encode(message)


def decode(data: bytes) -> Message:
    """Return the message in ``data``; raises ProtocolError for anything that ``encode`` cannot make."""
    kind, body = data[:1], data[1:]
    try:
        match kind:
            case b"S":
                log_level, workers, start, end, max_connections = _SETTINGS.unpack(body)
                if not workers or start > end:
                    raise ProtocolError(f"settings for {workers} workers and ports {start} to {end}")
                return Settings(log_level, workers, (start, end), max_connections)
            case b"P":
                name, first, last = _SERVICES.unpack_from(body)
                return Services(_text(name), first, last, tuple(packing.unpack(body[_SERVICES.size :])))
            case b"N":
                return _unpack_networks(body)
            case b"n":
                return _unpack_labels(body)
            case b"p":
                name, first = _PORTS.unpack_from(body)
                found = _PORT.iter_unpack(body[_PORTS.size :])
                return Ports(_text(name), first, tuple((mac.hex(":"), _text(port)) for mac, port in found))
            case b"a":
                addresses = packing.unpack_addresses(body[_NAME.size :])
                return Addresses(_text(*_NAME.unpack_from(body)), addresses)
            case b"h":
                return Neighbours(_text(*_NAME.unpack(body)))
            case b"B":
                name, known, cookie = _BRIDGE.unpack(body)
                return Bridge(_text(name), cookie if known else None)
            case b"G":
                return Gate(_text(*_NAME.unpack_from(body)), packing.unpack_key(body[_NAME.size :]))
            case b"g":
                return LetGo(_text(*_NAME.unpack(body)))
            case b"U":
                name, seconds = _UNREACHABLE.unpack_from(body)
                return Unreachable(_text(name), packing.unpack_key(body[_UNREACHABLE.size :]), seconds)
            case b"c":
                number, seconds = _DIAL.unpack_from(body)
                return Dial(number, seconds, body[_DIAL.size :].decode())
            case b"e":
                return HangUp(*_NUMBER.unpack(body))
            case b"C":
                return Dialled(*_DIALLED.unpack(body))
            case b"F":
                return Forget(_text(*_NAME.unpack(body)))
            case b"L" if not body:
                return LogFile()
            case b"M" if not body:
                return Meeting()
            case b"s":
                return Sync(*_SYNC.unpack(body))
            case b"D":
                return Drain()
            case b"Q":
                (count,) = _LENGTH.unpack_from(body)
                (asked, *words), _ = packing.unpack_texts(body, _LENGTH.size, 1 + count)
                return Question(asked, tuple(words))
            case b"r":
                return Ready(*_READY.unpack_from(body))
            case b"d":
                return Synced(*_NUMBER.unpack(body))
            case _ if kind in route_orders.KINDS:
                return route_orders.decode(kind, body)
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"an order of kind {kind!r} is malformed: {error}") from error
    raise ProtocolError(f"an order of unknown kind {kind!r}")


def _unpack_networks(body: bytes) -> Networks:
    name, first, last, count, guests = _NETWORKS.unpack_from(body)
    at = _NETWORKS.size + count * _ORDER.size
    orders = [order for (order,) in _ORDER.iter_unpack(body[_NETWORKS.size : at])]
    texts, at = packing.unpack_texts(body, at, 1 + 2 * count)
    networks = tuple(zip(orders, map(Network, texts[1::2], texts[2::2]), strict=True))
    end = at + guests * _MEMBER.size
    if end > len(body):
        raise ProtocolError("the members of networks are cut off")
    members = tuple((mac.hex(":"), order) for mac, order in _MEMBER.iter_unpack(body[at:end]))
    cards = tuple((_text(port), mac.hex(":"), order) for port, mac, order in _CARD.iter_unpack(body[end:]))
    return Networks(_text(name), first, last, texts[0], networks, members, cards)


def _unpack_labels(body: bytes) -> Labels:
    name, first, count = _LABELS.unpack_from(body)
    at = _LABELS.size
    end = at + count * packing.KEY_BYTES
    keys = [
        packing.unpack_key(body[start : start + packing.KEY_BYTES])
        for start in range(at, end, packing.KEY_BYTES)
    ]
    (network, *names), _ = packing.unpack_texts(body, end, 1 + count)
    return Labels(_text(name), first, network, tuple(zip(keys, names, strict=True)))


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode()
