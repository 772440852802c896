"""The routes that a configuration file gives to networks. Pure.

The fields of ``RouteEntry`` declare the keys of an entry of ``tproxy_routes`` (``tproxy.options``). What the
gateway alone needs (domain, TLS, owner) goes no further than this.
"""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.addresses import as_ipv6
from tproxy.config.services import Problem
from tproxy.model import Endpoint, Network, Service
from tproxy.routes import MOST_ID, NOWHERE, OF_TLS, Route, key_of, number_of
from tproxy.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the annotations of options, which are text at run time
    from typing import Annotated

    from tproxy.options import (
        Choice,
        LinkName,
        Moment,
        NetworkName,
        Number,
        Option,
        Port,
        Seconds,
        Text,
        Written,
    )

PASSTHROUGH, TERMINATE = "passthrough", "terminate"

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = rf"(?=.{{1,253}}$)(\*\.)?({_LABEL}\.)*{_LABEL}"
_MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
_NODE = r"\*|[A-Za-z0-9]([A-Za-z0-9.\-]{0,62}[A-Za-z0-9])?"


class RouteEntry(NamedTuple):
    """One valid entry of ``tproxy_routes``."""

    line: int
    id: Annotated[
        str,
        Option(
            Written(rf"[A-Za-z0-9_.\-]{{1,{MOST_ID}}}", f"up to {MOST_ID} letters, digits, `_`, `.` and `-`"),
            "the name by which gateways know the route",
            required=True,
            nftables="the word `id`; its hash is the element's key",
        ),
    ]
    port: Annotated[
        int,
        Option(
            Port(),
            "the port of guest, node or `addr`",
            required=True,
            nftables="the element's value",
        ),
    ]
    network: Annotated[
        str,
        Option(
            NetworkName(),
            "the guest's network",
            unset="none: `node` or `addr` is needed",
            nftables="no: it decides which bridges have the element",
        ),
    ] = ""
    guest_addr: Annotated[
        str,
        Option(
            Written(r"[0-9A-Fa-f:.]{2,45}", "an IPv4 address, or an IPv6 address of the link"),
            "the guest's address; IPv6 (`fe80::…`) needs `tproxy_ipv6`",
            unset="found by `guest_mac` or `bridge_port`",
            nftables="the element's value; of IPv6 the word `to`",
        ),
    ] = ""
    guest_mac: Annotated[
        str,
        Option(
            Written(_MAC, "a MAC address"),
            "the MAC address of the guest's card. Beside `guest_addr`, no other guest is reached there",
            unset="any",
            nftables="the word `mac`",
        ),
    ] = ""
    bridge_port: Annotated[
        str,
        Option(
            LinkName(),
            "the port of the bridge behind which the guest is, such as `vnet3`",
            unset="any",
            nftables="the word `at`",
        ),
    ] = ""
    node: Annotated[
        str,
        Option(
            Written(_NODE, "the name of a node, or `*`"),
            "a node that has dialled the gateway, and offers the port. Beside `network`: the node that has "
            "the guest; `*`: the one that has it now, as `tproxy fleet places` says",
            unset="none",
            nftables="no: the gateway has it",
        ),
    ] = ""
    addr: Annotated[
        str,
        Option(
            Written(r"[0-9A-Fa-f:.]{2,45}", "an IPv4 or IPv6 address"),
            "an address that the gateway reaches, within `tproxy_gateway_ranges`",
            unset="none",
            nftables="no: the gateway has it",
        ),
    ] = ""
    domain: Annotated[
        str,
        Option(
            Written(_DOMAIN, "a host name, which can begin with `*.`"),
            "the name by which clients ask for it",
            unset="none",
            nftables="no: the gateway has it",
        ),
    ] = ""
    gateway_port: Annotated[
        int,
        Option(
            Port(),
            "a port of the gateway that leads to `port`, for protocols without names; one of those that "
            "`tproxy gateway up --ports` has",
            unset="none",
            nftables="no: the gateway has it",
        ),
    ] = 0
    port_tls: Annotated[
        int,
        Option(
            Port(),
            "the port of the guest for TLS that the guest ends",
            unset="`port`",
            nftables="an element of its own, whose id ends with `/tls`",
        ),
    ] = 0
    tls: Annotated[
        str,
        Option(
            Choice({PASSTHROUGH: PASSTHROUGH, TERMINATE: TERMINATE}),
            "whether the guest ends TLS, or the gateway does",
            nftables="no: the gateway has it",
        ),
    ] = PASSTHROUGH
    owner: Annotated[
        str,
        Option(Text(64), "whose route it is", unset="nobody's", nftables="no: the gateway has it"),
    ] = ""
    expires: Annotated[
        int,
        Option(
            Moment(),
            "when it ends: from then on no more connections come, and open ones have `drain_timeout`",
            unset="never",
            nftables="the word `expires`, in seconds since 1970",
        ),
    ] = 0
    proxy_protocol: Annotated[
        str,
        Option(
            Choice({"none": "", "v2": "v2"}),
            "whether the guest is told the client's address, by a header of the PROXY protocol, version 2",
        ),
    ] = ""
    connect_timeout: Annotated[
        float, Option(Seconds(0.001, 300), "how long the guest may take to accept a connection")
    ] = 5.0
    max_connections_per_client: Annotated[
        int,
        Option(
            Number(0, 1_000_000),
            "how many connections one client's address may have open; 0: no limit",
            nftables="the word `max_connections_per_guest`",
        ),
    ] = 1024
    max_connections: Annotated[
        int,
        Option(
            Number(1, 1_000_000, words={"auto": 0}),
            "how many connections may be open. `auto`: three quarters of `net.ipv4.ip_local_port_range`",
            nftables="the word `max_connections_to_endpoint`",
        ),
    ] = 0
    idle_timeout: Annotated[
        int, Option(Number(0, 2_592_000, "seconds"), "how long no byte may move; 0: for ever")
    ] = 3600
    half_closed_timeout: Annotated[
        int,
        Option(
            Number(0, 2_592_000, "seconds"),
            "the same for a connection that one side has finished; 0: for ever",
        ),
    ] = 300
    user_timeout: Annotated[
        int,
        Option(
            Number(0, 86_400, "seconds"),
            "how long the guest may leave data unacknowledged, or its window closed; 0: as long as the "
            "kernel waits",
        ),
    ] = 120
    drain_timeout: Annotated[
        int,
        Option(
            Number(0, 2_592_000, "seconds"),
            "how long connections may go on in an old worker, or after the route has expired; 0: for ever",
        ),
    ] = 3600
    origin: str = ""  # the path of another file than the one that was read

    @property
    def parts(self) -> Iterable[tuple[str, int]]:
        """The route's id and port; and those for TLS where that has a port of its own."""
        yield self.id, self.port
        if self.port_tls and self.tls == PASSTHROUGH:
            yield self.id + OF_TLS, self.port_tls

    @property
    def routes(self) -> Iterable[Route]:
        """The routes of ``parts``; none where it leads to no guest, which hosts need not know."""
        for id_, port in self.parts if self.network else ():
            yield self._route(id_, port)

    def _route(self, id_: str, port: int) -> Route:
        service = Service(
            key_of(number_of(id_)),
            Endpoint(as_ipv6(self.guest_addr) or self.guest_addr or NOWHERE, port),
            connect_timeout=self.connect_timeout,
            max_connections_per_guest=self.max_connections_per_client,
            max_connections_to_endpoint=self.max_connections,
            idle_timeout=self.idle_timeout,
            half_closed_timeout=self.half_closed_timeout,
            user_timeout=self.user_timeout,
            drain_timeout=self.drain_timeout,
            proxy_protocol=self.proxy_protocol,
        )
        return Route(id_, service, self.guest_mac.lower(), self.bridge_port, self.expires)


def routes_for(
    entries: Iterable[RouteEntry], networks: Iterable[Network], *, ipv6: bool = False
) -> tuple[dict[int, Route], list[Problem]]:
    """Return the routes to guests of a bridge with these networks, by number, and what is wrong with others.

    ``ipv6``: whether guests reach the service address of IPv6, which then reaches them. A route that has
    expired is among them, so that its open streams drain. Where a bridge has several networks, a
    route must name its guest's MAC: by an address alone it could reach a guest of another network.
    """
    known = [*networks]
    found: dict[int, Route] = {}
    problems = []
    for entry in entries:
        if not any(each.is_one_of(frozenset({entry.network})) for each in known):
            continue
        fault = ""
        if len(known) > 1 and not entry.guest_mac:
            fault = "its bridge has several networks: guest_mac is needed"
        elif ":" in entry.guest_addr and not ipv6:
            fault = f"guest_addr {entry.guest_addr} needs tproxy_ipv6: true"
        if fault:
            text = f"tproxy_routes: {entry.id}: {fault}: entry skipped"
            problems.append(Problem(entry.line, text, entry.origin))
            continue
        found |= {each.number: each for each in entry.routes}
    return found, problems
