"""One connection of a guest: dials the endpoint, passes bytes both ways, ends each side as the other ends.

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
from contextlib import suppress

from tproxy.addresses import packed_peer, unpacked_peer
from tproxy.datapath.counts import (
    CAUSES,
    DIAL_FAILED,
    DRAIN,
    FINISHED,
    HALF_CLOSED,
    IDLE,
    LOST,
    OUTCOMES,
    RESET_BY_ENDPOINT,
    RESET_BY_GUEST,
    STOPPED,
    TIMED_OUT,
    TO_ENDPOINT,
    TO_GUEST,
    USER,
)
from tproxy.datapath.dial_errors import dial_failure, dial_reason
from tproxy.datapath.flow import interest
from tproxy.datapath.racing import Race
from tproxy.datapath.splice import Mover, SideLost
from tproxy.datapath.target import Target, reached_at
from tproxy.datapath.unix_dials import no_socket
from tproxy.kernel import tcp
from tproxy.kernel.loop import ERROR, HANGUP, PEER_CLOSED, READ, WRITE
from tproxy.model import DEFAULT_USER_TIMEOUT, Endpoint
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.datapath.connections import Connections

# In place of the bytes that a sweep has seen.
UNSWEPT = -1

_TO_READ = READ | PEER_CLOSED | HANGUP | ERROR


class Connection:
    """One connection of a guest, from accepted to ended. ``Connections`` makes and keeps it.

    ``deadline`` is the end of the connect timeout by time.monotonic(), and 0 when the endpoint is not being
    dialled. ``silent_since`` is when a sweep found ``seen`` bytes, the number that had been moved by then;
    UNSWEPT before the first sweep. ``dialed`` is the endpoint that is dialled, or was dialled last. ``race``
    has the dials while one of several endpoints is looked for, or a UNIX socket is dialled. ``mac`` is None
    where the endpoint gets no header (``introduction``), and "" where nobody knows the guest's.

    Both sockets have SO_LINGER 0 until the last byte was sent to them (splice.py), so the death of this
    process is a reset at both ends, and no end of file that looks like a normal one.
    """

    __slots__ = (
        "_endpoint",
        "_endpoint_mask",
        "_guest",
        "_guest_mask",
        "_header_bytes",
        "_keeper",
        "_peer",
        "deadline",
        "dialed",
        "mac",
        "number",
        "race",
        "seen",
        "silent_since",
        "started",
        "target",
        "to_endpoint",
        "to_guest",
    )

    def __init__(
        self,
        keeper: Connections,
        target: Target,
        guest: socket.SocketType,
        peer: tuple[str, int],
        mac: str | None = None,
        since: float | None = None,
    ) -> None:
        """``mac`` is None where nobody has looked it up yet, and ``since`` is when it was accepted."""
        self._keeper = keeper
        self.target = target
        self._peer = packed_peer(peer)
        self.number = keeper.next_number()
        self.mac = mac if target.service.introduced else None
        self._header_bytes = 0
        self.started = self.silent_since = time.monotonic() if since is None else since
        self.seen = UNSWEPT
        self.deadline = 0.0
        self.race: Race | None = None
        service = target.service
        others: list[Endpoint] = []
        if service.endpoints:
            self.dialed, *others = keeper.in_order(service)
        else:
            self.dialed = service.endpoint  # a reload may change the target's endpoint
        if others or self.dialed.is_unix:
            self.race = Race(self, keeper, others)
        self._guest = guest
        self._endpoint = _dialling_socket(self.dialed)
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
    def peer(self) -> tuple[str, int]:
        """The guest's address and port."""
        return unpacked_peer(self._peer)

    @property
    def guest_name(self) -> str:
        address, port = self.peer
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    @property
    def service_address(self) -> str:
        """The address at which the guest has reached the service."""
        return reached_at(self.target, self.peer)

    @property
    def id(self) -> str:
        """The id by which the log and the endpoint know this connection."""
        return self._keeper.introductions.id(self.number)

    def dial(self) -> None:
        """Begin to connect to the endpoint. If that fails at once, end the connection."""
        if not self.dialed.is_unix:
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
        if self.mac is None and self.target.service.introduced:
            known = self._keeper.introductions
            self.mac = known.caller_mac(self.target.bridge, self._guest, self.peer[0])
        if self.race is not None:
            self.deadline = self.started + self.target.service.connect_timeout
            self.race.begin()
            return
        if number := self.connect(self._endpoint, self.dialed):
            self._only_failed(number)
            return
        if self.to_endpoint.held or self.mac is not None:
            # The handshake with an endpoint on this host is over by now, although connect(2) said
            # EINPROGRESS.
            try:
                if self.mac is not None:
                    self._introduce()
                if self.to_endpoint.send_ahead():
                    self._keeper.answered_by(self)
                    if self.to_endpoint.ended:
                        self.to_endpoint.pump(self._keeper.pipes, False)
                    self._poll()
                    return
            except SideLost as lost:
                if lost.side is self._guest:
                    self._lost(lost)
                else:
                    self._only_failed(lost.errno)
                return
        self.deadline = self.started + self.target.service.connect_timeout
        self._keeper.loop.add(self._endpoint.fileno(), WRITE, self)
        self._endpoint_mask = WRITE

    def _introduce(self) -> None:
        """Put the header before what the guest has sent by now. Raises SideLost.

        Called again, it makes the header anew: the daemon may have told more of the guest meanwhile.
        """
        self.to_endpoint.read_ahead()
        header = self._keeper.introductions.header(
            self.number, self.target.bridge, self.target.service.key, self.peer, self.mac or ""
        )
        self.to_endpoint.put_first(header, self._header_bytes)
        self._header_bytes = len(header)

    def new_socket(self, endpoint: Endpoint) -> socket.SocketType:
        """Return a socket that can dial an endpoint. Raises OSError."""
        sock = _dialling_socket(endpoint)
        if not endpoint.is_unix:
            self._set_options(sock, near=self._keeper.host.has(endpoint.address))
        return sock

    def _set_options(self, sock: socket.SocketType, *, near: bool) -> None:
        tcp.set_options(sock, near=near)
        tcp.reset_on_close(sock)
        if (timeout := self.target.service.user_timeout) != DEFAULT_USER_TIMEOUT:
            tcp.set_user_timeout(sock, timeout)

    def connect(self, sock: socket.SocketType, endpoint: Endpoint) -> int:
        """Begin to connect; return 0, or the errno if that failed at once."""
        if self.to_endpoint.held or self.mac is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        self._keeper.tell(self, "dials", endpoint=endpoint)
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
            self._end("finished", FINISHED)
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
        if self.deadline:
            self.silent_since = now
            return
        if self.seen == UNSWEPT:
            # Not earlier: most connections have ended by now, and each option is a system call. The guest's
            # side has these options of its listener.
            if not self.dialed.is_unix:
                tcp.watch_peer(self._endpoint, service.user_timeout)
            self.seen = 0
        moved = up.moved + down.moved
        if moved != self.seen:
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
        self.abort(CAUSES[cause], TIMED_OUT)

    def abort(self, how: str, outcome: int = STOPPED) -> None:
        """End both sides with a reset. ``outcome`` is a place in ``counts.OUTCOMES``."""
        for side in (self._guest, self._endpoint):
            if side.fileno() >= 0:
                tcp.reset_on_close(side)
        self._end(how, outcome)

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
            if self.mac is not None and not self.to_endpoint.moved:
                self._introduce()
            if self.to_endpoint.held or self.to_endpoint.ended:
                self.to_endpoint.pump(self._keeper.pipes, False)
        except SideLost as lost:
            self._lost(lost)
            return
        self._poll()

    def was_reset(self, number: int) -> None:
        """End the connection, because the endpoint accepted it, and then reset it."""
        self._keeper.answered_by(self)
        self._lost(SideLost(self._endpoint, number))

    def _only_failed(self, number: int) -> None:
        """End the connection, because the only endpoint failed."""
        self._keeper.dial_failed(self.dialed, number)
        self.count_failure(self.dialed, number)
        self.dial_failed(number)

    def count_failure(self, endpoint: Endpoint, number: int) -> None:
        """Count a dial that failed with this errno."""
        self.target.record.dial_failed(dial_reason(number))
        self._keeper.tell(self, "dial-failed", endpoint=endpoint, why=dial_failure(number))

    def dial_failed(self, number: int) -> None:
        """End the connection, because no endpoint answers."""
        how = dial_failure(number)
        self.target.failed(f"endpoint {self.dialed} {how}")
        self.abort(how, DIAL_FAILED)

    def _lost(self, lost: SideLost) -> None:
        who = "guest" if lost.side is self._guest else "endpoint"
        if lost.errno in (errno.ECONNRESET, errno.EPIPE):
            how = f"reset by {who}"
            outcome = RESET_BY_GUEST if who == "guest" else RESET_BY_ENDPOINT
        else:
            how = f"{who} lost: {os.strerror(lost.errno)}"
            outcome = LOST
            if lost.errno == errno.ETIMEDOUT:
                self._keeper.limited(self.target, USER)
                outcome = TIMED_OUT
        if who == "endpoint":
            self.target.failed(f"endpoint {self.dialed}: {how}")
        # The bytes that the lost side sent before can still be read, even if a write met the error. The
        # kernel reports the error once, so now it reports the end of file after these bytes. The other side
        # must get a reset and no FIN.
        last = self.to_endpoint if who == "guest" else self.to_guest
        last.fin_sent = True
        with suppress(SideLost):
            last.pump(self._keeper.pipes, False)
        self.abort(how, outcome)

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

    def _end(self, how: str, outcome: int) -> None:
        keeper = self._keeper
        if self.race is not None:
            self.race.close()
        self.to_endpoint.release(keeper.pipes)
        self.to_guest.release(keeper.pipes)
        keeper.loop.close_later(self._guest, shared=True)
        # The daemon, which has sent the socket, may not have closed its own copy yet.
        keeper.loop.close_later(self._endpoint, shared=self.dialed.is_unix)
        keeper.ended(self, outcome)
        moved = {"to_endpoint": self.to_endpoint.moved, "to_guest": self.to_guest.moved}
        keeper.tell(self, "ended", how=how, outcome=OUTCOMES[outcome], endpoint=self.dialed, **moved)
        keeper.lines.write(self, how, outcome)


def _dialling_socket(endpoint: Endpoint) -> socket.SocketType:
    """Return a socket that can dial an endpoint, and never blocks. Raises OSError."""
    return no_socket() if endpoint.is_unix else tcp.dialling_socket(endpoint.address)
