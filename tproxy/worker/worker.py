"""The worker: takes sockets from relays, dials the endpoints, and carries the bytes, without any rights.

Theory of operation. A worker hears of bridges and services from the daemon, over one channel (``orders``),
and gets guests' sockets from relays, over a channel for each bridge (``intake``). It needs neither to go on:
while the daemon is away, it serves as it was told last, and a relay that is replaced leaves an end of file. A
new daemon finds the worker at its meeting point, a UNIX socket in the run directory, which only root can
enter.

A worker that is told to finish (Drain) goes on taking what relays pass on, and ends when no channel to a
relay and no connection is left. So does a worker without a daemon.
"""

from __future__ import annotations

import signal
import socket

from tproxy.datapath.connections import Connections
from tproxy.datapath.counters import Counters
from tproxy.datapath.counts import LoopTimes
from tproxy.datapath.datagrams import Datagrams
from tproxy.datapath.endpoints import State
from tproxy.datapath.route_target import RouteTarget
from tproxy.datapath.target import Target
from tproxy.datapath.waiting import Divided, Door, door_at, doors
from tproxy.errors import ProtocolError
from tproxy.kernel import privileges, seccomp
from tproxy.kernel.limits import descriptor_limit
from tproxy.kernel.loop import READ, Loop
from tproxy.log.file import Log
from tproxy.model import TCP, UDP, Endpoint, Service, ServiceKey, service_label
from tproxy.process.title import set_title
from tproxy.relay.channel import Delivery, receive, send_bytes, send_if_room
from tproxy.routes import is_route
from tproxy.worker import orders
from tproxy.worker.admission import Admission, Used, most_connections, most_sessions
from tproxy.worker.inspection import Inspection
from tproxy.worker.intake import Intake
from tproxy.worker.inward import Inward
from tproxy.worker.questions import Questions

TITLE = "tproxy-worker"

# Of a worker that only finishes its connections.
DRAINING_TITLE = "tproxy-draining"

# Seconds. While events follow each other this fast, a worker does not sleep between them (kernel/loop.py).
# This is longer than an endpoint on this host takes to answer; when a guest falls silent, no more time than
# this is spent in vain.
ALERT = 50e-6

# Seconds without a daemon after which a worker does not know any more behind which ports guests are: one of
# them may have moved. A daemon that is restarted is back earlier.
PORTS_KEPT = 5.0

# Seconds between two looks of a worker that is not wanted any more whether its last connection has ended.
DRAIN_CHECK = 0.2


def run(channel: socket.socket, meeting: socket.socket, empty: str, log: Log) -> None:
    """Be a worker until there is nothing more to do.

    ``channel`` leads to the daemon, ``meeting`` is a bound socket at which a later daemon can find this
    process, and ``empty`` is the path of an empty directory (kernel/privileges.py).
    """
    meeting.listen()  # now, as root: a daemon learns from it which process this is (unix(7), SO_PEERCRED)
    failed = privileges.drop(empty, seccomp.WORKER)
    set_title(TITLE)
    for line in failed:
        log.warning("a right that the worker does not need could not be given up: %s", line)
    Worker(meeting, log).serve(channel)


