"""All workers: starts them, tells them what to serve, replaces those that end, and finds earlier ones.

Theory of operation. A worker has a place, a number from 0 on. For each bridge there is a data channel to each
place (``data_channels``). When a worker ends, the next one in its place gets the copies of its ends, and with
them the sockets that were passed on and not received. Relays notice nothing.

Every worker is told everything: settings, services of all bridges, channels. Each has a meeting point, a
socket in the run directory. There a daemon finds the workers of the daemon before it. It makes new data
channels for them; the old ones end when relays let them go.

A datagram does not say whose session it belongs to. So all UDP sockets of a bridge are with one worker, whose
place follows from the bridge's name (``_owner``).
"""

from __future__ import annotations

import logging
import os
import socket
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

from tproxy.daemon.client import Json
from tproxy.daemon.data_channels import DataChannels
from tproxy.daemon.spawner import Order, Spawner
from tproxy.daemon.unix_dialing import UnixDialing
from tproxy.daemon.worker_link import Key, WorkerLink
from tproxy.datapath.counts import STOPPED, WORKER_LOST, Counts, EndpointState, LoopTimes
from tproxy.datapath.this_host import chosen_ports
from tproxy.kernel.loop import Loop, Timer
from tproxy.log import output
from tproxy.log.file import open_log
from tproxy.model import Service, ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import pair, send_bytes
from tproxy.worker import orders, packing

log = logging.getLogger(__name__)

# The workers that `auto` means at most.
AUTO_MOST = 4

# Seconds until the next attempt to start a worker that ended young; doubled with each failure.
RETRY_FIRST, RETRY_MOST = 0.1, 5.0

# Seconds. A worker that lived this long has not failed at starting; the next one is started at once.
SETTLED = 1.0

# The folder of the meeting points, in the run directory.
FOLDER = "workers"


def wanted_workers(setting: int | None) -> int:
    """Return how many workers there should be; the setting 0 or None means one for each core, at most 4."""
    return setting or min(len(os.sched_getaffinity(0)), AUTO_MOST)


