"""The immutable types that all packages use: services, networks, guests, and the map of a bridge.

The types are the light named tuples of ``typed``, because a hook runs at every VM start: importing
``dataclasses`` takes some milliseconds, and each class that it makes a third of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, UNIX, is_endpoint, is_ipv4, is_unix
from tproxy.names import is_stand_in, stand_in
from tproxy.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the annotations of options, which are text at run time (tproxy.options)
    from typing import Annotated

    from tproxy.options import Choice, Number, Option, Seconds, Text
    from tproxy.routes import Route

TCP, UDP = PROTOCOLS = ("tcp", "udp")

DEFAULT_CONNECT_TIMEOUT = 5.0  # seconds
MOST_ENDPOINTS = 16  # of one service; arbitrary
SPREADS = ("first", "least")
PROXY_V2 = "v2"  # the value of a service's option proxy_protocol

DEFAULT_USER_TIMEOUT = 120  # seconds; relays' listeners have it too, and accepted sockets inherit it


class _AddressPort(NamedTuple):
    address: str
    port: int


class Endpoint(_AddressPort):
    """A real address behind a service port. Raises ValueError unless ``is_endpoint(address)``.

    The port of a UNIX socket is 0, whatever it is made with.
    """

    __slots__ = ()

    def __new__(cls, address: str, port: int) -> Endpoint:
        if not is_endpoint(address):
            raise ValueError(f"{address!a} is neither an IP address nor a UNIX socket")
        return super().__new__(cls, address, 0 if address.startswith(UNIX) else port)

    @property
    def is_unix(self) -> bool:
        return not self.port and self.address.startswith(UNIX)

    @property
    def path(self) -> str:
        """The path of a UNIX socket."""
        return self.address.removeprefix(UNIX)

    def __str__(self) -> str:
        if self.is_unix:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def leading(addresses: Sequence[str]) -> str:
    """Return the first IPv4 address, which a service map can hold; without one the first IP address.

    A UNIX socket comes last: it does not have the port that all others have.
    """
    return min(addresses, key=lambda each: 0 if is_ipv4(each) else 1 + is_unix(each))


class ServiceKey(NamedTuple):
    """What identifies a service on a bridge.

    ``address`` is the service address. ``network`` is the ``order`` of the bridge's network whose guests have
    the service (``Member``); 0: all guests.
    """

    port: int
    protocol: str = TCP
    address: str = SERVICE_ADDRESS
    network: int = 0

    @property
    def plain(self) -> bool:
        """Whether it can stand in ``ep_<bridge>``, which says nothing but the port."""
        return self[1:] == _PLAIN

    @property
    def listener(self) -> ServiceKey:
        """What a relay listens on for it: the same key for all networks."""
        return self._replace(network=0) if self.network else self

    @property
    def in_words(self) -> str:
        """The key for a message: the port alone for a plain one, such as 5030; or 169.254.169.254:53/udp."""
        if self.plain:
            return str(self.port)
        address = f"[{self.address}]" if ":" in self.address else self.address
        return (
            ("" if self.address == SERVICE_ADDRESS else f"{address}:")
            + str(self.port)
            + ("" if self.protocol == TCP else f"/{self.protocol}")
            + (f"@{self.network}" if self.network else "")
        )


_PLAIN = ServiceKey(0)[1:]


_MAIN = frozenset({SERVICE_ADDRESS})


class Service(NamedTuple):
    """A service with its endpoints and options, on one bridge.

    ``endpoint`` is the ``leading`` one. ``endpoints`` are the addresses of all, in the order in which they
    are tried; it is empty where there is one only. All have the port of ``endpoint``.

    Each declared field behind the endpoint is an option of the configuration file (``tproxy.options``), and
    a word in the comment of the service's element in nftables (``bridge.service_map``), as ``endpoints`` is.
    A new one goes to the end: a daemon sends them in this order to the code of another version.
    """

    key: ServiceKey
    endpoint: Endpoint
    name: Annotated[str, Option(Text(32), "the name of the service, for `status` and logs", unset="none")] = (
        ""
    )
    # At most 300 s: arbitrary, a guest's own connect() gives up after two minutes.
    connect_timeout: Annotated[
        float,
        Option(
            Seconds(0.001, 300),
            "how long the endpoint may take to accept a connection; then the guest's is reset",
            general=True,
        ),
    ] = DEFAULT_CONNECT_TIMEOUT
    # Limits and time-outs (datapath.limits, docs/limits.md). The most that a number can be is arbitrary, and
    # far beyond what one host can hold. At most 30 days: arbitrary.
    max_connections_per_guest: Annotated[
        int,
        Option(
            Number(0, 1_000_000),
            "how many connections one guest may have open; 0: no limit. More are reset",
            general=True,
        ),
    ] = 1024
    max_connections_per_bridge: Annotated[
        int,
        Option(
            Number(1, 1_000_000, words={"auto": 0}),
            "how many connections all guests of a bridge may have open. `auto`: half of those for which the "
            "workers have descriptors. More are reset",
            general=True,
        ),
    ] = 0
    max_connections_to_endpoint: Annotated[
        int,
        Option(
            Number(1, 1_000_000, words={"auto": 0}),
            "how many connections may lead to one endpoint, from all bridges; each takes a local port of "
            "this host. `auto`: three quarters of `net.ipv4.ip_local_port_range`. More are reset",
            general=True,
        ),
    ] = 0
    idle_timeout: Annotated[
        int,
        Option(
            Number(0, 2_592_000, "seconds"),
            "how long no byte may move before both sides are reset; 0: for ever",
            general=True,
        ),
    ] = 3600
    half_closed_timeout: Annotated[
        int,
        Option(
            Number(0, 2_592_000, "seconds"),
            "the same for a connection that one side has finished; 0: for ever",
            general=True,
        ),
    ] = 300
    user_timeout: Annotated[
        int,
        Option(
            Number(0, 86_400, "seconds"),
            "how long guest or endpoint may leave data unacknowledged, or its window closed, before both "
            "sides are reset (TCP_USER_TIMEOUT); 0: as long as the kernel waits",
            general=True,
        ),
    ] = DEFAULT_USER_TIMEOUT
    drain_timeout: Annotated[
        int,
        Option(
            Number(0, 2_592_000, "seconds"),
            "how long connections may go on in an old worker, after a restart, before they are reset; 0: "
            "for ever",
            general=True,
        ),
    ] = 3600
    # A word that another program wrote can be anything. All but PROXY_V2 means no header.
    proxy_protocol: Annotated[
        str,
        Option(
            Choice({"none": "", "v2": "v2"}),
            "whether the endpoint is told who is calling, by a header of the PROXY protocol, version 2",
            general=True,
        ),
    ] = ""

    @property
    def introduced(self) -> bool:
        """Whether the endpoint is told who is calling."""
        return self.proxy_protocol == PROXY_V2

    spread: Annotated[
        str,
        Option(
            Choice({"first": "first", "least": "least"}),
            "which of several endpoints a connection goes to: the first one in order that answers, or the "
            "one with the fewest open connections",
            general=True,
        ),
    ] = "first"
    udp_idle_timeout: Annotated[
        int,
        Option(
            Number(1, 86_400, "seconds", words={"auto": 0}),
            "how long a UDP session may be silent before it is forgotten. `auto`: 5 at service port 53, "
            "otherwise 30",
            general=True,
        ),
    ] = 0
    endpoints: tuple[str, ...] = ()

    @property
    def session_idle(self) -> int:
        """Seconds after which a silent UDP session ends. A DNS query has its answer soon, or never."""
        return self.udp_idle_timeout or (5 if self.key.port == 53 else 30)

    @property
    def port(self) -> int:
        """The service port."""
        return self.key.port

    @property
    def candidates(self) -> tuple[Endpoint, ...]:
        """All endpoints, in order."""
        if not self.endpoints:
            return (self.endpoint,)
        return tuple(Endpoint(address, self.endpoint.port) for address in self.endpoints)

    def name_of(self, endpoint: Endpoint) -> str:
        """Return the name of an endpoint's state, which is not the same for TCP and UDP."""
        return str(endpoint) if self.key.protocol == TCP else f"{endpoint}/{self.key.protocol}"

    @property
    def leads_to(self) -> str:
        """All endpoints for a message."""
        return ", ".join(map(str, self.candidates))

    def led_to(self, addresses: Sequence[str], port: int | None = None) -> Service:
        """Return the service with these addresses for its endpoints; there is at least one.

        ``port`` is that of the endpoints; None where it stays.
        """
        endpoint = Endpoint(leading(addresses), self.endpoint.port if port is None else port)
        return self._replace(endpoint=endpoint, endpoints=tuple(addresses) if len(addresses) > 1 else ())

    @property
    def options(self) -> dict[str, Any]:
        """The options that are not as they are by default, by name."""
        return {
            field: value
            for field, value in zip(self._fields[2:], self[2:], strict=True)
            if value != self._field_defaults[field]
        }


