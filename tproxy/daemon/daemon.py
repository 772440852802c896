"""The daemon: reads the service maps, keeps relays and workers in line with them, and answers the commands.

The daemon carries no connection. When it dies, relays and workers go on with what they were told last, and
the next daemon finds them (``relays``, ``workers``).

The daemon reads maps only when it is asked to (start, reload, a hook), in the network namespace that it was
started in, and when nobody has asked a second after its start: that command was killed. On the first request
it reads all maps: an older daemon may have served bridges that the request does not name. A read that fails
changes nothing: unknown is not empty.

When no map is left, the daemon ends, and all its relays with it. It stays if it keeps a watcher, which may
need it again, or if it runs as a service (``stay``). A service keeps its process id when it is replaced: see
``_renew``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tproxy import __version__
from tproxy.bridge import nftables
from tproxy.daemon import launcher, questions
from tproxy.daemon.callers import Callers
from tproxy.daemon.catalog import Catalog
from tproxy.daemon.client import Json
from tproxy.daemon.figures import Figures
from tproxy.daemon.guard_keeper import GuardKeeper
from tproxy.daemon.labels import Labels
from tproxy.daemon.log_level import LogLevel
from tproxy.daemon.lost_socket import LOOK_SIGNAL
from tproxy.daemon.memory import Remembered, to_json
from tproxy.daemon.relays import Relays
from tproxy.daemon.route_guests import RouteGuests
from tproxy.daemon.routes import Routes
from tproxy.daemon.server import Client, Server
from tproxy.daemon.service_addresses import ServiceAddresses
from tproxy.daemon.spawner import Spawner
from tproxy.daemon.status import status
from tproxy.daemon.watcher_keeper import WatcherKeeper
from tproxy.daemon.workers import Workers, wanted_workers
from tproxy.errors import NftError, TproxyError
from tproxy.kernel import mounts
from tproxy.kernel.loop import Loop
from tproxy.log import output
from tproxy.model import ServiceKey, ServiceMap, Settings
from tproxy.names import DAEMON_TITLE
from tproxy.process import service_manager
from tproxy.process.run_directory import directory, prepare
from tproxy.process.title import set_title
from tproxy.worker import orders

log = logging.getLogger(__name__)

# Seconds until a daemon that is not needed any more ends: its last answers leave meanwhile, and the client
# waits for the end of the process.
LAST_ANSWER = 0.01


# Seconds that figures may be old, rather than wait longer for a worker that is busy with something else.
COUNTING = 0.5

# Seconds. The command that starts a daemon asks for the maps some milliseconds after that.
UNASKED = 1.0


@dataclass(frozen=True)
class Request:
    """An ``apply`` that is under way: it is answered when it has taken effect."""

    client: Client | None  # None: nobody asked
    bridges: frozenset[str]


class Daemon:
    """Connects the parts. There is one daemon for each network namespace."""

    def __init__(self, spawner: Spawner, settings: Settings, *, replace: bool, stay: bool) -> None:
        self._loop = Loop()
        self._spawner = spawner
        self._catalog = Catalog()
        self._workers = Workers(self._loop, spawner, directory(), self._answer_settled, self._regroup)
        self._relays = Relays(self._loop, spawner, self._catalog, self._workers, self._answer_settled)
        self._server = Server(self._loop, directory(), self._handle)
        self._guards = GuardKeeper(self._loop, lambda: self._catalog.bridges)
        self._callers = Callers(
            self._loop, self._workers.tell, lambda bridge: self._guards.named_uplinks(bridge) or ()
        )
        self._callers.hypervisor = settings.hypervisor_name or ""
        self._labels = Labels(self._workers.tell)
        self._routes = Routes(
            self._loop, self._workers.tell, self._workers.use_inlet, lambda: self._workers.expects_words
        )
        self._workers.take_inlet = self._routes.take_over
        self._guests = RouteGuests(
            self._loop,
            self._catalog,
            self._route_moved,
            lambda bridge: self._guards.named_uplinks(bridge) or (),
        )
        self._workers.note_absent = self._guests.absent
        self._addresses = ServiceAddresses(self._workers.tell, self._workers.give_tables)
        self._workers.listeners = self._catalog.listeners
        self._workers.open_table = self._addresses.open_table
        self._workers.preface = self._preface
        self._workers.refuse = self._relays.refuse
        self._log_level = LogLevel(self._loop, self._level_changed)
        self._watcher = WatcherKeeper(self._loop)
        self._watcher.keep(settings.watch_file or "")
        self._requests: list[Request] = []
        self._waiting: list[Client] = []  # for the status, until workers have counted
        self._reading: dict[Client, str] = {}  # for the figures, likewise, with what they know
        self._replace = replace
        self._knows_all = False  # whether all maps have been read once, and not only those of a hook's bridge
        self._stay = stay
        self._ending = False
        self._retired = False
        self._started = time.time()
        self._figures = Figures(self._loop, self._catalog, self._workers, self._relays, self._started)
        self._wanted_workers = settings.workers or 0
        self._workers.max_connections = settings.max_connections or 0
        self._workers.keep(wanted_workers(self._wanted_workers), replace=replace)

    def appear(self) -> None:
        """Take signals, and be found by other processes. The starter still holds the host's lock."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._loop.stop)
        self._loop.on_signal(LOOK_SIGNAL, self._look_after_files)
        self._spawner.attend(self._loop)
        self._keep_alive()
        if self._stay:
            self._loop.on_signal(service_manager.LEAVE_SIGNAL, self._leave)
            self._loop.on_signal(signal.SIGCHLD, service_manager.reap_children)
            service_manager.reap_children()  # the spawner of the code that this process ran before
        self._log_level.forget()
        set_title(DAEMON_TITLE)  # only now: whoever finds the process may signal it

    def run(self) -> None:
        """Serve until a signal, or until no map is left."""
        log.info("daemon %s started", __version__)
        self._loop.call_later(UNASKED, self._serve_unasked)
        self._loop.run()
        self._relays.close()
        if not self._retired:
            self._log_level.forget()
        self._spawner.close(ended=True)
        log.info("daemon ended")

    def _preface(self, bridge: str) -> Iterable[orders.Message]:
        """Return what a worker is told of a bridge before its services."""
        sources = (self._addresses, self._labels, self._callers, self._routes)
        return [message for each in sources for message in each.messages(bridge)]

    def _route_moved(self, bridge: str) -> None:
        """Have relay, wall and workers know the addresses that guests of routes have now."""
        self._relays.ensure(bridge)
        self._workers.serve(bridge, self._catalog.served(bridge))

    def _level_changed(self) -> None:
        self._workers.set()
        self._relays.tell_level()

    def _regroup(self) -> None:
        self._relays.regroup()

    # Requests

    def _handle(self, request: Json, client: Client) -> None:
        match request:
            case {"op": "apply"}:
                if "log_level" in request:
                    self._log_level.configure(int(request["log_level"]))
                if "workers" in request:
                    self._wanted_workers = int(request["workers"])
                    self._workers.keep(wanted_workers(self._wanted_workers))
                if "max_connections" in request:
                    self._workers.max_connections = int(request["max_connections"])
                if "hypervisor_name" in request:
                    self._callers.hypervisor = str(request["hypervisor_name"])
                if "watch" in request:
                    self._watcher.keep(str(request["watch"]))
                self._keep_alive()
                if request.get("reopen_logs"):
                    self._reopen_logs()
                named = request.get("bridges")
                self._apply(client, None if named is None else [str(each) for each in named])
            case {"op": "ping"}:
                client.answer({"stays": self._stay, "watch": self._watcher.file})
            case {"op": "status"}:
                self._waiting.append(client)
                self._workers.sync(count=True)
                self._answer_settled()
            case {"op": "metrics"}:
                self._reading[client] = str(request.get("known", ""))
                self._workers.sync(count=True)
                self._loop.call_later(COUNTING, self._answer_figures)
                self._answer_settled()
            case {"op": "repair", "bridge": str(bridge), "failed": bool(failed)}:
                self._figures.note_repair(bridge, failed=failed)
                client.answer({})
            case {"op": "ask", "kind": str(kind), "words": list(words)}:
                questions.pass_on(self._workers, kind, [str(each) for each in words], client)
            case {"op": "log_level"}:
                if "level" in request:
                    level, seconds = request["level"], request.get("seconds")
                    self._log_level.set(
                        None if level is None else int(level), None if seconds is None else float(seconds)
                    )
                client.answer(self._log_level.report())
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
                    self._loop.call_later(LAST_ANSWER, self._loop.stop)
            case _:
                client.answer({"error": f"unknown request {request!r:.100}"})

    def _serve_unasked(self) -> None:
        """Serve the maps that are there, because the command that started this daemon has died since."""
        if self._knows_all or self._retired:
            return
        try:
            found = nftables.read_maps()
        except NftError as error:
            log.error("the maps cannot be read: %s", error)
            return
        if found:  # without any, somebody may have flushed nftables: a hook decides
            log.warning("nobody has asked for the maps; they are served as they are")
            self._apply(None, None)

    def _apply(self, client: Client | None, named: Iterable[str] | None) -> None:
        """Make the maps take effect as they are now, for the named bridges or for all."""
        only = named if self._knows_all else None
        try:
            maps = {each.bridge: each for each in nftables.read_maps(only)}
        except NftError as error:
            log.error("the maps cannot be read, nothing is changed: %s", error)
            if client is not None:
                client.answer({"error": str(error)})
            return
        self._knows_all = True
        known = self._catalog.bridges | self._relays.bridges
        considered = set(only) if only is not None else known | set(maps)
        for bridge in sorted(considered & set(maps)):
            for change in self._catalog.apply(maps[bridge]):
                log.info("bridge %s: %s", bridge, change)
        for bridge in sorted(considered - set(maps)):
            self._catalog.remove(bridge)
        self._callers.serve(self._catalog.maps())
        self._labels.serve(self._catalog.maps())
        self._routes.serve(self._catalog.maps())
        self._guests.serve()
        self._addresses.serve(self._catalog.maps())
        for bridge in sorted(considered):
            if bridge in maps:
                self._workers.serve(bridge, self._catalog.served(bridge))
                self._relays.ensure(bridge, replace=self._replace)
                if named is not None:
                    self._guards.forget(bridge)
            elif bridge in known:
                log.info("bridge %s has no map any more", bridge)
                self._relays.dismiss(bridge)
                self._workers.forget(bridge)
        if only is None:
            self._workers.complete()
        self._workers.set()
        self._workers.sync()
        self._guards.look()
        self._replace = False  # all relays from before this daemon are being replaced now
        self._ending = not (self._catalog.bridges or self._watcher.file or self._stay)
        self._requests.append(Request(client, frozenset(considered if named is None else named)))
        self._answer_settled()

    def _answer_settled(self) -> None:
        if not self._workers.settled:
            return
        waiting, self._waiting = self._waiting, []
        for client in waiting:
            client.answer(status(self._catalog, self._workers, self._relays, self._started))
        self._answer_figures()
        for request in list(self._requests):
            if all(self._relays.settled(bridge) for bridge in request.bridges):
                self._requests.remove(request)
                if request.client is None:
                    continue
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
            self._loop.call_later(LAST_ANSWER, self._end_if_unneeded)

    def _end_if_unneeded(self) -> None:
        if self._ending and not self._requests:  # otherwise another hook has brought a bridge up meanwhile
            self._loop.stop()

    def _answer_figures(self) -> None:
        reading, self._reading = self._reading, {}
        for client, known in reading.items():
            client.answer_with(*self._figures.answer(known))

    def _problems(self, bridges: Iterable[str]) -> list[str]:
        lines = []
        for bridge in sorted(bridges):
            keys = self._catalog.listeners(bridge)
            reasons = {key: self._relays.problem(bridge, key) for key in keys}
            if not keys and self._relays.pid(bridge) is None:
                lines.append(f"bridge {bridge}: {self._relays.problem(bridge, ServiceKey(0))}")
            elif keys and self._relays.pid(bridge) is None:
                lines.append(f"bridge {bridge}: {reasons[keys[0]]}")
            else:
                lines += [
                    f"bridge {bridge}: port {key.in_words} cannot listen: {reason}"
                    for key, reason in reasons.items()
                    if reason
                ]
        return lines

    def _remembered(self, each: ServiceMap) -> Json:
        uplinks = self._guards.named_uplinks(each.bridge)
        return to_json(Remembered(each, uplinks is not None, uplinks or frozenset()))

    def _reopen_logs(self) -> None:
        output.reopen()
        self._workers.reopen_logs()
        self._relays.reopen_logs()

    def _keep_alive(self) -> None:
        """Have the spawner start a daemon with these settings if this one crashes, unless a manager does."""
        if not self._stay:
            self._spawner.keep(json.dumps(self._settings()._asdict()).encode())

    def _settings(self) -> Settings:
        return Settings(
            self._log_level.configured,
            self._watcher.file,
            self._wanted_workers,
            self._workers.max_connections,
            self._callers.hypervisor,
        )

    def _look_after_files(self) -> None:
        self._reopen_logs()
        if self._retired or not self._server.lost:
            return
        log.warning("the run directory was removed; it is made again")
        try:
            os.chdir(prepare())
            self._server.listen_again()
        except (OSError, TproxyError) as error:
            log.error("the run directory cannot be made again: %s", error)
            return
        self._workers.meet_again()

    # Ending. A signal ends only this process: guests are served as before. `tproxy stop` ends all.

    def _renew(self, client: Client) -> None:
        """Go on as the installed code in this process."""
        arguments = launcher.arguments(self._settings())
        self._retire()
        client.answer_now({"renewed": True})
        try:
            service_manager.execute_daemon(*arguments)
        except (OSError, TproxyError) as error:
            # Relays and workers go on. The service manager starts another daemon.
            log.error("the installed code cannot be started: %s", error)
            os._exit(1)

    def _leave(self) -> None:
        """End, because the service manager starts a successor."""
        self._retire()
        self._loop.stop()

    def _retire(self) -> None:
        """Make room for a successor, which has relays and workers of its own."""
        self._retired = True
        log.info("a new daemon takes over")
        self._log_level.forget()
        self._workers.drain()
        self._callers.close()
        self._guards.close()
        self._watcher.close()
        self._server.close()
        # The command that has asked for this holds the host's lock. If it dies before it has started a
        # successor, the spawner does that.
        self._spawner.close(ended=False)