class Workers:
    """The workers in their places, and those that only finish their connections.

    ``changed`` is called whenever ``settled`` may have a new answer, and ``regroup`` when relays need other
    data channels.
    """

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        directory: str,
        changed: Callable[[], None],
        regroup: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._spawner = spawner
        self._folder = f"{directory}/{FOLDER}"
        self.changed = changed
        self._regroup = regroup
        self._count = 0
        self.max_connections = 0  # in all workers; 0: as their descriptors allow
        self._places: list[WorkerLink | None] = []
        self._draining: set[WorkerLink] = set()
        self._retries: dict[int, tuple[float, Timer]] = {}  # delay and timer by place
        self._services: dict[str, Sequence[Service]] = {}
        self.dialing = UnixDialing(loop, self._services)
        # What a worker is told of a bridge before its services.
        self.preface: Callable[[str], Iterable[orders.Message]] = lambda _: ()
        # All keys that guests of a bridge reach.
        self.listeners: Callable[[str], Collection[ServiceKey]] = self._plain_listeners
        # Returns a socket for ``orders.Neighbours``, which is the caller's.
        self.open_table: Callable[[str], socket.socket | None] = lambda _: None
        self._complete = False  # whether all bridges that have services are in ``_services``
        self._channels = DataChannels()
        self._ended: dict[Key, Counts] = {}  # of workers that have ended
        self._gates: dict[str, dict[ServiceKey, socket.socket]] = {}  # bound UDP sockets by bridge
        # Called with a bridge, a key and seconds, as ``orders.Unreachable`` has them.
        self.refuse: Callable[[str, ServiceKey, float], None] = lambda bridge, key, seconds: None
        self._inlet: socket.socket | None = None  # for streams from outside; not ours to close
        # Called with a socket that a worker of an earlier daemon hands over, and with ``orders.Absent``.
        self.take_inlet: Callable[[socket.socket], None] = lambda listener: listener.close()
        self.note_absent: Callable[[str, int], None] = lambda bridge, number: None
        self._ended_loops = LoopTimes()
        self.restarts = 0

    # What is wanted

    def keep(self, count: int, *, replace: bool = False) -> None:
        """Have so many workers. Those of an earlier daemon go on; ``replace``: they only finish."""
        if count == self._count:
            return
        self._count = count
        if not self._places:
            self._adopt(replace=replace)
        for place in range(count, len(self._places)):
            self._finish(place, counted=True)
        del self._places[count:]
        for place in range(len(self._places), count):
            self._places.append(None)
            self._start(place)
        self._regroup()
        for bridge in self._gates:  # the owner may be another one
            for worker in self._present():
                if worker is not self._owner(bridge):
                    worker.tell(orders.LetGo(bridge))
            self._tell_gates(bridge)

    def take_gate(self, bridge: str, key: ServiceKey, bound: socket.socket) -> None:
        """Have guests' datagrams at a bound socket, which stays the caller's, read by a worker."""
        gates = self._gates.setdefault(bridge, {})
        before = gates.get(key)
        gates[key] = bound.dup()
        if before is not None:
            before.close()
        self._tell_gates(bridge, [key])

    def use_inlet(self, listener: socket.socket | None) -> None:
        """Have streams from outside accepted at a socket, which stays the caller's; None: have none."""
        self._inlet = listener
        for worker in self._present():
            worker.tell(orders.Inlet(), *([listener.fileno()] if listener else []))

    def serve(self, bridge: str, services: Sequence[Service]) -> None:
        """Serve the bridge as these services say."""
        before = self._services.get(bridge)
        self._services[bridge] = services
        keys = self.listeners(bridge)
        self._drop_gates(bridge, [key for key in self._gates.get(bridge, ()) if key not in keys])
        if before != services:
            for worker in self._present():
                self._tell_services(worker, bridge)
            self._ended = {
                key: counts
                for key, counts in self._ended.items()
                if key[0] != bridge or any(each.key == key[1] for each in services)
            }

    def forget(self, bridge: str) -> None:
        """Serve the bridge no more; its connections end."""
        if self._services.pop(bridge, None) is not None:
            for worker in (*self._present(), *self._draining):
                worker.tell(orders.Forget(bridge))
        self._channels.let_go(bridge)
        self._drop_gates(bridge, [*self._gates.get(bridge, ())])
        self._ended = {key: counts for key, counts in self._ended.items() if key[0] != bridge}

    def abort(self, bridge: str) -> None:
        """End the bridge's connections: its namespace is gone, or another one. It is served as before."""
        self._channels.let_go(bridge)
        self._drop_gates(bridge, [*self._gates.get(bridge, ())])
        for worker in self._present():
            self._keep_counts(worker, bridge, outcome=STOPPED)
        for worker in (*self._present(), *self._draining):
            worker.tell(orders.Forget(bridge))
        if bridge in self._services:
            for worker in self._present():
                self._tell_services(worker, bridge)

    def complete(self) -> None:
        """Note that every bridge with services was told: workers of an earlier daemon may serve others."""
        self._complete = self.dialing.complete = True
        for worker in (*self._present(), *self._draining):
            self._forget_unknown(worker)

    def channels(self, bridge: str, cookie: int | None) -> list[socket.socket]:
        """Return a new data channel to each worker, as ``DataChannels.make``; they are the caller's."""
        if not self._count:  # a successor has other workers
            self._channels.let_go(bridge)
            return []
        ours = self._channels.make(bridge, cookie, self._count)
        for worker, end in zip(self._places, self._channels.of_bridge(bridge), strict=True):
            if worker is not None:
                worker.tell(orders.Bridge(bridge, cookie), end)
                self._give_table(worker, bridge)
        return ours

    def deliver(self, bridge: str, cookie: int | None, message: wire.Accepted, fds: list[int]) -> None:
        """Pass on the guests that a relay of version 1 has accepted."""
        near, far = pair()
        with near, far:
            worker = next(iter(self._present()), None)
            if worker is not None:
                worker.tell(orders.Bridge(bridge, cookie), far.fileno())
                send_bytes(near, wire.encode(message), fds)

    def let_go(self, bridge: str) -> None:
        """Have no data channels for a bridge whose relay is gone."""
        self._channels.let_go(bridge)

    def behind(self, position: int, bridge: str) -> None:
        """Look after a worker that takes no sockets, as the relay of ``bridge`` says."""
        place = self._channels.place(bridge, position)
        worker = self._places[place] if place is not None and place < self._count else None
        if worker is not None:
            worker.sync()

    def set(self) -> None:
        """Tell the settings as they are now, and look which addresses are this host's."""
        for worker in (*self._present(), *self._draining):
            worker.tell(self._settings())

    def sync(self, *, count: bool = False) -> None:
        for worker in self._counted():
            worker.sync(count=count)

    def reopen_logs(self) -> None:
        for worker in (*self._present(), *self._draining):
            self._give_log(worker)

    def meet_again(self) -> None:
        """Give all workers new meeting points: somebody removed the folder."""
        for worker in (*self._present(), *self._draining):
            meeting = self._new_meeting()
            try:
                with self._point(meeting) as point:
                    worker.tell(orders.Meeting(), point.fileno())
            except OSError as error:
                log.error("worker %d has no meeting point: %s", worker.pid, error.strerror)
            else:
                worker.meeting = meeting

    def drain(self) -> None:
        """Let all workers finish what they have: a successor of this daemon starts others."""
        self._count = 0  # those that end now are not replaced
        for worker in self._present():
            worker.tell(orders.Drain())

    # Questions

    @property
    def expects_words(self) -> bool:
        """Whether a worker of an earlier daemon has not said yet what it is and has."""
        return any(worker.adopted and not worker.ready for worker in (*self._present(), *self._draining))

    @property
    def settled(self) -> bool:
        """Whether all that the workers were told has taken effect, except by those that do not run."""
        return all(worker.settled for worker in self._counted())

    def counts(self) -> dict[Key, Counts]:
        """Return the counts of each service."""
        sums = dict(self._ended)
        for worker in self._counted():
            for key, counts in worker.read()[1].items():
                sums[key] = sums.get(key, Counts()).plus(counts)
        return sums

    def ended_counts(self) -> dict[Key, Counts]:
        """Return the counts of workers that have ended."""
        return self._ended

    def ended_loops(self) -> LoopTimes:
        """Return how long the turns of the event loops of these took."""
        return self._ended_loops

    def memories(self) -> list[int]:
        """Return a read-only descriptor of the counters of each worker that counts; they stay ours."""
        return [worker.counters for worker in self._counted() if worker.counters >= 0]

    def everyone(self) -> list[WorkerLink]:
        """Return all workers, also those that only finish, and those of daemons before this one."""
        return [*self._present(), *self._draining]

    def pids(self) -> list[tuple[int | None, int]]:
        """Return place and process id of each worker; None for the place of those that only finish."""
        placed = [(place, worker) for place, worker in enumerate(self._places) if worker is not None]
        found = [*placed, *((None, worker) for worker in self._draining)]
        return [(place, worker.pid) for place, worker in found if worker.pid]

    def states(self) -> dict[str, EndpointState]:
        """Return what workers know of endpoints, by address and port; of several words the latest."""
        found: dict[str, EndpointState] = {}
        for worker in self._present():
            for endpoint, state in worker.states().items():
                if endpoint not in found or found[endpoint].since < state.since:
                    found[endpoint] = state
        return found

    @property
    def open(self) -> int:
        """The open connections, without those from before a restart."""
        return sum(worker.read()[0] for worker in self._counted())

    def report(self) -> list[Json]:
        """Return what ``tproxy status`` shows of each worker."""
        return [worker.report() for worker in (*self._present(), *self._draining)]

    # What workers tell

    def greeted(self, worker: WorkerLink, version: int) -> None:
        if worker not in self._draining and (worker.draining or version != orders.VERSION):
            place = self._places.index(worker)
            self._finish(place)
            self._start(place)
            self._regroup()  # it must not go on to share the data channels of this place
        if self._complete:
            self._forget_unknown(worker)

    def cannot_reach(self, bridge: str, key: ServiceKey, seconds: float) -> None:
        if key in self.listeners(bridge):
            self.refuse(bridge, key, seconds)

    def found_inlet(self, listener: socket.socket) -> None:
        self.take_inlet(listener)

    def found_absent(self, bridge: str, number: int) -> None:
        self.note_absent(bridge, number)

    def ended(self, worker: WorkerLink, reason: str) -> None:
        worker.close()
        worker.remove_meeting()
        self._without(worker, reason)
        worker.forget_counts()

    def _without(self, worker: WorkerLink, reason: str) -> None:
        """Go on without a worker that has ended: keep its counts, and start another in its place."""
        if worker in self._draining:
            self._draining.discard(worker)
            if worker.counted:
                self._keep_counts(worker)
                self.changed()
            return
        if worker not in self._places:
            return
        place = self._places.index(worker)
        self._keep_counts(worker)
        self._places[place] = None
        self.restarts += 1
        if self._count:  # otherwise all of them finish, because a successor takes over
            log.warning("worker %d is lost: %s; starting another", worker.pid, reason)
            if time.monotonic() - worker.since >= SETTLED:
                self._retries.pop(place, None)
                self._start(place)
            else:
                self._start_later(place)
        self.changed()

    def _keep_counts(self, worker: WorkerLink, only: str = "", outcome: int = WORKER_LOST) -> None:
        """Add the counts of a worker that has ended, or lost one bridge, to those of the ones before it.

        ``outcome`` is that of the connections that were open.
        """
        if not only:
            self._ended_loops = self._ended_loops.plus(worker.loop())
        for (bridge, key), counts in worker.read()[1].items():
            served = only in ("", bridge) and self._services.get(bridge, ())
            if served and any(service.key == key for service in served):
                sums = self._ended.get((bridge, key), Counts())
                self._ended[bridge, key] = sums.plus(counts.of_lost_worker(outcome))

    # Starting and ending workers

    def _start(self, place: int) -> None:
        if place >= self._count or self._places[place] is not None:
            return  # the number of workers has changed since an attempt failed
        meeting = self._new_meeting()
        try:
            with self._point(meeting) as point:
                log_file = open_log(output.DAEMON_LOG)
                try:
                    order = Order("", replace=False, log_level=output.level())
                    channel = self._spawner.spawn(order, log_file, point.fileno())
                finally:
                    os.close(log_file)
        except OSError as error:
            log.error("cannot start a worker: %s", error.strerror)
            with suppress(OSError):
                os.unlink(meeting)
            self._start_later(place)
            return
        self._occupy(place, WorkerLink(self._loop, channel, meeting, self))

    def _new_meeting(self) -> str:
        return f"{self._folder}/{time.monotonic_ns()}"

    def _point(self, meeting: str) -> socket.socket:
        """Return a socket that is bound to this path, and on which nobody listens yet. Raises OSError."""
        with suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        point = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            point.bind(meeting)
        except OSError:
            point.close()
            raise
        return point

    def _start_later(self, place: int) -> None:
        previous = self._retries.get(place)
        delay = min(previous[0] * 2, RETRY_MOST) if previous else RETRY_FIRST
        self._retries[place] = delay, self._loop.call_later(delay, lambda: self._start(place))

    def _occupy(self, place: int, worker: WorkerLink) -> None:
        """Put a worker into a place, and tell it everything."""
        self._places[place] = worker
        worker.tell(self._settings())
        for bridge in self._services:
            self._tell_services(worker, bridge)
        for bridge, cookie, end in self._channels.of_place(place):
            worker.tell(orders.Bridge(bridge, cookie), end)
            self._give_table(worker, bridge)
        for bridge in self._gates:
            if self._owner(bridge) is worker:
                self._tell_gates(bridge)
        if self._inlet is not None:
            worker.tell(orders.Inlet(), self._inlet.fileno())
        worker.sync()

    def _finish(self, place: int, *, counted: bool = False) -> None:
        """Let the worker in this place finish; another one takes the place, if it is still wanted.

        ``counted``: status goes on to count its connections. Those from before a restart are not counted.
        """
        worker = self._places[place]
        self._places[place] = None
        if worker is not None:
            worker.tell(orders.Drain())
            worker.draining = True
            worker.counted = counted
            self._draining.add(worker)

    def _adopt(self, *, replace: bool) -> None:
        """Find the workers of the daemon before this one."""
        with suppress(OSError):
            for name in sorted(os.listdir(self._folder)):
                self._meet(f"{self._folder}/{name}", replace=replace)

    def _meet(self, meeting: str, *, replace: bool) -> None:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            channel.connect(meeting)
        except OSError:
            channel.close()
            with suppress(OSError):
                os.unlink(meeting)
            return
        worker = WorkerLink(self._loop, channel, meeting, self)
        worker.adopt()
        log.info("worker %d of the daemon before goes on", worker.pid)
        self._give_log(worker)  # logs may have been rotated while there was no daemon
        self._places.append(worker)
        self._occupy(len(self._places) - 1, worker)
        if replace:
            self._finish(len(self._places) - 1)
            self._places.pop()

    # Telling workers

    def _present(self) -> list[WorkerLink]:
        return [worker for worker in self._places if worker is not None]

    def _counted(self) -> list[WorkerLink]:
        return [*self._present(), *(worker for worker in self._draining if worker.counted)]

    def _plain_listeners(self, bridge: str) -> Collection[ServiceKey]:
        return {each.key.listener for each in self._services.get(bridge, ())}

    def _settings(self) -> orders.Settings:
        return orders.Settings(output.level(), self._count or 1, chosen_ports(), self.max_connections)

    def tell(self, message: orders.Message) -> None:
        """Tell all workers, also those that only finish."""
        for worker in (*self._present(), *self._draining):
            worker.tell(message)

    def _tell_services(self, worker: WorkerLink, bridge: str) -> None:
        for message in self.preface(bridge):
            worker.tell(message)
        parts = packing.parts(self._services[bridge])
        for number, part in enumerate(parts):
            worker.tell(orders.Services(bridge, number == 0, number == len(parts) - 1, part))

    def give_tables(self, bridge: str) -> None:
        """Give each worker a socket that tells which MAC an IPv6 address has on a bridge with IPv6."""
        for worker in self._present():
            self._give_table(worker, bridge)

    def _give_table(self, worker: WorkerLink, bridge: str) -> None:
        if (table := self.open_table(bridge)) is not None:
            with table:
                worker.tell(orders.Neighbours(bridge), table.fileno())

    def _owner(self, bridge: str) -> WorkerLink | None:
        """The worker that has the bridge's UDP sockets; None while there is none."""
        place = zlib.crc32(bridge.encode()) % (self._count or 1)
        return self._places[place] if place < len(self._places) else None

    def _tell_gates(self, bridge: str, keys: Iterable[ServiceKey] | None = None) -> None:
        worker, gates = self._owner(bridge), self._gates[bridge]
        if worker is not None and self._count:
            for key in gates if keys is None else keys:
                worker.tell(orders.Gate(bridge, key), gates[key].fileno())

    def _drop_gates(self, bridge: str, keys: Iterable[ServiceKey]) -> None:
        for key in keys:
            self._gates[bridge].pop(key).close()
        if not self._gates.get(bridge, True):
            del self._gates[bridge]

    def _give_log(self, worker: WorkerLink) -> None:
        fd = open_log(output.DAEMON_LOG)
        worker.tell(orders.LogFile(), fd)
        os.close(fd)

    def _forget_unknown(self, worker: WorkerLink) -> None:
        for bridge in {bridge for bridge, _ in worker.read()[1]} - set(self._services):
            worker.tell(orders.Forget(bridge))