def service_label(name: str, key: ServiceKey) -> str:
    """Return what metrics and logs call a service. No two services of a bridge are called the same."""
    return f"{name}:{key.in_words}" if name else key.in_words


class Network(NamedTuple):
    """A virtual network as the driver names it. What the driver did not give is empty.

    When it was read from a map, ``name`` can be the ``stand_in`` of a name that is too long for the map.
    """

    name: str = ""
    id: str = ""

    def is_one_of(self, networks: frozenset[str]) -> bool:
        """Return whether its name or its id is in ``networks``."""
        if not networks.isdisjoint((self.name, self.id)):
            return True
        return is_stand_in(self.name) and self.name in map(stand_in, networks)


class Settings(NamedTuple):
    """Settings of the processes that are not in the maps. None leaves a setting as it is.

    A new daemon takes the default for None. ``log_level`` is a level of ``logging``. ``watch_file`` is the
    configuration file for which the daemon keeps a watcher; "" means no watcher. ``workers`` is the number of
    processes that move bytes; 0 means that the daemon decides by the number of cores. ``max_connections`` is
    how many connections all of them may have open; 0 means as many as they have descriptors for.
    ``hypervisor_name`` is what endpoints are told; "" means the host name.
    """

    log_level: int | None = None
    watch_file: str | None = None
    workers: int | None = None
    max_connections: int | None = None
    hypervisor_name: str | None = None


