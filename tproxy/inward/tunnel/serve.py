"""The gateway process: accepts nodes and operators at a port, and streams for routes at a UNIX socket.

Needs the extra ``inward`` (asyncssh). It starts as root, since it listens in HAProxy's directory, and goes on
as a user of its own, to whom the state belongs. The configuration file is read again when it changes; one
that cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tproxy.config import file, joined
from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config
from tproxy.errors import ProcessError, TproxyError
from tproxy.inward.tunnel import authority, control, inlet, listing, policy, server
from tproxy.inward.tunnel.audit import FILE as AUDIT
from tproxy.inward.tunnel.audit import Audit
from tproxy.inward.tunnel.commands import GatewayCommands
from tproxy.inward.tunnel.enrolment import Enrolment
from tproxy.inward.tunnel.hub import Hub
from tproxy.inward.tunnel.inlet import RouteTarget
from tproxy.inward.tunnel.store import Store
from tproxy.kernel import privileges
from tproxy.process import inward_socket

PORT = 18000

# What `tproxy fleet places --follow` writes, and the node of a route whose guest is where that says.
PLACES = "/var/lib/tproxy/fleet/places.json"
ANY_NODE = "*"

# The gateway's user: below those of relays and workers, which are theirs for the same reason.
UID = privileges.FIRST_UID - 1

_REVIEW = 1.0  # seconds
_SAVE = 60.0

_log = logging.getLogger("tproxy.tunnel")


class Options(NamedTuple):
    """What an operator says of the gateway. ``address`` is "" for all addresses, of IPv4 and IPv6."""

    config: str
    state: Path
    audit: str
    address: str = ""
    port: int = PORT
    node_lifetime: float = authority.NODE_LIFETIME
    operator_lifetime: float = authority.OPERATOR_LIFETIME
    places: str = PLACES


class Settings:
    """What the configuration file says as it is now, and the file that says where guests are."""

    def __init__(self, path: str, places: str = PLACES) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._places_path = places
        self._places_stamp: tuple[int, int] = (0, 0)
        self._entries: Iterable[RouteEntry] = ()
        self._places: Mapping[str, str] = {}
        self.policy = policy.Policy()
        self.routes: Mapping[str, RouteTarget] = {}

    def read(self) -> None:
        """Read the files if they have changed. Raises TproxyError, and nothing changes."""
        self._read_places()
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_size, *_stamp_of(file.DOCUMENT))
            if stamp != self._stamp:
                self._stamp = stamp
                self._take(joined.load(self._path))
        except OSError as error:
            raise ProcessError(f"cannot read {self._path}: {error.strerror}") from None

    def _take(self, read: Config) -> None:
        for warning in read.warnings:
            _log.warning("%s", warning.at(self._path))
        self.policy = policy.of(read.tunnels)
        self._entries = read.routes
        self.routes = routes_to_nodes(self._entries, self._places)
        _log.info("%s: %d entries of tproxy_tunnels", self._path, len(read.tunnels))

    def _read_places(self) -> None:
        """Follow guests; while the file cannot be read, they are where they were."""
        try:
            status = os.stat(self._places_path)
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp != self._places_stamp:
                self._places = places_in(Path(self._places_path).read_text())
                self._places_stamp = stamp
                self.routes = routes_to_nodes(self._entries, self._places)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            _log.error("cannot use %s: %s", self._places_path, error)


def _stamp_of(path: str) -> tuple[int, int]:
    """What changes with a file; (0, 0) where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def places_in(text: str) -> dict[str, str]:
    """Return the host of each route's guest, by id, from `tproxy fleet places`. Raises ValueError."""
    try:
        return {id_: str(each["host"]) for id_, each in json.loads(text)["routes"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it does not say where guests are: {error!r}") from None


def routes_to_nodes(routes: Iterable[RouteEntry], places: Mapping[str, str]) -> dict[str, RouteTarget]:
    """Return where routes lead that name a node, by id. ``places`` are nodes that have guests, likewise."""
    found = {}
    for each in routes:
        node = places.get(each.id, "") if each.node == ANY_NODE else each.node
        for id_, port in each.parts if node else ():
            offered = 0 if each.network else port
            found[id_] = RouteTarget(node, offered, bool(each.proxy_protocol), each.expires)
    return found


def run(options: Options, ready: Any = None) -> None:
    """Serve until SIGTERM. Raises TproxyError when it cannot start."""
    store = Store(options.state)
    store.prepare()
    listeners = _listeners(options)
    inlet_socket = _inlet()
    _prepare_audit(Path(options.audit))
    if os.geteuid() == 0:
        _become(options)
    _raise_limit()
    settings = Settings(options.config, options.places)
    settings.read()
    asyncio.run(_serve(options, store, settings, listeners, inlet_socket, ready))


async def _serve(
    options: Options,
    store: Store,
    settings: Settings,
    listeners: list[socket.socket],
    inlet_socket: socket.socket,
    ready: Any,
) -> None:
    keys = authority.Authority(store, options.node_lifetime)
    hub = Hub(store, Audit(options.audit), lambda: settings.policy)
    commands = GatewayCommands(hub, Enrolment(store, keys, options.operator_lifetime))
    acceptors = [await server.listen(hub, keys, commands, each) for each in listeners]
    streams = await inlet.Inlet(hub, lambda: settings.routes).listen(inlet_socket)
    questions = await control.listen(store.directory, {"nodes": lambda: listing.everything(hub)})
    ended = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    _log.info("nodes and operators are accepted at port %d", options.port)
    if ready:
        ready()
    saved = time.monotonic()
    while not ended.is_set():
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), _REVIEW)
        try:
            settings.read()
        except TproxyError as error:
            _log.error("%s", error)
        try:
            hub.review()
            if time.monotonic() - saved > _SAVE:
                saved = time.monotonic()
                hub.save_seen()
        except TproxyError as error:
            _log.error("%s", error)
    hub.save_seen()
    accepting: Any
    for accepting in (*acceptors, streams, questions):
        accepting.close()
    for caller in [*hub.links.values(), *hub.operators]:
        caller.end("the gateway ends")
    await asyncio.sleep(0)


