"""The daemon: reads the service maps, keeps relays in line with them, and answers the commands.

It reads maps only when it is asked to (start, reload, a hook), in the network namespace it was
started in; all of them when it is asked for the first time, since others were served before it came. A read
that fails changes nothing: unknown is not empty. When no map is left at all, the daemon ends, and all its
relays with it; unless it is to keep a watcher, which may need it again, or is a service that a service
manager wants to be there (``stay``). Such a one keeps its process id when it is replaced: see ``_renew``.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tproxy import __version__
from tproxy.bridge import nftables
from tproxy.daemon.catalog import Catalog
from tproxy.daemon.client import Json
from tproxy.daemon.guard_keeper import PortKeeper
from tproxy.daemon.relays import Supervisor
from tproxy.daemon.server import Client, Server
from tproxy.daemon.watcher_keeper import Watchdog
from tproxy.datapath.connection import Connections
from tproxy.datapath.splice import MAX_PIPES
from tproxy.datapath.target import Target
from tproxy.errors import NftError, TproxyError
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.log import output
from tproxy.model import DAEMON_TITLE, BridgeNames, Settings
from tproxy.process import service_manager
from tproxy.process.run_directory import directory
from tproxy.process.title import set_title
from tproxy.relay.relay import BATCH
from tproxy.relay.spawner import Spawner

log = logging.getLogger(__name__)

# Shown while an old daemon finishes what it has; programs that look for the daemon find the new one.
DRAINING_TITLE = "tproxy-draining"

# Descriptors for everything that is not a connection: logs, netlink, clients, one for each relay.
RESERVE = 512

# While events come this fast one after the other, in seconds, the daemon does not sleep between them: longer
# than an endpoint on this host takes to answer. No more than that is lost when a guest falls silent.
ALERT = 50e-6

# A draining daemon looks this often whether it is done, in seconds.
DRAIN_CHECK = 0.2


def most_connections(descriptors: int) -> int:
    """How many may be open at once; each has two descriptors."""
    # Of few, half: what could be, is not likely to come together.
    kept = min(RESERVE + 2 * MAX_PIPES, descriptors // 2)
    return max((descriptors - kept) // 2, BATCH)  # less, and no relay's message could be taken


@dataclass(frozen=True)
class Request:
    """An apply that is answered when it has taken effect."""

    client: Client
    bridges: frozenset[str]


class Daemon:
    """Wires the parts together; one a network namespace."""

    def __init__(self, spawner: Spawner, settings: Settings, *, replace: bool, stay: bool) -> None:
        self._loop = Loop(ALERT)
        self._spawner = spawner
        self._catalog = Catalog()
        self._connections = Connections(self._loop)
        self._relays = Supervisor(self._loop, spawner, self._catalog, self._connections, self._answer_settled)
        self._relays.limit(most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        self._server = Server(self._loop, directory(), self._handle)
        self._ports = PortKeeper(self._loop, lambda: self._catalog.bridges)
        self._watchdog = Watchdog(self._loop)
        self._watchdog.keep(settings.watch_file or "")
        self._requests: list[Request] = []
        self._replace = replace
        self._knows_all = False  # the maps: before that, a hook names one bridge, and others wait
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
            self._loop.on_signal(signal.SIGCHLD, service_manager.reap)
        log.info("daemon %s started", __version__)
        self._loop.run()
        log.info("daemon ended")

    # Requests

    def _handle(self, request: Json, client: Client) -> None:
        match request:
            case {"op": "apply"}:
                if "log_level" in request:
                    output.set_level(int(request["log_level"]))
                if "watch" in request:
                    self._watchdog.keep(str(request["watch"]))
                if request.get("reopen_logs"):
                    self._reopen_logs()
                named = request.get("bridges")
                self._apply(client, None if named is None else [str(each) for each in named])
            case {"op": "ping"}:
                client.answer({"stays": self._stay, "watch": self._watchdog.file})
            case {"op": "status"}:
                client.answer(self._status())
            case {"op": "drain"}:
                if self._stay:
                    self._renew(client)
                else:
                    self._retire()
                    client.answer({"renewed": False})
            case _:
                client.answer({"error": f"unknown request {request!r:.100}"})

    def _apply(self, client: Client, named: Iterable[str] | None) -> None:
        """Make the maps as they are now take effect, for the named bridges or for all."""
        only = named if self._knows_all else None
        try:
            maps = {each.bridge: each for each in nftables.read_maps(only)}
        except NftError as error:
            log.error("the maps cannot be read, all stays as it is: %s", error)
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
                    self._ports.forget(bridge)
            elif bridge in known:
                log.info("bridge %s has no map any more", bridge)
                self._catalog.remove(bridge)
                self._relays.dismiss(bridge)
                self._connections.abort_bridge(bridge, "bridge removed")
        self._connections.forget_addresses()
        self._ports.look()
        self._replace = False  # those that were there before this daemon are replaced now
        self._ending = not (self._catalog.bridges or self._watchdog.file or self._stay)
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
                    service_manager.ready()
        if self._ending and not self._requests:
            # After the answers had a moment to leave; the client waits for the process to end.
            self._loop.call_later(0.01, self._stop)

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

    def _reopen_logs(self) -> None:
        output.reopen()
        self._relays.signal(signal.SIGHUP)

    # Ending

    def _stop(self) -> None:
        # Relays stay: whoever wants them gone says so. Their guests wait for the next daemon.
        self._connections.abort_all("stopped")
        self._loop.stop()

    def _renew(self, client: Client) -> None:
        """Start the installed code in this process; a child of it finishes what is open."""
        arguments = ["--log-level", str(output.level()), "--watch", self._watchdog.file]
        self._retire()
        client.answer({"renewed": True})
        if os.fork():
            try:
                service_manager.execute(*arguments)
            except (OSError, TproxyError) as error:
                # All that is open is the child's, and two must not serve it. The manager starts another.
                log.error("the installed code cannot be started: %s", error)
                os._exit(1)

    def _leave(self) -> None:
        """End, as the service manager wants before it starts a successor; a child finishes what is open."""
        self._retire()
        if os.fork():
            os._exit(0)  # nothing is to be undone: it all is the child's now

    def _retire(self) -> None:
        """Leave the place to a successor, and finish what is open."""
        log.info("a new daemon takes over; %d connections to finish", len(self._connections))
        set_title(DRAINING_TITLE)
        self._relays.drain()
        self._ports.close()
        self._watchdog.close()
        self._server.close()
        self._spawner.close()
        self._check_drained()

    def _check_drained(self) -> None:
        # Nobody tells us of maps any more, but a bridge that was taken down has no namespace.
        for bridge in {connection.entry.bridge for connection in self._connections}:
            if not netns.name_taken(BridgeNames(bridge).namespace):
                self._connections.abort_bridge(bridge, "bridge removed")
        # Relays still pass connections on until their successors have taken over.
        if self._connections or self._relays.bridges:
            self._loop.call_later(DRAIN_CHECK, self._check_drained)
        else:
            self._loop.stop()

    # Status

    def _status(self) -> Json:
        live: dict[Target, list[int]] = {}
        for connection in self._connections:
            sums = live.setdefault(connection.entry, [0, 0])
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
        network = self._catalog.networks[bridge]
        services = []
        for entry in sorted(self._catalog.entries(bridge), key=lambda each: each.service.port):
            sums = live.get(entry, [0, 0])
            problem = self._relays.problem(bridge, entry.service.port)
            services.append(
                {
                    "port": entry.service.port,
                    "name": entry.service.name,
                    "endpoint": str(entry.service.endpoint),
                    "listening": not problem,
                    "problem": problem,
                    "open": entry.open,
                    "total": entry.total,
                    "bytes_to_endpoint": entry.to_endpoint + sums[0],
                    "bytes_to_guest": entry.to_guest + sums[1],
                    "last_error": entry.last_error,
                    "last_error_at": entry.last_error_at or None,
                }
            )
        return {
            "network": network.name,
            "network_id": network.id,
            "relay": self._relays.pid(bridge),
            "services": services,
        }
