"""The daemon: reads the service maps, keeps relays in line with them, and answers the commands.

The daemon reads maps only when it is asked to (start, reload, a hook), in the network namespace that it was
started in. On the first request it reads all maps: an older daemon may have served bridges that the request
does not name. A read that fails changes nothing: unknown is not empty.

When no map is left, the daemon ends, and all its relays with it. It stays if it keeps a watcher, which may
need it again, or if it runs as a service (``stay``). A service keeps its process id when it is replaced: see
``_renew``.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tproxy import __version__
from tproxy.bridge import nftables
from tproxy.daemon.admission import most_connections
from tproxy.daemon.catalog import Catalog
from tproxy.daemon.client import Json
from tproxy.daemon.guard_keeper import GuardKeeper
from tproxy.daemon.memory import Remembered, to_json
from tproxy.daemon.relays import Relays
from tproxy.daemon.server import Client, Server
from tproxy.daemon.watcher_keeper import WatcherKeeper
from tproxy.datapath.connection import Connections
from tproxy.datapath.target import Target
from tproxy.errors import NftError, TproxyError
from tproxy.kernel import mounts, netns
from tproxy.kernel.limits import descriptor_limit
from tproxy.kernel.loop import Loop
from tproxy.log import output
from tproxy.model import DAEMON_TITLE, BridgeNames, ServiceMap, Settings
from tproxy.process import service_manager
from tproxy.process.run_directory import directory
from tproxy.process.table import DRAINING_TITLE
from tproxy.process.title import set_title
from tproxy.relay.spawner import Spawner

log = logging.getLogger(__name__)

# Seconds. While events follow each other this fast, the daemon does not sleep between them (kernel/loop.py).
# This is longer than an endpoint on this host takes to answer; when a guest falls silent, no more time than
# this is spent in vain.
ALERT = 50e-6

# Seconds between two looks of a draining daemon whether it is done.
DRAIN_CHECK = 0.2

# Seconds until a daemon that is not needed any more ends: its last answers leave meanwhile, and the client
# waits for the end of the process.
LAST_ANSWER = 0.01


@dataclass(frozen=True)
class Request:
    """An ``apply`` that is under way: it is answered when it has taken effect."""

    client: Client
    bridges: frozenset[str]


class Daemon:
    """Connects the parts. There is one daemon for each network namespace."""

    def __init__(self, spawner: Spawner, settings: Settings, *, replace: bool, stay: bool) -> None:
        self._loop = Loop(ALERT)
        self._spawner = spawner
        self._catalog = Catalog()
        self._connections = Connections(self._loop)
        self._relays = Relays(
            self._loop,
            spawner,
            self._catalog,
            self._connections,
            self._answer_settled,
            most_connections=most_connections(descriptor_limit()),
        )
        self._server = Server(self._loop, directory(), self._handle)
        self._guards = GuardKeeper(self._loop, lambda: self._catalog.bridges)
        self._watcher = WatcherKeeper(self._loop)
        self._watcher.keep(settings.watch_file or "")
        self._requests: list[Request] = []
        self._replace = replace
        self._knows_all = False  # whether all maps have been read once, and not only those of a hook's bridge
        self._stay = stay
        self._ending = False
        self._started = time.time()

    def run(self) -> None:
        """Serve until a signal, or until no map is left."""
        set_title(DAEMON_TITLE)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._stop)
        self._loop.on_signal(signal.SIGHUP, self._reopen_logs)
        if self._stay:
            self._loop.on_signal(service_manager.LEAVE_SIGNAL, self._leave)
            self._loop.on_signal(signal.SIGCHLD, service_manager.reap_children)
        log.info("daemon %s started", __version__)
        self._loop.run()
        self._connections.lines.summarize()
        log.info("daemon ended")

    # Requests

    def _handle(self, request: Json, client: Client) -> None:
        match request:
            case {"op": "apply"}:
                if "log_level" in request:
                    output.set_level(int(request["log_level"]))
                if "watch" in request:
                    self._watcher.keep(str(request["watch"]))
                if request.get("reopen_logs"):
                    self._reopen_logs()
                named = request.get("bridges")
                self._apply(client, None if named is None else [str(each) for each in named])
            case {"op": "ping"}:
                client.answer({"stays": self._stay, "watch": self._watcher.file})
            case {"op": "status"}:
                client.answer(self._status())
            case {"op": "mounts"}:
                client.answer({"mounts": mounts.view()._asdict()})
            case {"op": "maps"}:
                client.answer({"maps": [self._remembered(each) for each in self._catalog.maps()]})
            case {"op": "drain"}:
                if self._stay:
                    self._renew(client)
                else:
                    self._retire()
                    client.answer({"renewed": False})
            case _:
                client.answer({"error": f"unknown request {request!r:.100}"})

    def _apply(self, client: Client, named: Iterable[str] | None) -> None:
        """Make the maps take effect as they are now, for the named bridges or for all."""
        only = named if self._knows_all else None
        try:
            maps = {each.bridge: each for each in nftables.read_maps(only)}
        except NftError as error:
            log.error("the maps cannot be read, nothing is changed: %s", error)
            client.answer({"error": str(error)})
            return
        self._knows_all = True
        known = self._catalog.bridges | self._relays.bridges
        considered = set(only) if only is not None else known | set(maps)
        for bridge in sorted(considered):
            if bridge in maps:
                for change in self._catalog.apply(maps[bridge]):
                    log.info("bridge %s: %s", bridge, change)
                self._relays.ensure(bridge, replace=self._replace)
                if named is not None:
                    self._guards.forget(bridge)
            elif bridge in known:
                log.info("bridge %s has no map any more", bridge)
                self._catalog.remove(bridge)
                self._relays.dismiss(bridge)
                self._connections.abort_bridge(bridge, "bridge removed")
        self._connections.host.forget()
        self._guards.look()
        self._replace = False  # all relays from before this daemon are being replaced now
        self._ending = not (self._catalog.bridges or self._watcher.file or self._stay)
        self._requests.append(Request(client, frozenset(considered if named is None else named)))
        self._answer_settled()

    def _answer_settled(self) -> None:
        for request in list(self._requests):
            if all(self._relays.settled(bridge) for bridge in request.bridges):
                self._requests.remove(request)
                request.client.answer(
                    {
                        "problems": self._problems(request.bridges & self._catalog.bridges),
                        "relays": sorted(self._relays.pids),
                        "ending": self._ending,
                    }
                )
                if self._stay:
                    service_manager.report_ready()
        if self._ending and not self._requests:
            self._loop.call_later(LAST_ANSWER, self._stop)

    def _problems(self, bridges: Iterable[str]) -> list[str]:
        lines = []
        for bridge in sorted(bridges):
            ports = self._catalog.ports(bridge)
            reasons = {port: self._relays.problem(bridge, port) for port in ports}
            if not ports and self._relays.pid(bridge) is None:
                lines.append(f"bridge {bridge}: {self._relays.problem(bridge, 0)}")
            elif ports and self._relays.pid(bridge) is None:
                lines.append(f"bridge {bridge}: {reasons[ports[0]]}")
            else:
                lines += [
                    f"bridge {bridge}: port {port} cannot listen: {reason}"
                    for port, reason in reasons.items()
                    if reason
                ]
        return lines

    def _remembered(self, each: ServiceMap) -> Json:
        uplinks = self._guards.named_uplinks(each.bridge)
        return to_json(Remembered(each, uplinks is not None, uplinks or frozenset()))

    def _reopen_logs(self) -> None:
        output.reopen()
        self._relays.reopen_logs()

    # Ending

    def _stop(self) -> None:
        # Relays stay, and their guests wait for the next daemon. `tproxy stop` ends relays by itself.
        self._connections.abort_all("stopped")
        self._loop.stop()

    def _renew(self, client: Client) -> None:
        """Go on as the installed code in this process; a child of it finishes the open connections."""
        arguments = ["--log-level", str(output.level()), "--watch", self._watcher.file]
        self._retire()
        client.answer({"renewed": True})
        if os.fork():
            try:
                service_manager.execute_daemon(*arguments)
            except (OSError, TproxyError) as error:
                # The child serves all connections, and only one process may do that. So this one ends, and
                # the service manager starts another.
                log.error("the installed code cannot be started: %s", error)
                os._exit(1)

    def _leave(self) -> None:
        """End, because the service manager starts a successor; a child finishes the open connections."""
        self._retire()
        if os.fork():
            os._exit(0)  # without clean-up: everything is the child's now

    def _retire(self) -> None:
        """Make room for a successor, and finish the open connections."""
        log.info("a new daemon takes over; %d connections to finish", len(self._connections))
        set_title(DRAINING_TITLE)
        self._relays.drain()
        self._guards.close()
        self._watcher.close()
        self._server.close()
        self._spawner.close()
        self._check_drained()

    def _check_drained(self) -> None:
        # Hooks talk to the successor. That a bridge was taken down shows here by its missing namespace.
        for bridge in {connection.target.bridge for connection in self._connections}:
            if not netns.name_taken(BridgeNames(bridge).namespace):
                self._connections.abort_bridge(bridge, "bridge removed")
        # Relays pass connections on to this process until their successors have taken over.
        if self._connections or self._relays.bridges:
            self._loop.call_later(DRAIN_CHECK, self._check_drained)
        else:
            self._loop.stop()

    # Status

    def _status(self) -> Json:
        live: dict[Target, list[int]] = {}
        for connection in self._connections:
            sums = live.setdefault(connection.target, [0, 0])
            sums[0] += connection.to_endpoint.moved
            sums[1] += connection.to_guest.moved
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "connections": len(self._connections),
            "bridges": {
                bridge: self._bridge_status(bridge, live) for bridge in sorted(self._catalog.bridges)
            },
        }

    def _bridge_status(self, bridge: str, live: dict[Target, list[int]]) -> dict[str, Any]:
        networks = self._catalog.networks[bridge]
        services = []
        for target in sorted(self._catalog.targets(bridge), key=lambda each: each.service.port):
            sums = live.get(target, [0, 0])
            problem = self._relays.problem(bridge, target.service.port)
            services.append(
                {
                    "port": target.service.port,
                    "name": target.service.name,
                    "endpoint": str(target.service.endpoint),
                    "listening": not problem,
                    "problem": problem,
                    "open": target.open,
                    "total": target.total,
                    "bytes_to_endpoint": target.to_endpoint + sums[0],
                    "bytes_to_guest": target.to_guest + sums[1],
                    "last_error": target.last_error,
                    "last_error_at": target.last_error_at or None,
                }
            )
        return {
            "network": networks[0].name,
            "network_id": networks[0].id,
            "networks": [{"name": each.name, "id": each.id} for each in networks],
            "relay": self._relays.pid(bridge),
            "services": services,
        }