class Member(NamedTuple):
    """The network of one guest's NIC. ``order`` counts the networks of a bridge, from the first to come."""

    network: Network = Network()
    order: int = 1


class _ServiceMap(NamedTuple):
    bridge: str
    services: Mapping[ServiceKey, Service]
    network: Network = Network()
    members: Mapping[str, Member] | None = None
    ipv6: bool = False
    cards: frozenset[tuple[str, str]] = frozenset()
    routes: Mapping[int, Route] = {}


class ServiceMap(_ServiceMap):
    """The content of the service map of one bridge, which alone decides what is proxied there.

    ``network`` is the first network of the bridge. ``members`` tells the network of each guest, by the MAC of
    its NIC; None when the bridge has no set of members, because another program loaded the map. ``ipv6``
    says that all services are at SERVICE_ADDRESS_IPV6 too. ``cards`` are pairs of a port of the bridge and
    the MAC of a member that a hook named there. ``routes`` lead from outside to guests, by number.
    """

    __slots__ = ()

    @property
    def addresses(self) -> frozenset[str]:
        """The service addresses of the bridge besides SERVICE_ADDRESS, which each bridge has."""
        found = frozenset(key.address for key in self.services) - _MAIN
        return found | {SERVICE_ADDRESS_IPV6} if self.ipv6 else found

    @property
    def orders(self) -> dict[Network, int]:
        """The networks whose services the bridge has, with their orders, the first one first.

        There is at least one.
        """
        orders: dict[Network, int] = {}
        for network, order in (self.members or {}).values():
            orders[network] = min(order, orders.get(network, order))
        ordered = sorted(orders, key=lambda each: (orders[each], each)) or [self.network]
        return {network: orders.get(network, 1) for network in ordered}

    @property
    def networks(self) -> tuple[Network, ...]:
        """As ``orders``, the networks alone."""
        return tuple(self.orders)
