"""The whole journey of a probe: attaches a guest, and visits services in every way that guests have.

It ends with the first step that is bad and that the next ones need. Where a guest does not arrive in one way,
the next one is not tried: the way from the bridge on is the same.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.bridge import nftables, plumbing, port_state
from tproxy.bridge.guard_rules import GUARDED
from tproxy.bridge.guards import Guard, ObservedGuard
from tproxy.bridge.plan import Observed
from tproxy.daemon import client
from tproxy.doctor.finding import BAD, UNKNOWN, hook_up
from tproxy.doctor.look import dial, endpoints
from tproxy.doctor.look.dial import Dialled
from tproxy.doctor.look.endpoints import Reached
from tproxy.doctor.probe import arp, guest, neighbours, ping, verdict, visit
from tproxy.doctor.probe.guest import LINK, Guest
from tproxy.doctor.probe.step import GATEWAY, IPV6, ROUTE, Step, bad, good
from tproxy.errors import ProcessError
from tproxy.kernel import nameless
from tproxy.model import UDP, Service, ServiceKey, ServiceMap
from tproxy.names import check_interface_name

MOST_PORTS = 8  # that are visited where none is named: some seconds at most

_GUARDS = 5.0  # seconds in which the daemon adds a new port to the guards; an idle one takes milliseconds
_CARRIER = 5.0  # seconds in which a bridge without STP forwards what a new port brings
_TAKEN = 5.0  # seconds in which a worker on a busy host reads a datagram
_POLL = 0.005

# An address that is nobody's (RFC 5737), and a MAC that nobody has: a guest only has to send something there.
_NO_GATEWAY, _NO_MAC = "192.0.2.1", "02:74:70:00:00:01"


class Wish(NamedTuple):
    """What the operator asks for. ``port`` None: each service port, at most MOST_PORTS."""

    bridge: str
    port: int | None = None
    address: str | None = None
    gateway: str | None = None
    vlan: int | None = None


class _Place(NamedTuple):
    """The bridge as the probe found it."""

    wish: Wish
    observed: Observed
    map: ServiceMap
    look: str  # the command that finds out more


def travel(wish: Wish) -> Generator[Step]:
    """Yield each step when it is done. Raises TproxyError, OSError."""
    check_interface_name(wish.bridge)
    plumbing.require_bridge(wish.bridge)
    observed = plumbing.observe(wish.bridge)
    look = f"tproxy doctor --bridge {wish.bridge}"
    if observed.map is None:
        text = f"bridge {wish.bridge} has no services: no hook brought it up"
        yield bad("services", 0.0, text, hook_up(wish.bridge, None, UNKNOWN))
        return
    place = _Place(wish, observed, observed.map, look)
    services = _services(place)
    if not services:
        text = f"the bridge has no service at port {wish.port}" if wish.port else "its map is empty"
        yield bad("services", 0.0, text, "tproxy check")
        return
    reached = endpoints.look(services, None)
    with guest.made(wish.bridge, wish.address) as visitor:
        for step in _arrive(place, visitor):
            yield step
            if step.level == BAD:
                return
        for way in (ROUTE, GATEWAY, IPV6) if place.map.ipv6 else (ROUTE, GATEWAY):
            arrived = True
            for step in _go(place, visitor, way, services, reached):
                arrived = arrived and step.level != BAD
                yield step._replace(way=way)
            if not arrived:
                return


def _services(place: _Place) -> list[Service]:
    """The services for everybody at 169.254.16.9: those at other addresses need a route of their own."""
    everybodys = [
        each for key, each in sorted(place.map.services.items()) if key == ServiceKey(key.port, key.protocol)
    ]
    found = [each for each in everybodys if place.wish.port in (None, each.port)]
    return found[:MOST_PORTS]


# Arriving


def _arrive(place: _Place, visitor: Guest) -> Iterator[Step]:
    """Attach the guest's port, and wait until the bridge and the guards know it."""
    began = time.monotonic()
    nameless.join(visitor.port, place.wish.bridge, place.wish.vlan)
    yield good("attach", time.monotonic() - began, f"port {visitor.port} of {place.wish.bridge}")
    yield _forwards(place, visitor)
    guard = place.observed.guard
    if guard is not None and _match_ports(guard):
        yield _guarded(place, visitor)


def _forwards(place: _Place, visitor: Guest) -> Step:
    """Wait until the bridge forwards what the port brings. With STP it waits for twice its forward delay."""
    bridge, began = place.wish.bridge, time.monotonic()
    until = began + _CARRIER
    if port_state.read(f"{bridge}/bridge/stp_state") not in ("", "0"):
        delay = int(port_state.read(f"{bridge}/bridge/forward_delay") or 0) / os.sysconf("SC_CLK_TCK")
        until += 2 * delay
    while port_state.state(visitor.port) != port_state.FORWARDING:
        if time.monotonic() > until:
            text = f"the bridge does not forward what port {visitor.port} brings"
            return bad("forward", time.monotonic() - began, text, place.look)
        time.sleep(_POLL)
    return good("forward", time.monotonic() - began, "the bridge forwards what the port brings")


