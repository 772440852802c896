"""All connections of a worker, and what they share: limits, time-outs, pipes, and the state of endpoints."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from tproxy.datapath.connection import Connection
from tproxy.datapath.counts import CAUSES, DIAL_FAILED, LIMITED, LOCAL, OPEN, TOTAL
from tproxy.datapath.dial_errors import OF_ENDPOINT, dial_failure
from tproxy.datapath.ended_lines import EndedLines
from tproxy.datapath.endpoints import Endpoints, State
from tproxy.datapath.introduction import Introductions
from tproxy.datapath.limits import NO_LIMIT, Limits
from tproxy.datapath.splice import PipePool
from tproxy.datapath.stream_checks import StreamChecks
from tproxy.datapath.target import Target
from tproxy.datapath.this_host import ThisHost, met_itself
from tproxy.datapath.tracing import Tracing, Trail
from tproxy.datapath.unix_dials import UnixDials
from tproxy.datapath.waiting import Waiting
from tproxy.kernel import tcp
from tproxy.kernel.loop import Loop, Timer
from tproxy.log.file import Log
from tproxy.log.limit import LineLimit
from tproxy.model import Endpoint, Service

# Seconds between two log lines of one limit or time-out, whatever guests do.
LIMIT_INTERVAL = 60.0

# Connections that a sweep looks at before others have their turn: some tenths of a millisecond.
SWEPT_AT_ONCE = 500

# Connections whose bytes are counted before others have their turn: likewise.
COUNTED_AT_ONCE = 500


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
        self.introductions = Introductions()
        self.tracing = Tracing(self.introductions.neighbours)
        self.trails: dict[Connection, Trail] = {}  # of connections that a trace follows
        self.waiting = Waiting(loop, self.introductions, self)
        self._number = 0
        self.health = Endpoints(self._changed)
        self.dials = UnixDials(loop)
        self.checks = StreamChecks(loop, self.health, self.connect, self.dials, self.dial_failed)
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
        """All whose descriptors are held, also those that wait."""
        return len(self._open) + len(self.waiting)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def accept(
        self,
        target: Target,
        guest: socket.SocketType,
        peer: tuple[str, int],
        mac: str | None = None,
        since: float | None = None,
    ) -> None:
        """Take over a guest's socket, and dial the target's endpoint; the rest is as in ``Connection``."""
        target.counts[TOTAL] += 1
        trail = self.tracing.trail(target, peer, guest) if self.tracing.active else None
        if refusal := self.limits.refusal(target, peer[0]):
            self._refuse(target, guest, peer, *refusal, trail)
            return
        try:
            connection = Connection(self, target, guest, peer, mac, since)
        except OSError as error:
            target.failed(f"no socket for the endpoint: {error.strerror}")
            target.record.dial_failed(LOCAL)
            target.record.never_began(DIAL_FAILED)
            if trail is not None:
                trail.tell(
                    "limited", cause="this host", why=f": no socket for the endpoint: {error.strerror}"
                )
            tcp.reset_on_close(guest)
            guest.close()
            return
        target.counts[OPEN] += 1
        self._open.add(connection)
        self.limits.add(target, peer[0], connection.dialed)
        if trail is not None:
            self.trails[connection] = trail
            trail.id = connection.id
            trail.tell("taken")
        if self._sweep_timer is None:
            self._sweep_later()
        connection.dial()
        if connection.dialing:
            self._dialing[connection] = None
            self._tick()

    def next_number(self) -> int:
        """Return the number of a new connection."""
        self._number += 1
        return self._number

    def dialed(self, connection: Connection) -> None:
        """Note that a connection is no longer being dialled."""
        del self._dialing[connection]
        self.answered_by(connection)

    def answered_by(self, connection: Connection) -> None:
        """Note that the endpoint of a connection has accepted it just now."""
        connection.target.record.connected(time.monotonic() - connection.started)
        self.tell(connection, "connected", endpoint=connection.dialed)
        self.answered(connection.dialed)

    def connect(self, sock: socket.SocketType, endpoint: Endpoint) -> int:
        """Begin to connect; return 0, or the errno if that failed at once."""
        number = self.host.local_ports.connect(sock, (endpoint.address, endpoint.port))
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
        if number in OF_ENDPOINT:
            self.health.fail(endpoint, dial_failure(number), time.monotonic())

    def ended(self, connection: Connection, outcome: int) -> None:
        """Note that a connection has ended, and add its bytes to the counts of its target."""
        connection.target.counts[OPEN] -= 1
        connection.target.record.ended(outcome, time.monotonic() - connection.started)
        self.limits.remove(connection.target, connection.peer[0], connection.dialed)
        connection.count()
        self._dialing.pop(connection, None)
        self._open.discard(connection)

    def tell(self, connection: Connection, what: str, **more: object) -> None:
        """Tell what happened to a connection, if a trace follows it; "ended" is the last."""
        if self.trails and (trail := self.trails.get(connection)) is not None:
            trail.tell(what, **more)
            if what == "ended":
                del self.trails[connection]

    def abort_bridge(self, bridge: str, how: str) -> None:
        """Reset all connections whose target has the label ``bridge``."""
        self.waiting.reset(bridge)
        for connection in [each for each in self._open if each.target.bridge == bridge]:
            connection.abort(how)

    def withdraw(self, bridge: str, addresses: Collection[str]) -> None:
        """Reset connections at all other addresses: the bridge has these service addresses alone.

        Their guests would get no answer any more, and no reset once the address is gone from the namespace.
        """
        self.waiting.withdraw(bridge, addresses)
        for connection in [each for each in self._open if each.target.bridge == bridge]:
            if connection.service_address not in addresses:
                connection.abort("address removed")

    def abort_all(self, how: str) -> None:
        """Reset all connections."""
        self.waiting.reset_all()
        for connection in list(self._open):
            connection.abort(how)

    def count_open(self, then: Callable[[], None]) -> None:
        """Add the bytes of open connections to the counts of their targets, and call ``then`` at the end.

        A few at a time, so that nobody waits for that. All are counted later than this call.
        """
        self._count_some([*self._open], then)

    def _count_some(self, left: list[Connection], then: Callable[[], None]) -> None:
        for connection in left[-COUNTED_AT_ONCE:]:
            if connection in self._open:  # otherwise it was counted when it ended
                connection.count()
        del left[-COUNTED_AT_ONCE:]
        if left:
            self.loop.call_later(0, lambda: self._count_some(left, then))
        else:
            then()

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

    def limited(self, target: Target, cause: int, why: str = "", guest: str = "") -> None:
        """Count a connection that a limit or a time-out refused or ended, and log it now and then."""
        target.limited[cause] = (target.limited[cause] + 1) & 0xFFFFFFFF
        warnings = self._warnings[cause]
        if warnings.allows(time.monotonic()):
            self._log.warning(
                "bridge=%s port=%s connection reset by %s%s%s",
                target.bridge,
                target.service.key.in_words,
                CAUSES[cause],
                why,
                warnings.suffix(),
                fields={**target.fields, "limit": CAUSES[cause], **({"guest": guest} if guest else {})},
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
        self,
        target: Target,
        guest: socket.SocketType,
        peer: tuple[str, int],
        cause: int,
        number: int,
        trail: Trail | None,
    ) -> None:
        if trail is not None:
            trail.tell("limited", cause=CAUSES[cause], why=f": {number} are open")
        self.limited(target, cause, f": guest={peer[0]}, {number} are open", peer[0])
        target.record.never_began(LIMITED)
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
