"""Accepts streams from a gateway at ``in.sock``, and has the relay of the right bridge dial the guest.

Theory of operation. The daemon makes the listening socket, and gives it to all workers, which accept from it
in turn. A stream begins with a header of the PROXY protocol, version 2: the client's address, and the id of a
route (TLV 0x05). The gateway can name nothing else, so one that was taken over reaches only what a route
leads to. The worker looks the id up, and asks the bridge's relay to dial (``wire.Dial``), on the data channel
on which that passes guests' sockets on. The answer has a socket that is connecting, and a ``Stream`` begins.

A relay that does not answer is asked again, also its successor, until the route's ``connect_timeout`` is
over. Bytes behind the header are not read before the guest has accepted.

With a TLV OF_PROBE the worker dials, says in one line what came of it, and ends the stream (`tproxy route
test`).
"""

from __future__ import annotations

import errno
import os
import socket
import time

from tproxy.datapath.connections import Connections
from tproxy.datapath.counts import DIAL_TIMED_OUT, LOCAL, UNREACHABLE
from tproxy.datapath.route_target import RouteTarget
from tproxy.datapath.streams import Stream, Streams
from tproxy.errors import ProtocolError
from tproxy.kernel import netns, tcp
from tproxy.kernel.loop import READ, Loop
from tproxy.log import limit
from tproxy.log.file import Log
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import Delivery
from tproxy.routes import NOWHERE
from tproxy.typed import Protocol
from tproxy.worker import orders
from tproxy.worker.admission import Admission
from tproxy.worker.coming import Coming

# Seconds until a relay is asked again. It answers at once, unless it is being replaced, or a channel is full.
ASK_AGAIN = 0.25

# Streams that are accepted before others have their turn, and that wait for a header or a relay at once.
AT_ONCE, MOST_WAITING = 64, 4096

_EXCLUSIVE = 1 << 28  # EPOLLEXCLUSIVE: one worker is woken up for a stream, and not all


class Asked(Protocol):
    """Where a bridge's relay can be asked to dial (``intake.Intake``)."""

    bridge: str
    cookie: int | None

    def ask(self, message: wire.Dial) -> bool:
        """Send the question; return whether that was possible."""