def _match_ports(guard: ObservedGuard) -> bool:
    """Whether the guards know ports, since this kernel has no ``meta ibrname``."""
    kind = Guard(guard.bridge, frozenset(), {})
    return any(each.rules_are_in(guard) for each in (kind, kind._replace(limited=False)))


def _guarded(place: _Place, visitor: Guest) -> Step:
    began = time.monotonic()
    while visitor.port not in nftables.read_guard(place.wish.bridge).own(GUARDED):
        if time.monotonic() - began > _GUARDS:
            text = "the guards do not know the new port: the daemon, which tells them, is away"
            return bad("guards", time.monotonic() - began, text, "tproxy start")
        time.sleep(_POLL)
    return good("guards", time.monotonic() - began, "the guards know the port")


# Going there


def _go(place: _Place, visitor: Guest, way: str, services: list[Service], reached: Reached) -> Iterator[Step]:
    """Visit the services in one way."""
    step = {ROUTE: _with_route, GATEWAY: _with_gateway, IPV6: _with_ipv6}[way](place, visitor)
    if step is not None:
        yield step
        if step.level == BAD:
            return
    address = SERVICE_ADDRESS_IPV6 if way == IPV6 else SERVICE_ADDRESS
    with nameless.inside(visitor.fd):
        answered = ping.ping(address, socket.if_nametoindex(LINK))
    yield verdict.of_ping(answered, place.look, address)
    for each in services:
        visited = _write if each.key.protocol == UDP else _visit
        for step in visited(place, visitor, address, each, reached.get((each.key.protocol, each.endpoint))):
            yield step._replace(port=each.port)


def _with_route(place: _Place, visitor: Guest) -> Step:
    inner = place.observed.inner
    with nameless.inside(visitor.fd):
        nameless.route(LINK, SERVICE_ADDRESS)
        answers = arp.ask(LINK, visitor.mac, visitor.address, SERVICE_ADDRESS)
    return verdict.of_arp(answers, inner.mac if inner is not None else SERVICE_MAC, place.look)


def _with_ipv6(place: _Place, visitor: Guest) -> Step:
    inner, own = place.observed.inner, neighbours.link_local(visitor.mac)
    with nameless.inside(visitor.fd):
        nameless.add_link_local(LINK, own)
        answers = neighbours.ask(LINK, visitor.mac, own, SERVICE_ADDRESS_IPV6)
    expected = inner.mac if inner is not None else SERVICE_MAC
    return verdict.of_arp(answers, expected, place.look, SERVICE_ADDRESS_IPV6)


def _with_gateway(place: _Place, visitor: Guest) -> Step | None:
    """Send everything to the operator's gateway, or to one that nobody has: the guards lead it to us."""
    gateway, mac, step = place.wish.gateway, _NO_MAC, None
    with nameless.inside(visitor.fd):
        if gateway is not None:
            answers = arp.ask(LINK, visitor.mac, visitor.address, gateway)
            step = verdict.of_gateway(gateway, answers)
            if step.level == BAD:
                return step
            mac = answers.macs[0]
        nameless.default_route(LINK, gateway or _NO_GATEWAY, mac)
    return step


def _write(
    place: _Place, visitor: Guest, address: str, service: Service, reached: Dialled | None
) -> Iterator[Step]:
    """Visit a UDP service."""
    before = _served(place, service.key)
    with nameless.inside(visitor.fd):
        went = visit.write(address, service.port, LINK)
    yield verdict.of_endpoint(service, reached)
    until = time.monotonic() + _TAKEN
    while True:
        after = _served(place, service.key)
        taken = after["total"] > before["total"] if before is not None and after is not None else None
        if taken is not False or went.end != "quiet" or time.monotonic() > until:
            break
        time.sleep(_TAKEN / 20)
    yield verdict.of_datagram(went, place.look, taken=taken)


def _visit(
    place: _Place, visitor: Guest, address: str, service: Service, reached: Dialled | None
) -> Iterator[Step]:
    before, began = _served(place, service.key), time.time()
    fine = reached is not None and not reached.problem
    patience = reached.seconds if reached is not None and fine else min(service.connect_timeout, dial.LONGEST)
    with nameless.inside(visitor.fd):
        went = visit.pay(address, service.port, LINK, patience)
    yield verdict.of_connection(went, place.look)
    if went.refusal:
        return
    yield verdict.of_endpoint(service, reached)
    after = _served(place, service.key)
    known = before is not None and after is not None
    taken = after["total"] > before["total"] if before is not None and after is not None else None
    news = known and after is not None and (after["last_error_at"] or 0) >= began - 1
    error = str(after["last_error"]) if news and after is not None else ""
    yield verdict.of_end(went, place.look, taken=taken, last_error=error)


def _served(place: _Place, key: ServiceKey) -> dict[str, Any] | None:
    """What the daemon says of a service; None when it says nothing."""
    try:
        status = client.status()
    except ProcessError:
        return None
    bridges = status["bridges"] if status is not None else {}
    services = bridges.get(place.wish.bridge, {}).get("services", [])
    wanted = key.port, key.protocol, key.address
    return next((each for each in services if _key(each) == wanted), None)


def _key(served: dict[str, Any]) -> tuple[Any, ...]:
    return served["port"], served.get("protocol"), served.get("address")
