"""The gateway's maps, from routes: from names and ports to ids of routes, and from ids to targets. Pure.

HAProxy finds the id of a route by a name or a port, and by the id what it leads to, if not to a guest:

    guests: ``in.sock`` of this host gets the id, and workers know the guest. HAProxy knows no address.
    nodes:  the process that holds tunnels gets the id at ``nodes.sock``, and knows the rest by itself.
    addr:   HAProxy dials the address. ``told``: it also tells the client's address.

Names are matched whole. A route for ``*.example.com`` gets what ends with ``.example.com`` and is no other
route's. Maps change while HAProxy runs (``runtime``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network

from tproxy.config.routes import TERMINATE, RouteEntry
from tproxy.config.services import Problem

# By file: names whose TLS the guest ends, names whose TLS the gateway ends, and names at port 80.
BY_NAME = ("passthrough", "terminate", "host")
BY_PORT = "ports.map"  # ports of the range without names
# By id, for routes that expire or lead to no guest: the first part of a backend's name, when it expires
# (seconds since 1970; 0: never), and the address and port to dial, with a / between each.
LEADS = "leads.map"
CHALLENGES = "challenges.map"  # names for which an issuer asks now (``acme``)
GUESTS, NODES, ADDR, TOLD = "guests", "nodes", "addr", "told"


def maps(entries: Iterable[RouteEntry], now: float) -> dict[str, str]:
    """Return the text of each map, by file. ``now`` is in seconds since 1970."""
    lines: dict[str, list[str]] = {f"{each}{kind}.map": [] for each in BY_NAME for kind in ("", ".wild")}
    lines |= {file: [] for file in (BY_PORT, LEADS)}
    for entry in entries:
        if 0 < entry.expires <= now:
            continue
        for file, line in (*_names(entry), *_leads(entry)):
            lines[file].append(line)
    return {file: "".join(f"{each}\n" for each in sorted(found)) for file, found in lines.items()}


def _names(entry: RouteEntry) -> Iterator[tuple[str, str]]:
    ids = [id_ for id_, _ in entry.parts]
    if entry.gateway_port:
        yield BY_PORT, f"{entry.gateway_port} {entry.id}"
    if entry.domain:
        domain = entry.domain.lower()
        kind, name = (".wild", domain[1:]) if domain.startswith("*.") else ("", domain)
        tls = "terminate" if entry.tls == TERMINATE else "passthrough"
        yield f"{tls}{kind}.map", f"{name} {ids[-1]}"
        yield f"host{kind}.map", f"{name} {entry.id}"


def _leads(entry: RouteEntry) -> Iterator[tuple[str, str]]:
    for id_, port in entry.parts:
        if entry.node:
            yield LEADS, f"{id_} {NODES}/{entry.expires}"
        elif entry.addr:
            target = TOLD if entry.proxy_protocol else ADDR
            yield LEADS, f"{id_} {target}/{entry.expires}/{entry.addr}/{port}"
        elif entry.expires:
            yield LEADS, f"{id_} {GUESTS}/{entry.expires}"


def within(
    entries: Iterable[RouteEntry], ranges: Iterable[str], own: Iterable[str]
) -> tuple[list[RouteEntry], list[Problem]]:
    """Return the routes whose ``addr`` the gateway allows, and what is wrong with the others.

    ``own`` are the gateway's addresses: what listens there is not for others, unless a node offers it.
    """
    allowed = [ip_network(each) for each in ranges]
    mine = {ip_address(each) for each in own}
    found, problems = [], []
    for entry in entries:
        fault = ""
        if entry.addr:
            address = ip_address(entry.addr)
            if address in mine:
                fault = "is an address of the gateway itself: a node can offer a port of its own"
            elif not any(address in each for each in allowed):
                fault = "is not within tproxy_gateway_ranges of the gateway"
        if fault:
            text = f"tproxy_routes: {entry.id}: addr {entry.addr} {fault}: entry skipped"
            problems.append(Problem(entry.line, text))
        else:
            found.append(entry)
    return found, problems


def shared(entries: Iterable[RouteEntry]) -> list[Problem]:
    """Return a warning for each wildcard whose guest ends TLS for it, beside routes for names below it.

    Its certificate is for these names too, so browsers send their requests on a connection of HTTP/2 that
    they have to that guest (RFC 9113, 9.1.1), which the gateway cannot see.
    """
    known = [*entries]
    problems = []
    for wild in known:
        if wild.domain.startswith("*.") and wild.tls != TERMINATE:
            below = [each for each in known if each is not wild and _is_below(each.domain, wild.domain)]
            if below:
                text = (
                    f"tproxy_routes: {wild.id}: {wild.domain} is passed through: browsers may send requests "
                    f"for {below[0].domain} (route {below[0].id}) to its guest"
                )
                problems.append(Problem(wild.line, text))
    return problems


def _is_below(domain: str, wildcard: str) -> bool:
    return domain.lower().endswith(wildcard[1:].lower())
