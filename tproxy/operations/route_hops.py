"""The hops of a route, from the configuration file to the guest, and whether each is in order."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from tproxy import proxy_protocol
from tproxy.bridge import guest_places, nftables
from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config
from tproxy.daemon import client
from tproxy.errors import ProcessError, to_ascii
from tproxy.model import Endpoint, ServiceMap
from tproxy.process import inward_socket
from tproxy.proxy_protocol import OF_PROBE, UNIQUE_ID
from tproxy.routes import Route, number_of

GOOD, BAD = "good", "bad"

# What an entry says of its target.
_WHERE = ("network", "node", "addr")

# Seconds beyond the route's connect_timeout.
PATIENCE = 10.0

# What a worker says of a guest (``datapath.streams``, ``worker.inward``), and what that means.
_MEANS = {
    "refused": "the guest refuses: nothing listens at {port} there, or its firewall rejects",
    "timed out": "somebody has the guest's address, and is silent: the guest hangs, or a security group "
    "or its firewall drops TCP from 169.254.16.9",
    "another guest": "another guest than {mac} answers for {address}: nothing was sent to it",
    "no relay": "the bridge has no relay",
    "relay silent": "the bridge's relay does not answer",
    "expired": "the route has expired",
    "no such route": "workers do not have the route",
    "limited": "a limit of the route is reached",
}


class Hop(NamedTuple):
    """One step on the way: its level, its name, what was found, and the command that helps."""

    name: str
    level: str
    text: str
    repair: str = ""

    def __str__(self) -> str:
        repair = f"; repair: {self.repair}" if self.repair else ""
        return to_ascii(f"{self.level:5} {self.name}: {self.text}{repair}")


def routes(maps: list[ServiceMap]) -> list[tuple[str, Route]]:
    """Return all routes of this host, each with its bridge, sorted by id."""
    return sorted(((found.bridge, each) for found in maps for each in found.routes.values()), key=_by_id)


def _by_id(found: tuple[str, Route]) -> tuple[str, str]:
    return found[1].id, found[0]


def hops(id_: str, config: Config | None) -> Iterator[Hop]:
    """Yield the hops of a route, up to the first one that is bad. Raises TproxyError."""
    repair = "tproxy refresh"
    if config is not None:
        entry = next((each for each in config.routes for one, _ in each.parts if one == id_), None)
        if entry is None:
            yield Hop("entry", BAD, f"{config.path} has no usable route {id_}", "tproxy check")
        else:
            where = " ".join(f"{key} {name}" for key in _WHERE if (name := getattr(entry, key)))
            yield Hop("entry", GOOD, f"line {entry.line} of {config.path}: {where}")
    found = [each for each in routes(nftables.read_maps()) if each[1].id == id_]
    if not found and config is not None and entry is not None and (entry.addr or entry.node):
        yield from _elsewhere(entry, id_, dict(entry.parts)[id_])
        return
    if not found:
        text = "no bridge has it: none is up for its network"
        yield Hop("bridge", BAD, text, repair)
        return
    bridge, route = found[0]
    if route.has_expired(time.time()):
        yield Hop("bridge", BAD, f"{bridge} has it, and it has expired")
        return
    also = f" (also {', '.join(each for each, _ in found[1:])})" if found[1:] else ""
    yield Hop("bridge", GOOD, f"{bridge} has it{also}: leads to {route.target}")
    status = client.status()
    served = status and status["bridges"].get(bridge)
    if not served:
        yield Hop("daemon", BAD, "no daemon serves the bridge", "tproxy start")
        return
    if not any(each["id"] == id_ for each in served["routes"]):
        yield Hop("daemon", BAD, "the daemon does not know it yet", "tproxy reload")
        return
    yield Hop("daemon", GOOD, "serves it")
    if served["relay"] is None:
        yield Hop("relay", BAD, f"bridge {bridge} has none", "tproxy start")
        return
    yield Hop("relay", GOOD, f"process {served['relay']}")
    yield from _stream(bridge, route)


def _elsewhere(entry: RouteEntry, id_: str, port: int) -> Iterator[Hop]:
    """Try what the gateway of this host reaches for a route that leads to no guest of it."""
    if 0 < entry.expires <= time.time():
        yield Hop("gateway", BAD, "the route has expired")
        return
    began = time.monotonic()
    if entry.node:
        place = f"{inward_socket.directory()}/{inward_socket.NODES}"
        try:
            verdict = _ask(place, id_, entry.connect_timeout)
        except OSError as error:
            yield Hop("tunnel", BAD, f"{place}: {error.strerror or error}", "tproxy tunnel serve")
            return
    else:
        verdict = _dial(entry.addr, port)
    spent = f"{(time.monotonic() - began) * 1000:.1f} ms"
    name, target = ("node", entry.node) if entry.node else ("addr", str(Endpoint(entry.addr, port)))
    if verdict == "connected":
        yield Hop(name, GOOD, f"accepts at {target}, after {spent}")
    else:
        yield Hop(name, BAD, f"{target}: {verdict or 'the stream was ended'} ({spent})")


def _dial(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), PATIENCE):
            return "connected"
    except OSError as error:
        return error.strerror or str(error)


def _ask(place: str, id_: str, timeout: float) -> str:
    """Have a route dialled by a stream as a gateway sends it, and return what came of it. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(timeout + PATIENCE)
        stream.connect(place)
        values = {UNIQUE_ID: id_, OF_PROBE: "route test"}
        stream.sendall(proxy_protocol.encode(("127.0.0.1", 1), ("127.0.0.1", 1), values))
        return stream.recv(200).decode(errors="replace").strip()


def _stream(bridge: str, route: Route) -> Iterator[Hop]:
    """Ask a worker to dial, by a stream as a gateway sends it."""
    place = inward_socket.path()
    began = time.monotonic()
    try:
        verdict = _ask(place, route.id, route.service.connect_timeout)
    except TimeoutError:
        yield Hop("worker", BAD, "does not answer", "tproxy restart")
        return
    except OSError as error:
        yield Hop("in.sock", BAD, f"{place}: {error.strerror}", "tproxy reload")
        return
    yield Hop("in.sock", GOOD, place)
    spent = (time.monotonic() - began) * 1000
    if verdict == "connected":
        yield Hop("guest", GOOD, f"accepts at {route.target}, after {spent:.1f} ms")
        return
    port, address, mac = route.endpoint.port, route.endpoint.address, route.mac
    text = _MEANS.get(verdict, verdict).format(port=port, address=address, mac=mac)
    if verdict in ("not there", "address not known"):
        named = nftables.read_guard(bridge).named_uplinks
        text = guest_places.whereabouts(bridge, route, named)
    yield Hop("guest", BAD, f"{text} ({spent:.0f} ms)")


def is_known(id_: str) -> bool:
    """Whether the host has a route with this id. Raises NftError."""
    return any(number_of(id_) in each.routes for each in nftables.read_maps())


def last_errors() -> dict[str, str]:
    """Return the last error of each route, by id. Empty without a daemon."""
    try:
        status = client.status()
    except ProcessError:
        return {}
    bridges = (status or {}).get("bridges", {}).values()
    return {each["id"]: each["last_error"] for found in bridges for each in found.get("routes", ())}