class Worker:
    """The loop of a worker, its services, and its channels."""

    def __init__(self, meeting: socket.socket, log: Log) -> None:
        self._log = log
        self._loop = Loop(ALERT)
        self._counters = Counters()
        most = most_connections(descriptor_limit())
        self._connections = Connections(self._loop, log, most)
        self._connections.report = self._report
        dials = self._connections.dials
        dials.ask = lambda *asked: send_if_room(self._channel, orders.encode(orders.Dial(*asked)))
        dials.hang_up = lambda number: send_if_room(self._channel, orders.encode(orders.HangUp(number)))
        self._datagrams = Datagrams(
            self._loop,
            log,
            most_sessions(most),
            self._connections.introductions,
            self._connections.lines,
            self._connections.next_number,
            self._connections.tracing,
        )
        self._datagrams.endpoints.report = lambda endpoint, state: self._report(endpoint, state, "/udp")
        self._datagrams.endpoints.unreachable = lambda *said: self._say(orders.Unreachable(*said))
        used = Used(self._connections, self._datagrams)
        self._admission = Admission(self._loop, log, most, used, self._poll_intakes)
        self._inward = used.inward = Inward(self._loop, log, self._connections, most, self._admission)
        self._inward.streams.absent = lambda to: self._say(orders.Absent(to.bridge, to.service.key.network))
        inspection = Inspection(
            self._connections, self._inward.streams, self._datagrams, lambda: self._draining
        )
        answerers = {**inspection.answerers, "trace": self._connections.tracing.answer}
        self._questions = Questions(self._loop, log, answerers)
        self._meeting = meeting
        self._channel: socket.socket | None = None
        self._services: dict[str, dict[ServiceKey, Target]] = {}
        # What guests find at a service port, by a key without a network.
        self._doors: dict[str, dict[ServiceKey, Door]] = {}
        self._addresses: dict[str, frozenset[str]] = {}  # the service addresses that each bridge has
        self._labels: dict[str, tuple[str, dict[ServiceKey, str]]] = {}  # network, and names; for the log
        self._coming: list[Service] = []  # the part of a long list that is here already
        self._intakes: set[Intake] = set()
        self._workers = 1
        self._draining = False
        self._asked = 0  # the number of the last Sync of this daemon
        self._counting = 0  # how many counts of open connections are under way
        self._looks = False  # whether a timer looks if all is done

    def serve(self, channel: socket.socket) -> None:
        """Run until a signal, or until there is nothing more to do."""
        self._meeting.setblocking(False)
        self._loop.add(self._meeting.fileno(), READ, self)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._stop)
        self._log.info("worker started")
        self._greet(channel)
        self._loop.run()
        self._connections.lines.summarize()
        self._inward.streams.lines.summarize()
        self._log.info("worker ended")

    def on_event(self, fd: int, mask: int) -> None:
        if fd == self._meeting.fileno():
            self._meet()
        else:
            self._listen_to_daemon()

    # intake.Owner

    def find(self, bridge: str, key: ServiceKey) -> Door | None:
        found = self._doors.get(bridge, {}).get(key)
        if found is None or isinstance(found, Divided) or found.service.introduced:
            # A relay can be faster than the daemon's message that came before; and so can a guest be.
            self._listen_to_daemon()
            found = self._doors.get(bridge, {}).get(key)
        if key.address not in self._addresses.get(bridge, (key.address,)):
            return None  # somebody has taken that address away meanwhile
        return door_at(self._doors.get(bridge, {}), key) if found is None else found

    def dialled(self, intake: Intake, delivery: Delivery) -> None:
        self._inward.dialled(intake, delivery)

    def ended(self, intake: Intake) -> None:
        self._inward.lose_relay(intake)
        self._intakes.discard(intake)
        intake.close()
        self._end_if_done()

    # The daemon

    def _meet(self) -> None:
        """Follow a new daemon."""
        try:
            channel, _ = self._meeting.accept()
        except OSError:
            return
        self._hear()  # what the daemon before has said last
        self._forget_daemon()
        self._greet(channel)

    def _move_meeting(self, meeting: socket.socket) -> None:
        """Be found at another place: somebody removed the file of the one before."""
        meeting.listen()
        meeting.setblocking(False)
        old, self._meeting = self._meeting, meeting
        self._loop.close_later(old)
        self._loop.add(meeting.fileno(), READ, self)

    def _greet(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._asked = 0
        self._loop.add(channel.fileno(), READ, self)
        self._say(orders.Ready(orders.VERSION, self._draining), self._counters.fd)
        if self._inward.listener is not None:
            self._say(orders.Inlet(), self._inward.listener.fileno())
        self._connections.dials.ask_again()

    def _forget_daemon(self) -> None:
        if self._channel is not None:
            self._loop.close_later(self._channel)
            self._channel = None
            self._loop.call_later(PORTS_KEPT, self._forget_ports)

    def _forget_ports(self) -> None:
        if self._channel is None:
            self._connections.introductions.forget_ports()

    def _say(self, message: orders.Message, *fds: int) -> None:
        if self._channel is not None:
            try:
                send_bytes(self._channel, orders.encode(message), fds)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended; what it said before that is still to be heard
            except OSError as error:
                self._log.warning("daemon lost: %s", error.strerror)
                self._forget_daemon()

    def _listen_to_daemon(self) -> None:
        self._hear()
        self._end_if_done()

    def _hear(self) -> None:
        """Do all that the daemon has said: also one that has ended, since guests may wait in the channels."""
        while self._channel is not None:
            try:
                delivery = receive(self._channel, orders.decode)
                if delivery is None:
                    self._log.warning("daemon lost; guests are served as before")
                    self._forget_daemon()
                    break
                with delivery:
                    self._obey(delivery)
            except BlockingIOError:
                return
            except ConnectionResetError:
                pass  # it has not heard all of this process; the kernel reports that once
            except (OSError, ProtocolError) as error:
                self._log.warning("daemon lost: %s", error)
                self._forget_daemon()

    def _obey(self, delivery: Delivery) -> None:
        match delivery.message:
            case orders.Services(bridge, first, last, services):
                self._coming = [*([] if first else self._coming), *services]
                if last:
                    self._apply(bridge, self._coming)
                    self._coming = []
            case orders.Addresses(bridge, addresses):
                self._addresses[bridge] = frozenset(addresses)
                self._connections.withdraw(bridge, self._addresses[bridge])
                self._datagrams.withdraw(bridge, self._addresses[bridge])
            case orders.Neighbours(bridge) if len(delivery.fds) == 1:
                self._connections.introductions.neighbours.use(bridge, delivery.take_socket())
            case orders.Networks():
                self._connections.introductions.use_networks(*delivery.message)
                self._connections.waiting.look(delivery.message.bridge)
                self._datagrams.look()
            case orders.Labels(bridge, first, network, names):
                known = {} if first else self._labels.get(bridge, ("", {}))[1]
                self._labels[bridge] = network, {**known, **dict(names)}
                for target in self._services.get(bridge, {}).values():
                    self._label(target)
            case orders.Ports():
                self._connections.introductions.use_ports(*delivery.message)
                macs = (mac for mac, _ in delivery.message.ports)
                self._connections.waiting.look(delivery.message.bridge, macs)
                self._datagrams.look()
            case orders.Bridge(bridge, cookie) if len(delivery.fds) == 1:
                intake = Intake(
                    bridge,
                    cookie,
                    delivery.take_socket(),
                    self._loop,
                    self._log,
                    self._connections,
                    self._admission,
                    self,
                )
                self._intakes.add(intake)
                self._inward.use_relay(intake)
            case orders.Routes():
                self._inward.use_routes(delivery.message)
            case orders.Inlet():
                self._inward.listen(delivery.take_socket() if delivery.fds else None)
            case orders.Forget(bridge):
                self._apply(bridge, [])
                del self._services[bridge], self._doors[bridge]
                self._labels.pop(bridge, None)
                self._addresses.pop(bridge, None)
                self._connections.limits.forget(bridge)
                self._connections.introductions.forget(bridge)
                self._connections.abort_bridge(bridge, "bridge removed")
                self._datagrams.forget(bridge, "bridge removed")
                self._inward.forget(bridge, "bridge removed")
            case orders.Dialled(number, 0) if len(delivery.fds) == 1:
                self._connections.dials.answered(number, delivery.take_unix(), 0)
            case orders.Dialled(number, error) if error:
                self._connections.dials.answered(number, None, error)
            case orders.Gate(bridge, key) if len(delivery.fds) == 1:
                self._datagrams.take(bridge, key, delivery.take_socket())
            case orders.LetGo(bridge):
                self._datagrams.let_go(bridge)
            case orders.Settings(log_level, workers, ports, max_connections):
                self._log.use_style(log_level)
                self._workers = workers
                self._connections.host.forget(ports)
                self._connections.limits.set(workers, max_connections, ports)
                self._datagrams.crowds.set(workers, ports)
                self._inward.streams.limits.set(workers, max_connections, ports)
            case orders.LogFile() if len(delivery.fds) == 1:
                self._log.use(delivery.take()[0])
            case orders.Meeting() if len(delivery.fds) == 1:
                self._move_meeting(delivery.take_socket())
            case orders.Sync(number, counting):
                self._asked = number
                if counting:
                    self._counting += 1
                    self._datagrams.count_open()
                    self._inward.streams.count_open(lambda: self._connections.count_open(self._counted))
                elif not self._counting:  # otherwise one answer is for both
                    self._say(orders.Synced(number))
            case orders.Question(kind, words) if len(delivery.fds) == 1:
                self._questions.ask(kind, words, delivery.take_socket())
            case orders.Drain():
                self._drain()
            case other:
                raise ProtocolError(f"unexpected {type(other).__name__}")

    def _apply(self, bridge: str, services: list[Service]) -> None:
        """Take over a bridge's services as they are now. One that stays keeps its counts."""
        before = self._services.get(bridge, {})
        after: dict[ServiceKey, Target] = {}
        for service in services:
            target = before.pop(service.key, None)
            if target is None:
                record = self._counters.record(bridge, service.key)
                kind = RouteTarget if is_route(service.key) else Target
                target = kind(bridge, service, record, sharers=self._workers)
            target.service = service
            self._label(target)
            after[service.key] = target
        for target in before.values():
            self._counters.give_back(target.record)
        self._services[bridge] = after
        routes = {key: each for key, each in after.items() if isinstance(each, RouteTarget)}
        self._inward.serve(bridge, routes)
        outward = {key: each for key, each in after.items() if key not in routes} if routes else after
        self._doors[bridge] = doors(outward, self._doors.get(bridge, {}))
        self._connections.serve(
            bridge, [each.service for key, each in outward.items() if key.protocol == TCP]
        )
        udp = {key: each for key, each in self._doors[bridge].items() if key.protocol == UDP}
        self._datagrams.serve(bridge, udp)

    def _label(self, target: Target) -> None:
        target.network, names = self._labels.get(target.bridge, ("", {}))
        key = target.service.key
        if isinstance(target, RouteTarget):
            return
        if key.network and (own := self._connections.introductions.network(target.bridge, key.network)):
            target.network = own.name or own.id
        target.label = service_label(names.get(key, ""), key)

    def _counted(self) -> None:
        self._counting -= 1
        loop = self._loop
        self._counters.note_loop(LoopTimes(loop.turns, loop.busy, tuple(loop.slow)))
        if self._asked and not self._counting:
            self._say(orders.Synced(self._asked))

    def _report(self, endpoint: Endpoint, state: State | None, protocol: str = "") -> None:
        name = f"{endpoint}{protocol}"
        if state is None:
            self._counters.forget(name)
        else:
            self._counters.note(name, failed=state.failed, why=state.why)

    # Ending

    def _drain(self) -> None:
        self._draining = True
        self._connections.drain()
        self._datagrams.drain()
        self._inward.drain()
        set_title(DRAINING_TITLE)
        self._end_if_done()

    def _end_if_done(self) -> None:
        wanted = self._channel is not None and not self._draining
        busy = (
            self._intakes
            or self._connections
            or self._datagrams
            or self._questions.unfinished
            or self._inward
        )
        if not (wanted or busy):
            self._loop.stop()
        elif not wanted and not self._looks:
            self._looks = True
            self._loop.call_later(DRAIN_CHECK, self._look)

    def _look(self) -> None:
        self._looks = False
        self._end_if_done()

    def _stop(self) -> None:
        self._connections.abort_all("stopped")
        self._inward.streams.abort_all("stopped")
        self._loop.stop()

    def _poll_intakes(self) -> None:
        for intake in self._intakes:
            intake.poll()
        self._inward.poll()
