"""All UDP sessions of a worker: it reads guests' datagrams, opens a session for each guest port, and ends it.

Theory of operation. One worker has all UDP sockets of a bridge (``daemon.workers``), because datagrams do not
say whose session they belong to: whoever reads the socket must know all of them. A datagram from an address
and port that has no session opens one (``session``), at the first good endpoint of the service. A session
ends when it was silent for the service's idle time, when another one needs its room (``crowds``), or when all
endpoints have refused it.

Which service a datagram leads to is decided in ``waiting_datagrams``, and which endpoints are good in
``datagram_endpoints``.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from tproxy.datapath.counts import (
    CAUSES,
    DATAGRAMS_TO_ENDPOINT,
    DATAGRAMS_TO_GUEST,
    DIAL_FAILED,
    EVICTED,
    FINISHED,
    NETWORK,
    OPEN,
    OUTCOMES,
    STOPPED,
    TO_ENDPOINT,
    TO_GUEST,
    TOTAL,
    TOTAL_LIMIT,
)
from tproxy.datapath.crowds import Crowds
from tproxy.datapath.datagram_endpoints import DatagramEndpoints
from tproxy.datapath.dial_errors import dial_failure, dial_reason
from tproxy.datapath.ended_lines import EndedLines
from tproxy.datapath.introduction import Introductions
from tproxy.datapath.session import BUFFER, Gate, Session
from tproxy.datapath.target import Target
from tproxy.datapath.tracing import Tracing
from tproxy.datapath.waiting import Door, door_at, targets_of
from tproxy.datapath.waiting_datagrams import WaitingDatagrams
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.log.file import Log
from tproxy.log.limit import LineLimit
from tproxy.model import Endpoint, ServiceKey
from tproxy.proxy_protocol import DATAGRAM
from tproxy.typed import Any

# Datagrams that are read from one socket in a row, so that the others have their turn.
AT_ONCE = 64

# Seconds between two looks for sessions that are silent.
SWEEP = 1.0

# Seconds between two log lines of one limit, whatever guests do.
LIMIT_INTERVAL = 60.0

# The places of ``Session.moved`` in a target's counts.
_MOVED = (TO_ENDPOINT, TO_GUEST, DATAGRAMS_TO_ENDPOINT, DATAGRAMS_TO_GUEST)

_DONT_WAIT = int(socket.MSG_DONTWAIT)
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Datagrams:
    """The gates of a worker, and their sessions.

    ``number`` gives the numbers of sessions.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        room: int,
        introductions: Introductions,
        lines: EndedLines,
        number: Callable[[], int],
        tracing: Tracing,
    ) -> None:
        self.loop = loop
        self.tracing = tracing
        self.introductions = introductions
        self.next_number = number
        self.crowds = Crowds(room)
        self._log = log
        self._lines = lines
        self._doors: dict[str, Mapping[ServiceKey, Door]] = {}
        self._gates: dict[str, dict[ServiceKey, Gate]] = {}
        self._by_fd: dict[int, Gate] = {}
        self._warnings = [LineLimit(1, LIMIT_INTERVAL) for _ in CAUSES]
        self.endpoints = DatagramEndpoints(loop, log, self._gates)
        self._waiting = WaitingDatagrams(
            loop, log, self._warnings[NETWORK], introductions, tracing, self._deliver
        )
        self._timer: Timer | None = None
        self._draining_since: float | None = None

    def __len__(self) -> int:
        return self.crowds.total

    def __iter__(self) -> Iterator[Session]:
        for gates in self._gates.values():
            for gate in gates.values():
                yield from gate.sessions.values()

    def __contains__(self, session: Session) -> bool:
        return session.gate.sessions.get(session.guest) is session

    # What the daemon wants

    def serve(self, bridge: str, doors: Mapping[ServiceKey, Door]) -> None:
        """Take over a bridge's UDP services as they are now."""
        self._doors[bridge] = doors
        self.crowds.serve(bridge, [each.service for door in doors.values() for each in targets_of(door)])
        for key, gate in [*self._gates.get(bridge, {}).items()]:
            door = door_at(doors, key)
            if door is None:
                self._close(bridge, gate, "service removed")
                continue
            gate.door = door
            for target in {*targets_of(gate.door), *(each.target for each in gate.sessions.values())}:
                there = target in targets_of(gate.door)
                known = target.service.candidates if there else ()
                self._end_all(
                    gate, "endpoint removed" if there else "service removed", STOPPED, known, target
                )
        self._keep_endpoints()
        self.look()

    def look(self) -> None:
        """Look again at datagrams that wait: something new is known of the guests."""
        self._waiting.look()

    def take(self, bridge: str, key: ServiceKey, sock: socket.SocketType) -> None:
        """Read guests' datagrams from this socket, which is this object's from now on."""
        door = door_at(self._doors.get(bridge, {}), key)
        if door is None or self._draining_since is not None:
            sock.close()
            return
        gate = self._gates.setdefault(bridge, {}).get(key)
        if gate is None:
            gate = self._gates[bridge][key] = Gate(bridge, key, door, sock)
        else:
            self._stop_reading(gate)
            self.loop.close_later(gate.sock, shared=True)
            gate.sock, gate.reading = sock, True
        self._by_fd[sock.fileno()] = gate
        self.loop.add(sock.fileno(), READ, self)

    def withdraw(self, bridge: str, addresses: Collection[str]) -> None:
        """Close the gates at all other addresses: the bridge has these service addresses alone."""
        for gate in [*self._gates.get(bridge, {}).values()]:
            if gate.key.address not in addresses:
                self._close(bridge, gate, "address removed")

    def let_go(self, bridge: str) -> None:
        """Read nothing more from the sockets of a bridge, which another worker has; finish the sessions."""
        for gate in self._gates.get(bridge, {}).values():
            self._stop_reading(gate)

    def forget(self, bridge: str, how: str) -> None:
        """End all sessions of a bridge that has no services any more."""
        for gate in [*self._gates.get(bridge, {}).values()]:
            self._close(bridge, gate, how)
        self._gates.pop(bridge, None)
        self._doors.pop(bridge, None)
        self.crowds.forget(bridge)
        self._keep_endpoints()

    def drain(self) -> None:
        """Read nothing more: another worker does. Pass answers on until the idle time is over."""
        self.endpoints.stop_checks()
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            for bridge in self._gates:
                self.let_go(bridge)

    # What guests and endpoints send

    def on_event(self, fd: int, mask: int) -> None:
        """Pass on what guests have sent to one service."""
        gate = self._by_fd.get(fd)
        if gate is None:
            return
        receive, sessions, now = gate.sock.recvfrom_into, gate.sessions, time.monotonic()
        for _ in range(AT_ONCE):
            try:
                count, guest = receive(BUFFER, 0, _DONT_WAIT)
            except BlockingIOError:
                return
            except OSError:  # of an answer before, such as a route that is gone
                continue
            session = sessions.get(guest)
            if session is None:
                if (target := self._waiting.target(gate, guest, count)) is None:
                    continue
                session = self._open(gate, target, guest)
            if session is not None:
                if session.traced != self.tracing.state:
                    self.tracing.join(session, self.introductions.id(session.number))
                session.used = now
                sessions.move_to_end(guest)
                self.crowds.used(gate.bridge, guest[0], session)
                session.send(BUFFER[:count])

    def answered(self, session: Session) -> None:
        """Note that an endpoint has answered a session."""
        if self._draining_since is None:
            session.used = time.monotonic()
            session.gate.sessions.move_to_end(session.guest)
        self.endpoints.answered(session.endpoint, session.used)

    def introduce(self, session: Session) -> bytes:
        """Return the header that is sent before each datagram of a session."""
        target = session.target
        if not session.mac:
            known = self.introductions.neighbours
            session.mac = known.mac(target.bridge, session.gate.sock, session.guest[0])
        peer = session.guest[0], session.guest[1]
        return self.introductions.header(
            session.number, target.bridge, target.service.key, peer, session.mac or "", DATAGRAM
        )

    def next_endpoint(self, session: Session, number: int) -> Endpoint | None:
        """Note why an endpoint failed; return the next one for the session, or None."""
        self.endpoints.failed(session.endpoint, number)
        session.target.record.dial_failed(dial_reason(number))
        order = self.endpoints.in_order(session.target.service)
        endpoint = next((each for each in order if each not in session.tried), None)
        session.tell("dial-failed", endpoint=session.endpoint, why=dial_failure(number))
        if endpoint is not None:
            session.tell("session", endpoint=endpoint)
        return endpoint

    def end_refused(self, session: Session, number: int) -> None:
        """End a session that no endpoint takes."""
        how = dial_failure(number)
        session.target.failed(f"endpoint {session.endpoint} {how}")
        self.end(session, how, DIAL_FAILED)

    # Sessions

    def _deliver(
        self, gate: Gate, target: Target, guest: tuple[Any, ...], datagrams: Iterable[bytes]
    ) -> None:
        """Send on what has waited."""
        session = gate.sessions.get(guest) or self._open(gate, target, guest)
        if session is not None:
            for data in datagrams:
                session.send(data)

    def _open(self, gate: Gate, target: Target, guest: tuple[Any, ...]) -> Session | None:
        bridge, address = gate.bridge, guest[0]
        target.counts[TOTAL] += 1
        while (found := self.crowds.in_the_way(bridge, target.service, address)) is not None:
            self._evict(*found)
        order = self.endpoints.in_order(target.service)
        last: OSError | None = None
        for endpoint in order:
            try:
                session = Session(self, gate, target, guest, endpoint)
            except OSError as error:
                last = error
                self.endpoints.failed(endpoint, error.errno or 0)
                target.record.dial_failed(dial_reason(error.errno or 0))
                if error.errno in _NO_DESCRIPTOR and (oldest := self.crowds.oldest()) is not None:
                    self._evict(oldest, TOTAL_LIMIT)  # the next datagram has its descriptor
                    break
                continue
            gate.sessions[guest] = session
            if self.tracing.active:
                self.tracing.join(session, self.introductions.id(session.number))
            self.crowds.add(bridge, session.key, address, session)
            target.counts[OPEN] += 1
            if self._timer is None:
                self._timer = self.loop.call_later(SWEEP, self._sweep)
            return session
        target.record.never_began(DIAL_FAILED)
        if last is not None:
            why = dial_failure(last.errno or 0)
            target.failed(f"endpoint {order[-1]} {why}")
            words = {"how": why, "outcome": OUTCOMES[DIAL_FAILED], "endpoint": order[-1]}
            self.tracing.tell(target, guest, gate.sock, "ended", **words)
        return None

    def _evict(self, session: Session, cause: int) -> None:
        target = session.target
        target.limited[cause] = (target.limited[cause] + 1) & 0xFFFFFFFF
        if self._warnings[cause].allows(time.monotonic()):
            self._log.warning(
                "bridge=%s port=%s session of guest=%s ended by %s%s",
                target.bridge,
                target.service.key.in_words,
                session.guest[0],
                CAUSES[cause],
                self._warnings[cause].suffix(),
            )
        self.end(session, CAUSES[cause], EVICTED)

    def end(self, session: Session, how: str, outcome: int) -> None:
        """End a session, unless it has ended; ``outcome`` is a place in ``counts.OUTCOMES``."""
        gate = session.gate
        if session not in self:
            return
        del gate.sessions[session.guest]
        self.crowds.remove(gate.bridge, session.key, session.guest[0], session)
        counts = session.target.counts
        counts[OPEN] -= 1
        session.target.record.ended(outcome, time.monotonic() - session.started)
        self.count(session)
        self.loop.close_later(session.sock)
        session.tell("ended", how=how, outcome=OUTCOMES[outcome], endpoint=session.endpoint)
        self._lines.write_session(session, self.introductions.id(session.number), how, outcome)

    def count(self, session: Session) -> None:
        """Add what was moved since the last time to the counts of the target."""
        counts, moved = session.target.counts, session.moved
        for place, now, before in zip(_MOVED, moved, session.counted, strict=True):
            counts[place] += now - before
        session.counted = moved

    def count_open(self) -> None:
        """Add the bytes of open sessions to the counts of their targets, as of now."""
        for session in self:
            self.count(session)

    def _end_all(
        self,
        gate: Gate,
        how: str,
        outcome: int,
        but_to: Collection[Endpoint] = (),
        target: Target | None = None,
    ) -> None:
        for session in [each for each in gate.sessions.values() if each.endpoint not in but_to]:
            if target is None or session.target is target:
                self.end(session, how, outcome)

    def _sweep(self) -> None:
        now = time.monotonic()
        self._timer = None
        for gates in self._gates.values():
            for gate in gates.values():
                if self._draining_since is not None:
                    for session in [*gate.sessions.values()]:
                        if now - self._draining_since >= session.target.service.session_idle:
                            self.end(session, "idle", FINISHED)
                self._end_idle(gate, now)
        if self.crowds.total:
            self._timer = self.loop.call_later(SWEEP, self._sweep)

    def _end_idle(self, gate: Gate, now: float) -> None:
        """End sessions that were silent for too long. The first are those that were used longest ago."""
        shortest = min(each.service.session_idle for each in targets_of(gate.door))
        for session in [*gate.sessions.values()]:
            if now - session.used < shortest:
                break
            if now - session.used >= session.target.service.session_idle:
                self.end(session, "idle", FINISHED)

    # Gates

    def _stop_reading(self, gate: Gate) -> None:
        if gate.reading:
            gate.reading = False
            del self._by_fd[gate.sock.fileno()]
            self.loop.remove(gate.sock.fileno())

    def _close(self, bridge: str, gate: Gate, how: str) -> None:
        self._end_all(gate, how, STOPPED)
        self._waiting.drop(gate)
        self._stop_reading(gate)
        self.loop.close_later(gate.sock, shared=True)
        del self._gates[bridge][gate.key]

    def _keep_endpoints(self) -> None:
        doors = [door for doors in self._doors.values() for door in doors.values()]
        self.endpoints.keep(each.service for door in doors for each in targets_of(door))