def _listeners(options: Options) -> list[socket.socket]:
    """Return sockets that listen: one for IPv4, and one for IPv6 where the host has it."""
    found: list[socket.socket] = []
    addresses = [options.address] if options.address else ["0.0.0.0", "::"]
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = socket.socket(family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, options.port))
            sock.listen(1024)
        except OSError as error:
            if found:
                continue  # a host without IPv6
            raise ProcessError(f"cannot listen at {address} port {options.port}: {error.strerror}") from None
        sock.setblocking(False)
        found.append(sock)
    return found


def _inlet() -> socket.socket:
    """Return the socket for HAProxy's streams, in the directory of in.sock.

    That says by its group who comes to it, also when `tproxy gateway up` gives it another one.
    """
    path = f"{inward_socket.prepare()}/{inward_socket.NODES}"
    sock = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink(path)
    sock.bind(path)
    os.chmod(path, 0o666)
    sock.listen(1024)
    sock.setblocking(False)
    return sock


def _prepare_audit(path: Path) -> None:
    try:
        made = not path.parent.is_dir()
        if made:
            path.parent.mkdir(0o750)
        if os.geteuid() == 0 and (made or path == Path(AUDIT)):  # a unit makes the usual one, for root
            os.chown(path.parent, UID, UID)
        path.touch(0o640)
    except OSError as error:
        raise ProcessError(f"cannot write {path}: {error.strerror}") from None


def _become(options: Options) -> None:
    """Go on as the gateway's user, for good."""
    for path in (options.state, *options.state.rglob("*"), Path(options.audit)):
        os.chown(path, UID, UID, follow_symlinks=False)
    os.environ["HOME"] = str(options.state)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)


def _raise_limit() -> None:
    """Have as many descriptors as are allowed: a node takes one, and so does a stream of a route."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
