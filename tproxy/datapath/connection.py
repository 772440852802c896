"""Connections of guests: dials the endpoint, passes bytes both ways, and ends each side as the other ends.

A connection owns two sockets: the guest's, which stays in its network namespace wherever the descriptor goes,
and the endpoint's. While the endpoint is dialled the guest's socket is not polled, and what the guest sends
waits in the kernel. After that, the poll interest of each socket follows from the states of the two
directions.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from tproxy.datapath.checking import Checks
from tproxy.datapath.counters import (
    CAUSES,
    DRAIN,
    HALF_CLOSED,
    IDLE,
    OPEN,
    TO_ENDPOINT,
    TO_GUEST,
    TOTAL,
    USER,
)
from tproxy.datapath.ended_lines import EndedLines
from tproxy.datapath.endpoints import Endpoints, State
from tproxy.datapath.flow import interest
from tproxy.datapath.limits import NO_LIMIT, Limits
from tproxy.datapath.racing import Race
from tproxy.datapath.splice import Mover, PipePool, SideLost
from tproxy.datapath.target import Target
from tproxy.datapath.this_host import ThisHost, met_itself
from tproxy.kernel import tcp
from tproxy.kernel.loop import ERROR, HANGUP, PEER_CLOSED, READ, WRITE, Loop, Timer
from tproxy.log.file import Log
from tproxy.log.limit import LineLimit
from tproxy.model import DEFAULT_USER_TIMEOUT, Endpoint, Service

_TO_READ = READ | PEER_CLOSED | HANGUP | ERROR

# Seconds between two log lines of one limit or time-out, whatever guests do.
LIMIT_INTERVAL = 60.0

# Connections that a sweep looks at before others have their turn: some tenths of a millisecond.
SWEPT_AT_ONCE = 500

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
# Errors of a dial that are the endpoint's, or the way's to it. Others, such as no free port, are this host's.
_OF_ENDPOINT = _UNREACHABLE | {errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EACCES, errno.EPERM}


def dial_failure(number: int) -> str:
    """Return in a few words why an endpoint could not be reached; ``number`` is an errno."""
    if number == errno.ECONNREFUSED:
        return "refused"
    if number == errno.ETIMEDOUT:
        return "timed out"
    if number in _UNREACHABLE:
        return "unreachable"
    return os.strerror(number)


class Connection:
    """One connection of a guest, from accepted to ended. ``Connections`` makes and keeps it.

    ``peer`` is the guest's address and port. ``deadline`` is the end of the connect timeout by
    time.monotonic(), and 0 when the endpoint is not being dialled. ``silent_since`` is when a sweep found
    ``seen`` bytes, the number that had been moved by then. ``dialed`` is the endpoint that is dialled, or was
    dialled last. ``race`` has the dials while one of several endpoints is looked for.

    Both sockets have SO_LINGER 0 until the last byte was sent to them (splice.py), so the death of this
    process is a reset at both ends, and no end of file that looks like a normal one.
    """

    __slots__ = (
        "_endpoint",
        "_endpoint_mask",
        "_guest",
        "_guest_mask",
        "_keeper",
        "deadline",
        "dialed",
        "peer",
        "race",
        "seen",
        "silent_since",
        "started",
        "target",
        "to_endpoint",
        "to_guest",
    )

    def __init__(
        self, keeper: Connections, target: Target, guest: socket.SocketType, peer: tuple[str, int]
    ) -> None:
        self._keeper = keeper
        self.target = target
        self.peer = peer
        self.started = self.silent_since = time.monotonic()
        self.seen = 0
        self.deadline = 0.0
        self.race: Race | None = None
        service = target.service
        if service.endpoints:
            self.dialed, *others = keeper.in_order(service)
            if others:
                self.race = Race(self, keeper, others)
        else:
            self.dialed = service.endpoint  # a reload may change the target's endpoint
        self._guest = guest
        self._endpoint = tcp.dialling_socket(self.dialed.address)
        self.to_endpoint = Mover(guest, self._endpoint, near=True)
        self.to_guest = Mover(self._endpoint, guest, near=keeper.host.has(self.dialed.address))
        self._guest_mask = self._endpoint_mask = 0  # not polled yet

    @property
    def dialing(self) -> bool:
        return self.deadline > 0

    @property
    def endpoint_socket(self) -> socket.SocketType:
        """The endpoint's side; the newest dial while there are several."""
        return self._endpoint

    @property
    def guest_name(self) -> str:
        return f"{self.peer[0]}:{self.peer[1]}"

    def dial(self) -> None:
        """Begin to connect to the endpoint. If that fails at once, end the connection."""
        self._set_options(self._endpoint, near=self.to_guest.near)
        if (timeout := self.target.service.user_timeout) != DEFAULT_USER_TIMEOUT:
            tcp.set_user_timeout(self._guest, timeout)
        # Most guests have sent their request by now. Then the last packet of the handshake can carry it,
        # which saves a packet and a wake-up of the endpoint.
        try:
            self.to_endpoint.read_ahead()
        except SideLost as lost:
            self._lost(lost)
            return
        if self.race is not None:
            self.deadline = self.started + self.target.service.connect_timeout
            self.race.begin()
            return
        if number := self.connect(self._endpoint, self.dialed):
            self._only_failed(number)
            return
        if self.to_endpoint.held:
            # The handshake with an endpoint on this host is over by now, although connect(2) said
            # EINPROGRESS.
            try:
                if self.to_endpoint.send_ahead():
                    self._keeper.answered(self.dialed)
                    self._poll()
                    return
            except SideLost as lost:
                self._only_failed(lost.errno)
                return
        self.deadline = self.started + self.target.service.connect_timeout
        self._keeper.loop.add(self._endpoint.fileno(), WRITE, self)
        self._endpoint_mask = WRITE

    def new_socket(self, endpoint: Endpoint) -> socket.SocketType:
        """Return a socket that can dial an endpoint. Raises OSError."""
        sock = tcp.dialling_socket(endpoint.address)
        self._set_options(sock, near=self._keeper.host.has(endpoint.address))
        return sock

    def _set_options(self, sock: socket.SocketType, *, near: bool) -> None:
        tcp.set_options(sock, near=near)
        tcp.reset_on_close(sock)
        if (timeout := self.target.service.user_timeout) != DEFAULT_USER_TIMEOUT:
            tcp.set_user_timeout(sock, timeout)

    def connect(self, sock: socket.SocketType, endpoint: Endpoint) -> int:
        """Begin to connect; return 0, or the errno if that failed at once."""
        if self.to_endpoint.held:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        return self._keeper.connect(sock, endpoint)

    def use(self, sock: socket.SocketType, endpoint: Endpoint) -> None:
        """Have this socket, which dials the endpoint, for the endpoint's side. Nothing was sent yet."""
        if sock is self._endpoint:
            return
        self._keeper.limits.move(self.dialed, endpoint)
        self.dialed = endpoint
        self._endpoint = self.to_endpoint.destination = self.to_guest.source = sock
        self.to_guest.near = self._keeper.host.has(endpoint.address)

    def count(self) -> None:
        """Add the bytes that were moved since the last time to the counts of the target."""
        counts, up, down = self.target.counts, self.to_endpoint, self.to_guest
        counts[TO_ENDPOINT] += up.moved - up.counted
        counts[TO_GUEST] += down.moved - down.counted
        up.counted, down.counted = up.moved, down.moved

    def on_event(self, fd: int, mask: int) -> None:
        """Handle one epoll event of a socket of this connection."""
        if self.deadline:
            if self.race is not None:
                self.race.on_event(fd, mask)
            else:
                self.on_dialed(mask)
            return
        if fd == self._guest.fileno():
            reading, writing, side = self.to_endpoint, self.to_guest, self._guest
        else:
            reading, writing, side = self.to_guest, self.to_endpoint, self._endpoint
        try:
            pipes = self._keeper.pipes
            if mask == READ:
                if reading.pass_on(pipes):
                    return
                reading.pump(pipes, False)
            else:
                if mask & ERROR:
                    # Bytes that came before the reset can still be read, and the error comes after them.
                    if not reading.wants_read:
                        raise SideLost(side, side.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                elif mask & WRITE and writing.held:
                    writing.pump(pipes, False)
                if mask & _TO_READ and reading.wants_read:
                    reading.pump(pipes, mask & PEER_CLOSED != 0)
        except SideLost as lost:
            self._lost(lost)
            return
        if reading.fin_sent and writing.fin_sent:
            self._end("finished")
        else:
            self._poll()

    def expire(self) -> None:
        """End the connection, unless the endpoint has answered by now."""
        if self.race is not None:
            self.race.expire()
            return
        look = select.poll()
        look.register(self._endpoint, select.POLLOUT)
        # If this process was stopped, the loop may not have seen yet that the endpoint answered in time.
        if not look.poll(0):
            self._only_failed(errno.ETIMEDOUT)

    def sweep(self, now: float, draining_since: float | None) -> None:
        """End the connection if it was silent for too long, or is in a worker that finishes for too long."""
        service = self.target.service
        draining = now - draining_since if draining_since is not None else 0.0
        if 0 < service.drain_timeout <= draining:
            self._limit(DRAIN)
            return
        up, down = self.to_endpoint, self.to_guest
        moved = up.moved + down.moved
        if moved != self.seen or self.deadline:
            self.seen = moved
            self.silent_since = now
            return
        silent = now - self.silent_since
        if (up.ended or down.ended) and 0 < service.half_closed_timeout <= silent:
            self._limit(HALF_CLOSED)
        elif 0 < service.idle_timeout <= silent:
            self._limit(IDLE)

    def _limit(self, cause: int) -> None:
        self._keeper.limited(self.target, cause)
        self.abort(CAUSES[cause])

    def abort(self, how: str) -> None:
        """End both sides with a reset."""
        for side in (self._guest, self._endpoint):
            tcp.reset_on_close(side)
        self._end(how)

    def on_dialed(self, mask: int) -> None:
        """Handle the first epoll event of the endpoint's socket: it is connected, or has failed."""
        if mask & (ERROR | HANGUP):
            number = self._endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number in (errno.ECONNRESET, errno.EPIPE):  # it was connected, and may have sent bytes
                self.was_reset(number)
            else:
                self._only_failed(number)
            return
        self.deadline = 0.0
        self._endpoint_mask = WRITE
        self._keeper.dialed(self)
        try:
            if self.to_endpoint.held or self.to_endpoint.ended:
                self.to_endpoint.pump(self._keeper.pipes, False)
        except SideLost as lost:
            self._lost(lost)
            return
        self._poll()

    def was_reset(self, number: int) -> None:
        """End the connection, because the endpoint accepted it, and then reset it."""
        self._keeper.answered(self.dialed)
        self._lost(SideLost(self._endpoint, number))

    def _only_failed(self, number: int) -> None:
        """End the connection, because the only endpoint failed."""
        self._keeper.dial_failed(self.dialed, number)
        self.dial_failed(number)

    def dial_failed(self, number: int) -> None:
        """End the connection, because no endpoint answers."""
        how = dial_failure(number)
        self.target.failed(f"endpoint {self.dialed} {how}")
        self.abort(how)

    def _lost(self, lost: SideLost) -> None:
        who = "guest" if lost.side is self._guest else "endpoint"
        if lost.errno in (errno.ECONNRESET, errno.EPIPE):
            how = f"reset by {who}"
        else:
            how = f"{who} lost: {os.strerror(lost.errno)}"
            if lost.errno == errno.ETIMEDOUT:
                self._keeper.limited(self.target, USER)
        if who == "endpoint":
            self.target.failed(f"endpoint {self.dialed}: {how}")
        # The bytes that the lost side sent before can still be read, even if a write met the error. The
        # kernel reports the error once, so now it reports the end of file after these bytes. The other side
        # must get a reset and no FIN.
        last = self.to_endpoint if who == "guest" else self.to_guest
        last.fin_sent = True
        with suppress(SideLost):
            last.pump(self._keeper.pipes, False)
        self.abort(how)

    def _poll(self) -> None:
        """Bring the poll interest in line with the state: no system call while it stays the same."""
        mask = interest(self.to_endpoint, self.to_guest)
        if mask != self._guest_mask:
            self._repoll(self._guest.fileno(), self._guest_mask, mask)
            self._guest_mask = mask
        mask = interest(self.to_guest, self.to_endpoint)
        if mask != self._endpoint_mask:
            self._repoll(self._endpoint.fileno(), self._endpoint_mask, mask)
            self._endpoint_mask = mask

    def _repoll(self, fd: int, before: int, after: int) -> None:
        if before:
            self._keeper.loop.modify(fd, after)
        else:
            self._keeper.loop.add(fd, after, self)

    def _end(self, how: str) -> None:
        keeper = self._keeper
        if self.race is not None:
            self.race.close()
        self.to_endpoint.release(keeper.pipes)
        self.to_guest.release(keeper.pipes)
        keeper.loop.close_later(self._guest, shared=True)
        keeper.loop.close_later(self._endpoint)
        keeper.ended(self)
        keeper.lines.write(self, how)


class Connections:
    """All connections of the process, and what they share."""

    # A connect timeout may be noticed so many seconds late.
    TICK = 0.1

    def __init__(self, loop: Loop, log: Log, room: int = NO_LIMIT) -> None:
        """``room`` is how many connections the descriptors allow."""
        self.loop = loop
        self.limits = Limits(room)
        self.pipes = PipePool()
        self.host = ThisHost()
        self.lines = EndedLines(loop, log)
        self.health = Endpoints(self._changed)
        self.checks = Checks(loop, self.health, self.connect, self.dial_failed)
        # Called with an endpoint and what is known of it, when that has changed; None: it is in no service.
        self.report: Callable[[Endpoint, State | None], None] = lambda endpoint, state: None
        self._services: dict[str, Sequence[Service]] = {}
        self._log = log
        self._warnings = [LineLimit(1, LIMIT_INTERVAL) for _ in CAUSES]
        self._open: set[Connection] = set()
        self._sweep_timer: Timer | None = None
        self._draining_since: float | None = None
        # In the order of dialling, and not of deadlines: each target has its own timeout.
        self._dialing: dict[Connection, None] = {}
        self._ticking = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._open)

    def accept(self, target: Target, guest: socket.SocketType, peer: tuple[str, int]) -> None:
        """Take over a guest's socket, and dial the target's endpoint. ``peer`` is as in ``Connection``."""
        target.counts[TOTAL] += 1
        if refusal := self.limits.refusal(target, peer[0]):
            self._refuse(target, guest, peer, *refusal)
            return
        try:
            connection = Connection(self, target, guest, peer)
        except OSError as error:
            target.failed(f"no socket for the endpoint: {error.strerror}")
            tcp.reset_on_close(guest)
            guest.close()
            return
        target.counts[OPEN] += 1
        self._open.add(connection)
        self.limits.add(target, peer[0], connection.dialed)
        if self._sweep_timer is None:
            self._sweep_later()
        connection.dial()
        if connection.dialing:
            self._dialing[connection] = None
            self._tick()

    def dialed(self, connection: Connection) -> None:
        """Note that a connection is no longer being dialled."""
        del self._dialing[connection]
        self.answered(connection.dialed)

    def connect(self, sock: socket.SocketType, endpoint: Endpoint) -> int:
        """Begin to connect; return 0, or the errno if that failed at once."""
        number = sock.connect_ex((endpoint.address, endpoint.port))
        if number not in (0, errno.EINPROGRESS):
            return number
        # The kernel has chosen the socket's own address and port by now, whatever it says of the handshake.
        if (
            self.host.has(endpoint.address)
            and self.host.chooses(endpoint.port)
            and met_itself(sock.getsockname(), endpoint)
        ):
            return errno.ECONNREFUSED
        return 0

    def in_order(self, service: Service) -> list[Endpoint]:
        """Return the endpoints of a service that may have one more connection, the one to try first first."""
        open_, most = self.limits.to_endpoints, self.limits.most_to_endpoint(service)
        candidates = self.health.candidates(service)
        order = self.health.order(candidates, service.spread, open_)
        return [each for each in order if open_.get(each, 0) < most] or order

    def answered(self, endpoint: Endpoint) -> None:
        """Note that an endpoint has accepted a connection."""
        if endpoint not in self.health.good:
            self.health.answered(endpoint, time.monotonic())

    def dial_failed(self, endpoint: Endpoint, number: int) -> None:
        """Note that a dial failed, if that says something of the endpoint and not of this host."""
        if number in _OF_ENDPOINT:
            self.health.fail(endpoint, dial_failure(number), time.monotonic())

    def ended(self, connection: Connection) -> None:
        """Note that a connection has ended, and add its bytes to the counts of its target."""
        connection.target.counts[OPEN] -= 1
        self.limits.remove(connection.target, connection.peer[0], connection.dialed)
        connection.count()
        self._dialing.pop(connection, None)
        self._open.discard(connection)

    def abort_bridge(self, bridge: str, how: str) -> None:
        """Reset all connections whose target has the label ``bridge``."""
        for connection in [each for each in self._open if each.target.bridge == bridge]:
            connection.abort(how)

    def abort_all(self, how: str) -> None:
        """Reset all connections."""
        for connection in list(self._open):
            connection.abort(how)

    def count_open(self) -> None:
        """Add the bytes of connections that are still open to the counts of their targets, as of now."""
        for connection in self._open:
            connection.count()

    def serve(self, bridge: str, services: Sequence[Service]) -> None:
        """Take over the limits of a bridge's services as they are now."""
        before = self.limits.sweep
        self.limits.serve(bridge, services)
        self._services[bridge] = services
        self._keep_health()
        if self.limits.sweep < before and self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_later()

    def drain(self) -> None:
        """Note that from now on the connections only have their ``drain_timeout``."""
        self.checks.stop()
        if self._draining_since is None:
            self._draining_since = time.monotonic()

    def limited(self, target: Target, cause: int, why: str = "") -> None:
        """Count a connection that a limit or a time-out refused or ended, and log it now and then."""
        target.limited[cause] = (target.limited[cause] + 1) & 0xFFFFFFFF
        warnings = self._warnings[cause]
        if warnings.allows(time.monotonic()):
            self._log.warning(
                "bridge=%s port=%d connection reset by %s%s%s",
                target.bridge,
                target.service.port,
                CAUSES[cause],
                why,
                warnings.suffix(),
            )

    def _keep_health(self) -> None:
        services = [each for services in self._services.values() for each in services]
        several = {each for service in services if service.endpoints for each in service.candidates}
        for endpoint in self.health.keep({each.endpoint for each in services}, several):
            self.report(endpoint, None)
        self.checks.plan()

    def _changed(self, endpoint: Endpoint, state: State) -> None:
        self.report(endpoint, state)
        if self.health.has_others(endpoint):
            if state.failed:
                self._log.warning("endpoint %s has failed: %s", endpoint, state.why)
            else:
                self._log.info("endpoint %s answers", endpoint)
            self.checks.plan()

    def _refuse(
        self, target: Target, guest: socket.SocketType, peer: tuple[str, int], cause: int, number: int
    ) -> None:
        self.limited(target, cause, f": guest={peer[0]}, {number} are open")
        tcp.reset_on_close(guest)
        guest.close()

    def _sweep_later(self) -> None:
        self._sweep_timer = self.loop.call_later(self.limits.sweep, lambda: self._sweep([*self._open]))

    def _sweep(self, left: list[Connection]) -> None:
        """Look at each connection once, a few at a time, so that nobody waits for that."""
        now = time.monotonic()
        for connection in left[-SWEPT_AT_ONCE:]:
            if connection in self._open:
                connection.sweep(now, self._draining_since)
        del left[-SWEPT_AT_ONCE:]
        if left:
            self._sweep_timer = self.loop.call_later(0, lambda: self._sweep(left))
        elif self._open:
            self._sweep_later()
        else:
            self._sweep_timer = None

    def _tick(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.loop.call_later(self.TICK, self._expire)

    def _expire(self) -> None:
        self._ticking = False
        now = time.monotonic()
        for connection in [each for each in self._dialing if each.deadline <= now]:
            connection.expire()
        if self._dialing:
            self._tick()
