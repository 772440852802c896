"""Streams from outside to guests: connections whose dialled side is a guest, and what they share.

A stream comes from a gateway at a UNIX socket (``worker.inward``), and its ``Target`` is a route. It is a
``Connection`` with the sides changed: the accepted side is the client, and the endpoint is the guest. The
relay has begun to dial the guest, in the guest's namespace, and this process has got the socket.

Limits, time-outs, half-close and counts are those of ``Connections``, kept apart from the guests' own
connections, with which streams share only pipes and numbers. A UNIX socket has no reset: the gateway sees an
end of file, or ECONNRESET where it had sent more than was read.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from tproxy.addresses import packed_peer
from tproxy.datapath import counts
from tproxy.datapath.connection import Connection
from tproxy.datapath.connections import LIMIT_INTERVAL, Connections
from tproxy.datapath.counts import CAUSES, DIAL_FAILED, DRAIN, LIMITED, OPEN, TOTAL
from tproxy.datapath.dial_errors import dial_failure
from tproxy.datapath.route_target import ANOTHER, QUIET, RouteTarget, StreamLines
from tproxy.datapath.splice import Mover
from tproxy.datapath.target import Target
from tproxy.kernel import tcp
from tproxy.kernel.loop import ERROR, HANGUP, WRITE
from tproxy.log.file import Log
from tproxy.log.limit import LineLimit
from tproxy.model import Endpoint

# How the kernel says that nobody answers ARP for the guest's address.
_ABSENT = frozenset({errno.EHOSTUNREACH, errno.EHOSTDOWN})

# Seconds between two looks whether anybody has answered ARP. The namespace asks three times, 0.2 s apart
# (bridge.plan). The kernel would tell by an ICMP error to itself, for which the namespace's loopback is down.
ARP_LOOK = 0.8

ABSENT = "not there"


class Stream(Connection):
    """One stream from outside. ``Streams`` keeps it."""

    __slots__ = ("looked", "probe")

    target: RouteTarget

    def __init__(
        self,
        keeper: Streams,
        target: RouteTarget,
        client: socket.SocketType,
        peer: tuple[str, int],
        guest: socket.SocketType,
        since: float,
    ) -> None:
        """``guest`` is a socket that is connecting to the guest of ``target``."""
        self._keeper = keeper
        self.target = target
        self._peer = packed_peer(peer)
        self.number = keeper.next_number()
        self.mac = None
        self._header_bytes = 0
        self.started = self.silent_since = since
        self.seen = -1
        self.deadline = 0.0
        self.race = None
        self.dialed = target.service.endpoint
        self._guest = client
        self._endpoint = guest
        self.to_endpoint = Mover(client, guest)
        self.to_guest = Mover(guest, client, near=True)
        self._guest_mask = self._endpoint_mask = 0
        self.probe = False

    def follow(self, header: bytes) -> None:
        """Wait until the guest accepts; ``header`` is what it gets first."""
        if header:
            self.to_endpoint.put_first(header, 0)
        if (timeout := self.target.service.user_timeout) != 120:
            tcp.set_user_timeout(self._endpoint, timeout)
        self.deadline = self.started + self.target.service.connect_timeout
        self.looked = time.monotonic()
        self._endpoint_mask = WRITE
        self._keeper.loop.add(self._endpoint.fileno(), WRITE, self)

    def on_dialed(self, mask: int) -> None:
        if not mask & (ERROR | HANGUP):
            if not self._is_the_one():
                self.count_failure(self.dialed, errno.EHOSTUNREACH)
                self.dial_failed_as(ANOTHER)
                return
            if self.probe:
                self.deadline = 0.0
                self._keeper.dialed(self)
                self._say("connected")
                self.abort("probed", counts.FINISHED)
                return
        super().on_dialed(mask)

    def expire(self) -> None:
        if not self.look_for_guest():
            super().expire()

    def look_for_guest(self) -> bool:
        """End the stream if nobody has the guest's address. Return whether it has ended."""
        self.looked = time.monotonic()
        if self.guest_mac:
            return False
        self.count_failure(self.dialed, errno.EHOSTUNREACH)
        self.dial_failed(errno.EHOSTUNREACH)
        return True

    def dial_failed(self, number: int) -> None:
        self.dial_failed_as(ABSENT if number in _ABSENT else dial_failure(number))

    def dial_failed_as(self, how: str) -> None:
        """End the stream, because the guest cannot be reached."""
        self.target.failed(f"guest {self.dialed}: {how}")
        assert isinstance(self._keeper, Streams)
        if how in (ABSENT, ANOTHER):
            self._keeper.tell_absent(self.target)
        if self.probe:
            self._say(how)
        self.abort(how, DIAL_FAILED)

    def sweep(self, now: float, draining_since: float | None) -> None:
        expires, drain = self.target.expires, self.target.service.drain_timeout
        if expires and 0 < drain <= time.time() - expires:
            self._limit(DRAIN)
            return
        super().sweep(now, draining_since)

    def _is_the_one(self) -> bool:
        """Whether the socket leads where it should, and to the guest with the route's MAC.

        The kernel tells the first only now, and a relay may have been taken over. Another guest may have the
        address.
        """
        try:
            address, port = self._endpoint.getpeername()[:2]
            if (address.partition("%")[0], port) != tuple(self.dialed):  # IPv6: behind it the link's name
                return False
        except OSError:  # reset since
            return True
        if not self.target.mac:
            return True
        return self.guest_mac == self.target.mac

    @property
    def guest_mac(self) -> str:
        """The MAC that answers ARP for the guest's address; "" for none."""
        known = self._keeper.introductions.neighbours
        return known.mac(self.target.bridge, self._endpoint, self.dialed.address)

    def _say(self, verdict: str) -> None:
        try:
            self._guest.send(f"{verdict}\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return


class Streams(Connections):
    """All streams of a worker. ``absent`` is called with the target of a guest that is not there."""

    def __init__(self, outward: Connections, log: Log, room: int) -> None:
        super().__init__(outward.loop, log, room)
        self.pipes = outward.pipes
        self.introductions = outward.introductions
        self.next_number = outward.next_number  # type: ignore[method-assign]  # ids of connections differ
        self.lines: StreamLines = StreamLines(outward.loop, log)
        self._log = log
        self._warnings = [LineLimit(1, LIMIT_INTERVAL) for _ in CAUSES]
        self.absent: Callable[[RouteTarget], None] = lambda target: None

    def refuses(self, target: RouteTarget, client: str) -> bool:
        """Count a stream that has come; return whether a limit refuses it."""
        target.counts[TOTAL] += 1
        refusal = self.limits.refusal(target, client)
        if refusal:
            self.limited(target, refusal[0], f": client={client}, {refusal[1]} are open", client)
            target.record.never_began(LIMITED)
        return bool(refusal)

    def take(self, stream: Stream, header: bytes) -> None:
        """Own a stream from now on; the guest gets ``header`` first."""
        stream.target.counts[OPEN] += 1
        self._open.add(stream)
        self.limits.add(stream.target, stream.peer[0], stream.dialed)
        if self._sweep_timer is None:
            self._sweep_later()
        self._dialing[stream] = None
        stream.follow(header)
        self._tick()

    def tell_absent(self, target: RouteTarget) -> None:
        """Have somebody find out where the guest is, now and then."""
        if (now := time.monotonic()) - target.absent_since >= QUIET:
            target.absent_since = now
            self.absent(target)

    def expired(self, target: RouteTarget, peer: tuple[str, int], since: float) -> None:
        """Count and log a stream for a route that has expired."""
        target.counts[TOTAL] += 1
        target.record.never_began(LIMITED)
        self.lines.write_early(target, peer, "expired", since, LIMITED)

    def never_dialed(
        self, target: RouteTarget, peer: tuple[str, int], how: str, reason: int, since: float
    ) -> None:
        """Count and log a stream that ended before there was a socket; ``reason`` is one of REASONS."""
        target.failed(f"guest {target.service.endpoint}: {how}")
        target.record.dial_failed(reason)
        target.record.never_began(DIAL_FAILED)
        self.lines.write_early(target, peer, how, since)

    def limited(self, target: Target, cause: int, why: str = "", guest: str = "") -> None:
        target.limited[cause] = (target.limited[cause] + 1) & 0xFFFFFFFF
        warnings = self._warnings[cause]
        assert isinstance(target, RouteTarget)
        if warnings.allows(time.monotonic()):
            self._log.warning(
                "route=%s bridge=%s stream ended by %s%s%s",
                target.id,
                target.bridge,
                CAUSES[cause],
                why,
                warnings.suffix(),
                fields={**target.fields, "limit": CAUSES[cause], **({"client": guest} if guest else {})},
            )

    def _expire(self) -> None:
        now = time.monotonic()
        for stream in [*self._dialing]:
            if isinstance(stream, Stream) and now - stream.looked >= ARP_LOOK and stream.deadline > now:
                stream.look_for_guest()
        super()._expire()

    # One guest is no endpoint of several: nothing is remembered of it.

    def answered(self, endpoint: Endpoint) -> None:
        pass

    def dial_failed(self, endpoint: Endpoint, number: int) -> None:
        pass