class Inward:
    """The streams of a worker. ``len`` is how many descriptors they have, counted in connections."""

    def __init__(self, loop: Loop, log: Log, outward: Connections, room: int, admission: Admission) -> None:
        self._loop = loop
        self._log = log
        self._admission = admission
        self.streams = Streams(outward, log, room)
        self._listener: socket.socket | None = None
        self._polled = False
        self._draining = False
        self._told: dict[str, dict[int, orders.Told]] = {}
        self._targets: dict[str, dict[int, RouteTarget]] = {}
        self._ids: dict[str, RouteTarget] = {}
        self._relays: dict[str, Asked] = {}
        self._coming: dict[int, Coming] = {}  # by number
        self._reading: dict[int, Coming] = {}  # by descriptor: those whose header is incomplete
        # A worker in this place before this one may have asked too, and the answers come here.
        self._number = int.from_bytes(os.getrandom(6), "big") << 16
        self._ticking = False
        self._warnings = limit.warnings()

    def __len__(self) -> int:
        return len(self.streams) + len(self._coming)

    # What the daemon tells

    @property
    def listener(self) -> socket.socket | None:
        """The socket to hand to a new daemon."""
        return self._listener

    def listen(self, listener: socket.socket | None) -> None:
        """Accept streams from this socket and no other."""
        old, self._listener = self._listener, None
        if old is not None:
            self._poll(old, wanted=False)
            self._accept(old)  # what has come before the other one was there
            self._loop.close_later(old, shared=True)
        self._listener = listener
        if listener is not None:
            listener.setblocking(False)
        self.poll()

    def poll(self) -> None:
        """Bring what is polled in line with the state; to be called when ``admission.full`` has changed."""
        if self._listener is not None:
            wanted = not (self._draining or self._admission.full or len(self._coming) >= MOST_WAITING)
            self._poll(self._listener, wanted=wanted)

    def drain(self) -> None:
        """Accept no more: streams wait in the backlog for the workers of the next daemon."""
        self._draining = True
        self.streams.drain()
        self.poll()

    def use_routes(self, message: orders.Routes) -> None:
        known = {} if message.first else self._told.get(message.bridge, {})
        self._told[message.bridge] = {**known, **{each.number: each for each in message.routes}}
        for target in self._targets.get(message.bridge, {}).values():
            self._name(target)
        self._index()

    def serve(self, bridge: str, targets: dict[ServiceKey, RouteTarget]) -> None:
        """Take over the routes of a bridge as they are now."""
        self._targets[bridge] = {key.network: each for key, each in targets.items()}
        for target in targets.values():
            self._name(target)
        self._index()
        self.streams.serve(bridge, [each.service for each in targets.values()])

    def forget(self, bridge: str, why: str) -> None:
        self._told.pop(bridge, None)
        self._targets.pop(bridge, None)
        self._relays.pop(bridge, None)
        self._index()
        self.streams.limits.forget(bridge)
        self.streams.abort_bridge(bridge, why)

    def _name(self, target: RouteTarget) -> None:
        told = self._told.get(target.bridge, {}).get(target.service.key.network)
        if told is not None:
            target.id, target.expires, target.mac = told.id, told.expires, told.mac
            target.label = f"route/{told.id}"

    def _index(self) -> None:
        """Know all targets by their ids. If two bridges have one, the first bridge by name counts."""
        bridges = sorted(self._targets.items(), reverse=True)
        self._ids = {each.id: each for _, targets in bridges for each in targets.values() if each.id}

    # The gateway

    def on_event(self, fd: int, mask: int) -> None:
        if self._listener is not None and fd == self._listener.fileno():
            self._accept(self._listener)
        elif (coming := self._reading.get(fd)) is not None:
            self._read(coming)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if self._admission.full:
                break
            try:
                # As ``relay.listening`` does: socket.accept() asks the kernel what the socket is.
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except OSError as error:  # another worker has got it, or descriptors run out
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                    self._warn("a stream from outside cannot be accepted: %s", error.strerror)
                break
            sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
            self._number += 1
            coming = self._coming[self._number] = Coming(self._number, sock)
            self._read(coming)
        self._admission.check()
        self.poll()
        self._tick()

    def _read(self, coming: Coming) -> None:
        """Read the header and no byte more."""
        try:
            if not coming.read():
                self._close(coming)
                return
        except BlockingIOError:
            if coming.sock.fileno() not in self._reading:
                self._reading[coming.sock.fileno()] = coming
                self._loop.add(coming.sock.fileno(), READ, self)
            return
        except (OSError, ProtocolError) as error:
            self._refuse(coming, f"a stream from outside was refused: {error}")
            return
        if self._reading.pop(coming.sock.fileno(), None) is not None:
            self._loop.remove(coming.sock.fileno())
        self._find(coming)

    def _find(self, coming: Coming) -> None:
        """Find the route of a stream, and ask for a socket."""
        target = self._ids.get(coming.route)
        if target is None:
            self._refuse(
                coming,
                f"a stream for route {coming.route!a} was refused: there is no such route",
                "no such route",
            )
        elif target.expires and time.time() >= target.expires:
            self.streams.expired(target, coming.peer, coming.began)
            self._refuse(coming, "", "expired")
        elif self.streams.refuses(target, coming.peer[0]):
            self._refuse(coming, "", "limited")
        elif target.service.endpoint.address == NOWHERE:
            self.streams.never_dialed(target, coming.peer, "address not known", UNREACHABLE, coming.began)
            self.streams.tell_absent(target)
            self._refuse(coming, "", "address not known")
        else:
            coming.target = target
            self._ask(coming)

    # The relay

    def use_relay(self, relay: Asked) -> None:
        """Ask at this channel from now on, and what was asked before again."""
        self._relays[relay.bridge] = relay
        for coming in [*self._coming.values()]:
            if coming.target is not None and coming.target.bridge == relay.bridge:
                self._ask(coming)

    def lose_relay(self, relay: Asked) -> None:
        if self._relays.get(relay.bridge) is relay:
            del self._relays[relay.bridge]

    def dialled(self, relay: Asked, delivery: Delivery) -> None:
        """Take the socket that a relay has sent, if it is what was asked for."""
        message = delivery.message
        assert isinstance(message, wire.Dialled)
        coming = self._coming.get(message.number)
        if coming is None or coming.target is None or coming.target.bridge != relay.bridge:
            return  # of a worker before this one, or asked for twice
        if message.errno or not delivery.fds:
            why = os.strerror(message.errno)
            self.streams.never_dialed(coming.target, coming.peer, why, LOCAL, coming.began)
            self._refuse(coming, "", why)
            return
        guest = delivery.take_connection(tcp.family(coming.target.service.endpoint.address))
        wrong = _wrong(guest, relay.cookie)
        if wrong:
            guest.close()
            self._warn(
                "bridge %s: what its relay sent for route %s is closed: %s",
                relay.bridge,
                coming.target.id,
                wrong,
            )
            return
        del self._coming[coming.number]
        stream = Stream(self.streams, coming.target, coming.sock, coming.peer, guest, coming.began)
        stream.probe = coming.is_probe
        self.streams.take(stream, coming.introduction)
        self.poll()

    def _ask(self, coming: Coming) -> None:
        assert coming.target is not None
        relay = self._relays.get(coming.target.bridge)
        if relay is not None:
            relay.ask(wire.Dial(coming.number, *coming.target.service.endpoint))

    # Time

    def _tick(self) -> None:
        if self._coming and not self._ticking:
            self._ticking = True
            self._loop.call_later(ASK_AGAIN, self._look)

    def _look(self) -> None:
        """End what waits for too long, and ask again."""
        self._ticking = False
        now = time.monotonic()
        for coming in [*self._coming.values()]:
            if now < coming.deadline:
                if coming.target is not None:
                    self._ask(coming)
            elif coming.target is not None:
                how = "no relay" if coming.target.bridge not in self._relays else "relay silent"
                self.streams.never_dialed(coming.target, coming.peer, how, DIAL_TIMED_OUT, coming.began)
                self._refuse(coming, "", how)
            else:
                self._refuse(coming, "a stream from outside was refused: its header did not come")
        self._tick()

    # Ending

    def _refuse(self, coming: Coming, why: str, verdict: str = "") -> None:
        """End a stream that leads to no guest; ``verdict`` is for one that is a probe."""
        if verdict:
            coming.answer(verdict)
        if why:
            self._warn("%s", why)
        self._close(coming)

    def _close(self, coming: Coming) -> None:
        self._coming.pop(coming.number, None)
        self._reading.pop(coming.sock.fileno(), None)
        self._loop.close_later(coming.sock)
        self.poll()

    def _poll(self, listener: socket.socket, *, wanted: bool) -> None:
        if wanted != self._polled:
            self._polled = wanted
            if wanted:
                self._loop.add(listener.fileno(), READ | _EXCLUSIVE, self)
            else:
                self._loop.remove(listener.fileno())

    def _warn(self, message: str, *words: object) -> None:
        if self._warnings.allows(time.monotonic()):
            self._log.warning(f"{message}%s", *words, self._warnings.suffix())


def _wrong(guest: socket.SocketType, cookie: int | None) -> str:
    """Return why a socket is not one that dials a guest of this namespace; "" if it is.

    Where it leads to the kernel tells when it is connected (``Stream``). One that listens never is.
    """
    try:
        if cookie is not None and netns.cookie(guest) != cookie:
            return "it is of another namespace"
        if guest.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_TCP:
            return "it is no TCP socket"
    except OSError as error:
        return str(error)
    return ""
