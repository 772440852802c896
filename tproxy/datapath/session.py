"""One UDP session: the datagrams between one address and port of a guest and one endpoint.

A session has a socket of its own towards the endpoint, so answers of two guests cannot be mixed up, and the
kernel tells when the endpoint refuses a datagram (udp(7), ECONNREFUSED). Answers leave from the bound socket
of the service, the *gate*, which is shared, so their source is the service address.

The endpoint may refuse a datagram while the guest waits for its answer. Where the service has another
endpoint, the session goes on with that one, and what was refused is sent again: nobody has received it.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import OrderedDict
from contextlib import suppress

from tproxy.datapath.target import Target
from tproxy.datapath.tracing import Trail
from tproxy.datapath.waiting import Door
from tproxy.kernel import tcp
from tproxy.kernel.loop import READ
from tproxy.model import Endpoint, ServiceKey
from tproxy.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tproxy.datapath.datagrams import Datagrams

# The largest datagram, and room to see that one is larger.
BUFFER = memoryview(bytearray(1 << 16))

# Smaller answers come alone as a rule. Behind a larger one another one may wait.
_SMALL = 1200
# Answers of one session that are passed on in a row, so that other sessions have their turn.
_AT_ONCE = 16

_DONT_WAIT = int(socket.MSG_DONTWAIT)

# What sending a datagram can fail with that says nothing of the endpoint: it is lost, as datagrams can be.
_LOST = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE})


def connected(endpoint: Endpoint) -> socket.SocketType:
    """Return a UDP socket that is connected to an endpoint. Raises OSError."""
    sock = socket.SocketType(tcp.family(endpoint.address), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect((endpoint.address, endpoint.port))
    except OSError:
        sock.close()
        raise
    return sock


class Gate:
    """The bound socket of one service port in the bridge's namespace, and its sessions.

    ``sessions`` are by the guest's address and port, those that were used last at the end.
    """

    __slots__ = ("bridge", "door", "key", "reading", "sessions", "sock", "unreachable")

    def __init__(self, bridge: str, key: ServiceKey, door: Door, sock: socket.SocketType) -> None:
        self.bridge = bridge
        self.key = key
        self.door = door
        self.sock = sock
        self.sessions: OrderedDict[tuple[Any, ...], Session] = OrderedDict()
        self.reading = True  # whether new datagrams are read here
        self.unreachable = False  # whether the daemon was told that no endpoint can be reached


class Session:
    """``guest`` is the guest's address as the kernel gives it. ``used`` is by time.monotonic().

    ``trail`` is None unless a trace follows it; ``traced`` says as of which traces (``Tracing.state``).
    """

    __slots__ = (
        "_header",
        "_header_of",
        "_keeper",
        "_unanswered",
        "counted",
        "endpoint",
        "gate",
        "guest",
        "mac",
        "number",
        "received",
        "received_datagrams",
        "sent",
        "sent_datagrams",
        "sock",
        "started",
        "target",
        "traced",
        "trail",
        "tried",
        "used",
    )

    def __init__(
        self, keeper: Datagrams, gate: Gate, target: Target, guest: tuple[Any, ...], endpoint: Endpoint
    ) -> None:
        """Raises OSError when no socket can be had."""
        self._keeper = keeper
        self.gate = gate
        self.target = target
        self.guest = guest
        self.number = keeper.next_number()
        self.started = self.used = time.monotonic()
        self.sent = self.received = self.sent_datagrams = self.received_datagrams = 0
        self.counted = self.moved  # what the target's counts have of these
        self.mac: str | None = None
        self.trail: Trail | None = None
        self.traced = 0
        self._header = b""
        self._header_of = -1  # the state of what the daemon has told, of which the header was made
        self._unanswered: bytes | None = None
        self.tried: set[Endpoint] = set()
        self.endpoint = endpoint
        self.sock = connected(endpoint)
        keeper.loop.add(self.sock.fileno(), READ, self)

    @property
    def key(self) -> ServiceKey:
        """The key of the service."""
        return self.target.service.key

    @property
    def moved(self) -> tuple[int, int, int, int]:
        """Bytes that the guest sent, and the endpoint; datagrams likewise."""
        return self.sent, self.received, self.sent_datagrams, self.received_datagrams

    def tell(self, what: str, **more: object) -> None:
        """Tell what happened to it, if a trace follows it."""
        if self.trail is not None:
            self.trail.tell(what, **more)

    def send(self, data: memoryview | bytes) -> None:
        """Send a guest's datagram to the endpoint."""
        self.sent += len(data)
        self.sent_datagrams += 1
        number = self._send(data)
        if number in _LOST:
            if number == errno.EMSGSIZE:
                self.target.failed(f"endpoint {self.endpoint}: a datagram of {len(data)} bytes is too long")
            return
        service = self.target.service
        if number:
            # The error is of a datagram before: this one was not sent.
            self._refused(number, bytes(data))
        elif service.endpoints:
            self._unanswered = bytes(data)

    def on_event(self, fd: int, mask: int) -> None:
        """Pass on what the endpoint has sent."""
        gate, before = self.gate, self.received_datagrams
        for _ in range(_AT_ONCE):
            try:
                count = self.sock.recv_into(BUFFER, 0, _DONT_WAIT)
            except BlockingIOError:
                break
            except OSError as error:
                self._refused(error.errno or 0)
                return
            self._unanswered = None
            if self.tried:
                self.tried.clear()
            self.received += count
            self.received_datagrams += 1
            if self.trail is not None and not self.trail.answered:
                self.trail.answered = True
                self.trail.tell("endpoint-answered", endpoint=self.endpoint)
            with suppress(OSError):  # the guest is gone, or its queue is full: the datagram is lost
                gate.sock.sendto(BUFFER[:count], _DONT_WAIT, self.guest)
            if count < _SMALL:
                break
        if self.received_datagrams != before:
            self._keeper.answered(self)

    def _send(self, data: memoryview | bytes) -> int:
        """Send with the header that the service wants; return 0 or the errno."""
        try:
            if self.target.service.introduced:
                self.sock.sendmsg((self._introduction(), data), (), _DONT_WAIT)
            else:
                self.sock.send(data, _DONT_WAIT)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _introduction(self) -> bytes:
        known = self._keeper.introductions.state
        if self._header_of != known or not self.mac:
            self._header, self._header_of = self._keeper.introduce(self), known
        return self._header

    def _refused(self, number: int, data: bytes | None = None) -> None:
        """Go on with the next endpoint, and send again what the one before has not taken."""
        waiting = [each for each in (self._unanswered, data) if each is not None]
        self._unanswered = None
        self.tried.add(self.endpoint)
        endpoint = self._keeper.next_endpoint(self, number)
        if endpoint is None:
            self._keeper.end_refused(self, number)
            return
        try:
            sock = connected(endpoint)
        except OSError as error:
            self._keeper.end_refused(self, error.errno or 0)
            return
        self._keeper.loop.close_later(self.sock)
        self.endpoint, self.sock = endpoint, sock
        self._keeper.loop.add(sock.fileno(), READ, self)
        for each in waiting:
            if number := self._send(each):
                if number not in _LOST:
                    self._refused(number, each)
                return
            self._unanswered = each
