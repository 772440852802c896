"""The frozen types everything else speaks in, what they may hold, and the names derived from a bridge's name.

They are named tuples, and light ones (``typed``): importing ``dataclasses`` takes some milliseconds, and
making each class a third of one; a hook, which runs at every VM start, would pay for both.
"""

import socket
from collections.abc import Mapping

from tproxy.errors import BadName
from tproxy.typed import NamedTuple

SERVICE_ADDRESS = "169.254.16.9"

# Locally administered (bit 1 of the first byte), the service address in the last four. The same on
# every bridge and host, so that a migrated guest's ARP cache stays right. Not 02:00, which is
# OpenNebula's own prefix for "MAC from IP" and would be this very address for a guest 169.254.16.9.
SERVICE_MAC = "06:00:a9:fe:10:09"

# Of the veth's other end, the bridge's port. It tells our ports from all others, on which a name
# that ends in "b" says nothing: programs that manage links are told to leave it alone (etc/). And it
# is high: a bridge takes the lowest address of its ports for its own unless it was given one, and a
# hook must not change the address under which guests know their gateway.
PORT_MAC = "fe:ff:a9:fe:10:09"

TABLE = "one_tproxy"  # in nftables families ip (maps) and bridge (guards)
DAEMON_TITLE = "one_tproxy"

# IFNAMSIZ is 16 with the final NUL, <linux/if.h>.
INTERFACE_NAME_BYTES = 15

DEFAULT_CONNECT_TIMEOUT = 5.0  # seconds

_MULTICAST = range(224, 240)  # 224.0.0.0/4

# What an nftables identifier and a file name can both hold without quoting (nft(8), LEXICAL
# CONVENTIONS). Linux allows more in an interface name; a bridge called "a;b" is refused in words
# instead of being half-supported.
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def check_interface_name(name: str, what: str = "bridge") -> str:
    """Return ``name`` when it can be an interface name here; raise BadName otherwise."""
    if not name:
        raise BadName(f"{what} name is empty")
    if len(name.encode(errors="surrogateescape")) > INTERFACE_NAME_BYTES:
        raise BadName(f"{what} name {name!a} is longer than {INTERFACE_NAME_BYTES} bytes")
    if name in (".", "..") or not _NAME.issuperset(name):
        raise BadName(f"{what} name {name!a} may hold only letters, digits, '_', '.' and '-'")
    return name


class _Bridge(NamedTuple):
    bridge: str


class BridgeNames(_Bridge):
    """All names on the host that belong to one bridge (SPEC section 2)."""

    __slots__ = ()

    def __new__(cls, bridge: str) -> "BridgeNames":
        return super().__new__(cls, check_interface_name(bridge))

    @property
    def namespace(self) -> str:
        return f"one_tproxy_{self.bridge}"

    @property
    def _veth_stem(self) -> str:
        if len(self.bridge) < INTERFACE_NAME_BYTES:
            return self.bridge
        import hashlib  # OpenSSL behind it is large, and few bridges need it

        # No room for one more letter: "tp", 12 hexadecimal digits of a hash, then "a" or "b".
        # 48 bits make a collision between the bridges of one host a matter of geology.
        return "tp" + hashlib.blake2s(self.bridge.encode(), digest_size=6).hexdigest()

    @property
    def veth_bridge(self) -> str:
        return self._veth_stem + "b"

    @property
    def veth_namespace(self) -> str:
        return self._veth_stem + "a"

    @property
    def map(self) -> str:
        return f"ep_{self.bridge}"

    @property
    def arp_guard(self) -> str:
        return f"ch_{self.bridge}"

    @property
    def relay_title(self) -> str:
        return f"one_tproxy_{self.bridge}"

    @property
    def relay_log(self) -> str:
        return f"one_tproxy_{self.bridge}.log"


def is_ipv4(text: str) -> bool:
    """Whether it is a dotted IPv4 address, all four numbers of it."""
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def refused(address: str) -> str:
    """Why this cannot be an endpoint; "" when it can, or is a name."""
    if address == SERVICE_ADDRESS:
        return "is the service address itself: a loop"
    if not is_ipv4(address):
        return ""
    if address in ("0.0.0.0", "255.255.255.255") or int(address.partition(".")[0]) in _MULTICAST:
        return "is not the address of one host"
    return ""


class _AddressPort(NamedTuple):
    address: str
    port: int


class Endpoint(_AddressPort):
    """The real address behind a service port; ``address`` is a dotted IPv4 address."""

    __slots__ = ()

    def __new__(cls, address: str, port: int) -> "Endpoint":
        if not is_ipv4(address):
            raise ValueError(f"{address!a} is not an IPv4 address")
        return super().__new__(cls, address, port)

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class Service(NamedTuple):
    """One service port on one bridge. ``connect_timeout`` is in seconds."""

    port: int
    endpoint: Endpoint
    name: str = ""
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT


class Network(NamedTuple):
    """What the driver calls the network; empty where it did not say.

    Where a map was read, ``name`` can be what stands for one that is too long for it.
    """

    name: str = ""
    id: str = ""

    def is_one_of(self, networks: frozenset[str]) -> bool:
        """Whether its name or its id is among these."""
        if not networks.isdisjoint((self.name, self.id)):
            return True
        return self.name.startswith(_LONG_NAME) and self.name in map(stand_in, networks)


_LONG_NAME = "blake2s:"


def stand_in(name: str) -> str:
    """What a network's name is known by where it is too long to be kept, as in a comment of nftables."""
    import hashlib  # see BridgeNames

    return _LONG_NAME + hashlib.blake2s(name.encode(errors="surrogateescape"), digest_size=12).hexdigest()


class Settings(NamedTuple):
    """What the processes are told beside the maps. None leaves a setting as it is.

    A new daemon takes the default for None. ``log_level`` is a level of ``logging``. ``watch_file`` is the
    configuration file for which the daemon keeps a watcher; "" is no watcher.
    """

    log_level: int | None = None
    watch_file: str | None = None


class ServiceMap(NamedTuple):
    """What the service map of one bridge says: the only source of what is proxied there."""

    bridge: str
    services: Mapping[int, Service]
    network: Network = Network()
