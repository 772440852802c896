"""What is wrong with routes of the configuration file, each by itself and beside each other. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.addresses import (
    SERVICE_ADDRESS,
    SERVICE_ADDRESS_IPV6,
    as_ipv6,
    can_be_served,
    is_address,
    refused,
)
from tproxy.config.routes import TERMINATE, RouteEntry
from tproxy.config.services import Problem, line_of
from tproxy.routes import number_of

# Options that workers follow, on the way to a guest. HAProxy dials ``addr``, and has limits of its own.
_OF_WORKERS = (
    *("connect_timeout", "max_connections_per_client", "max_connections", "idle_timeout"),
    *("half_closed_timeout", "user_timeout", "drain_timeout"),
)


def fault_of(entry: RouteEntry) -> str:
    """Return what is wrong with the values of an entry together; "" for nothing."""
    if entry.tls == TERMINATE and entry.port_tls:
        return "port_tls is for tls: passthrough; with terminate `port` gets what was inside"
    guest = [key for key in ("guest_addr", "guest_mac", "bridge_port") if getattr(entry, key)]
    if entry.network:
        return _fault_of_guest(entry, guest)
    if guest:
        return f"{guest[0]} is for a guest, whose network is missing"
    if not (entry.addr or entry.node):
        return "network, node or addr is needed: where does it lead?"
    if entry.addr and entry.node:
        return "addr and node exclude each other"
    if entry.node == "*":
        return "node * is for guests, whose network is missing"
    for key in _OF_WORKERS:
        if getattr(entry, key) != RouteEntry._field_defaults[key]:
            return f"{key} is for routes to guests"
    return fault_of_addr(entry.addr) if entry.addr else ""


def _fault_of_guest(entry: RouteEntry, guest: list[str]) -> str:
    if entry.addr:
        return "addr and network exclude each other"
    if not guest:
        return "guest_addr, guest_mac or bridge_port is needed: which guest?"
    address = entry.guest_addr
    if address and not (_is_guests(address) or _is_of_link(address)):
        return f"guest_addr {address} is no address that a guest can have"
    return ""


def _is_guests(address: str) -> bool:
    return can_be_served(address) and not refused(address) and address != SERVICE_ADDRESS


def _is_of_link(address: str) -> bool:
    """Whether it is an IPv6 address of fe80::/64, and not the service's."""
    plain = as_ipv6(address)
    return plain.startswith("fe80::") and plain != SERVICE_ADDRESS_IPV6


def fault_of_addr(address: str) -> str:
    """Return why no route can lead to an address, whatever the gateway allows; "" if one can."""
    plain = as_ipv6(address) or address
    if not is_address(plain):
        return f"addr {address} is no IPv4 or IPv6 address"
    if plain == "::1" or plain.startswith("127."):
        return f"addr {address} is loopback: a node can offer a port of its own"
    if plain.startswith("169.254."):
        return f"addr {address} is a link-local address"
    return f"addr {address} {why}" if (why := refused(plain)) else ""


def usable(entries: Iterable[RouteEntry]) -> tuple[list[RouteEntry], list[Problem]]:
    """Return the entries that can be used beside each other, and the problems of the others."""
    found: list[RouteEntry] = []
    problems: list[Problem] = []
    ids: dict[int, RouteEntry] = {}
    domains: dict[str, RouteEntry] = {}
    ports: dict[int, RouteEntry] = {}
    for entry in entries:
        fault = fault_of(entry)
        numbers = {number_of(id_) for id_, _ in entry.parts}
        taken = next((ids[number] for number in numbers if number in ids), None)
        if not fault and taken is not None:
            fault = f"the id is that of the entry in {line_of(taken, entry)}"
            if taken.id != entry.id:
                fault = f"the id has the hash of {taken.id} in {line_of(taken, entry)}: choose another"
        domain = entry.domain.lower()
        if not fault and domain in domains and not _of_other_owners(entry, domains[domain]):
            taken = domains[domain]
            fault = f"domain {domain} is that of route {taken.id} in {line_of(taken, entry)}"
        if not fault and entry.gateway_port in ports:
            taken = ports[entry.gateway_port]
            where = f"route {taken.id} in {line_of(taken, entry)}"
            fault = f"gateway_port {entry.gateway_port} is that of {where}"
        if fault:
            text = f"tproxy_routes: {entry.id}: {fault}: entry skipped"
            problems.append(Problem(entry.line, text, entry.origin))
            continue
        found.append(entry)
        ids |= dict.fromkeys(numbers, entry)
        if domain:
            domains.setdefault(domain, entry)
        if entry.gateway_port:
            ports[entry.gateway_port] = entry
    return found, problems


def _of_other_owners(entry: RouteEntry, other: RouteEntry) -> bool:
    """Whether two owners wish for one domain. The gateway judges who has it (``inward.names.claims``)."""
    return bool(entry.owner and other.owner and entry.owner != other.owner)
