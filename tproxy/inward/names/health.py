"""Whether something healthy is behind the names: our own HAProxy, and the guest of each route.

A route is tried as `tproxy route test` does it: a worker dials the guest, who sees a connection without a
byte, or the process that holds tunnels asks the node. It needs neither daemon nor traffic of clients.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from tproxy import proxy_protocol
from tproxy.config.routes import RouteEntry
from tproxy.inward import files
from tproxy.inward.compile import ADMIN
from tproxy.inward.runtime import Runtime
from tproxy.process import inward_socket
from tproxy.proxy_protocol import OF_PROBE, UNIQUE_ID

# Seconds for which a route must be unhealthy before its addresses are withdrawn: a guest that is started anew
# or moved keeps its name.
LASTING = 10.0

# Seconds that a guest may take, beside its time to accept; and that a look waits for what is new.
PATIENCE = 5.0
FIRST_LOOK = 10.0

# Seconds between two tries of a route, and how many are tried at once.
EVERY = 4.0
AT_ONCE = 32

# What a worker says of a guest that is in order.
_WELL = {"connected", "limited"}  # a guest whose limit is reached serves others


class Seen(NamedTuple):
    """What is known of a route: whether it counts as healthy, and since when a look says otherwise."""

    healthy: bool
    bad_since: float = 0.0
    reason: str = ""


def settled(before: Mapping[str, Seen], found: Mapping[str, str], now: float) -> dict[str, Seen]:
    """Return what is known after a look, which found a reason, or "" for none, for each route. Pure.

    A route that recovers is healthy at once; a first look counts at once.
    """
    result = {}
    for id_, reason in found.items():
        known = before.get(id_)
        if not reason:
            result[id_] = Seen(True)
        elif known is None or not known.healthy:
            result[id_] = Seen(False, known.bad_since if known else now, reason)
        else:
            since = known.bad_since or now
            result[id_] = Seen(now < since + LASTING, since, reason)
    return result


class Tried(NamedTuple):
    """A route to try. ``ids`` are those of its ports; one that answers is enough."""

    id: str
    ids: tuple[str, ...]
    to: str  # GUEST, NODE, or an address with a port
    patience: float  # seconds that the target may take


GUEST, NODE = "guest", "node"


def tried(route: RouteEntry) -> Tried:
    """Return how a route is tried."""
    ids = tuple(id_ for id_, _ in route.parts)
    to = NODE if route.node else f"{route.addr}/{route.port}" if route.addr else GUEST
    return Tried(route.id, ids, to, route.connect_timeout)


class Looking:
    """Tries routes in threads, each one every few seconds, so that one that hangs holds up no other."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, "health")
        self._flying: dict[Tried, Future[str]] = {}
        self._found: dict[Tried, tuple[str, float]] = {}  # what came of it, and when to try again

    def look(self, routes: Iterable[Tried]) -> dict[str, str]:
        """Return why each route is unhealthy, "" for a healthy one, by id: as far as that is known now.

        Waits only for routes that are new, and not long.
        """
        listed = [*routes]
        admin = Runtime(str(files.directory() / ADMIN))
        if listed and not admin.answers:
            return {each.id: "HAProxy does not run: tproxy gateway up" for each in listed}
        now = time.monotonic()
        for each in listed:
            if each not in self._flying and self._found.get(each, ("", now))[1] <= now:
                self._flying[each] = self._pool.submit(_of_route, each)
        new = [self._flying[each] for each in listed if each not in self._found]
        wait(new, FIRST_LOOK)
        now = time.monotonic()
        for each in [each for each, future in self._flying.items() if future.done()]:
            self._found[each] = self._flying.pop(each).result(), now + EVERY
        self._found = {each: self._found[each] for each in listed if each in self._found}
        unknown = f"no answer within {FIRST_LOOK:.0f} s", 0.0
        return {each.id: self._found.get(each, unknown)[0] for each in listed}


def _of_route(route: Tried) -> str:
    if route.to not in (GUEST, NODE):
        address, _, port = route.to.partition("/")
        try:
            socket.create_connection((address, int(port)), route.patience).close()
            return ""
        except OSError as error:
            return f"{address}: {error.strerror or error}"
    folder = inward_socket.directory()
    place = f"{folder}/{inward_socket.NODES if route.to == NODE else inward_socket.NAME}"
    said = ""
    for each in route.ids:
        said = _verdict(place, each, route.patience)
        if said in _WELL:
            return ""
    return said or "no answer"


def _verdict(place: str, id_: str, patience: float) -> str:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(patience + PATIENCE)
        try:
            stream.connect(place)
            values = {UNIQUE_ID: id_, OF_PROBE: "names"}
            stream.sendall(proxy_protocol.encode(("127.0.0.1", 1), ("127.0.0.1", 1), values))
            return stream.recv(200).decode(errors="replace").strip()
        except OSError as error:
            return f"{place}: {error.strerror or error}"
