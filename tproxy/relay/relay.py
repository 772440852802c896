"""The relay: in a bridge's namespace it accepts connections and passes their sockets on.

It reads no byte of a guest, knows no endpoint, and holds no connection. Its listening sockets are
what matters: they outlive the daemon, and a successor takes them over, so that a guest is never
refused because some process of ours is being replaced.

Theory of operation. Three kinds of descriptors are polled: the channel to the daemon, the listening
sockets, and a rendezvous: an abstract UNIX socket, whose name is private to the namespace
(network_namespaces(7)), at which a new daemon asks to be served (Adopt) or a successor asks for the
listening sockets (Takeover). Whenever the daemon is away or behind, the relay does not accept:
guests wait in the backlog, in the kernel.
"""

import errno
import os
import resource
import signal
import socket
from contextlib import suppress

from tproxy.errors import KernelError, ProtocolError
from tproxy.kernel import netns, tcp
from tproxy.kernel.loop import READ, WRITE, Loop
from tproxy.log.file import Log
from tproxy.model import SERVICE_ADDRESS, BridgeNames
from tproxy.process.title import set_title
from tproxy.relay import wire
from tproxy.relay.channel import receive, send
from tproxy.typed import NamedTuple

log = Log()

# Abstract: leaves no file behind, and can be reached from this namespace only.
RENDEZVOUS = "\0one_tproxy_relay"

# Guests that may wait while the daemon is away; the kernel cuts it to net.core.somaxconn.
BACKLOG = 4096

# Accepted in one go and passed in one message: shares the message's cost among them under load,
# and bounds what one port can take before the others have their turn.
BATCH = 64

# Descriptors that ports may not use up: for a batch, the daemon, a successor, the log.
RESERVE = BATCH + 32

# Accepting fails for want of descriptors or memory: the guests wait while this many seconds pass.
PAUSE = 0.2

# How long relay and successor wait for each other before they do without, in seconds: a busy host may let
# either stand still for some, and a restart that does without fails.
PATIENCE = 10.0

# After accept(2): these concern one connection that ended before it was taken, not the listener.
_ENDED_BEFORE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH})


class Batch(NamedTuple):
    """Accepted sockets on their way to the daemon."""

    port: int
    peers: tuple[bytes, ...]
    fds: list[int]

    @property
    def message(self) -> wire.Accepted:
        return wire.Accepted(self.port, self.peers)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def reset(self) -> None:
        for fd in self.fds:
            guest = socket.SocketType(fileno=fd)
            tcp.reset_on_close(guest)
            guest.close()


def run(bridge: str, channel: socket.socket, *, replace: bool, log_level: int) -> None:
    """Be the relay of ``bridge`` until told to end; ``channel`` leads to the daemon.

    Where a relay is there already, it is asked for its listening sockets (``replace``), or is
    joined with the daemon, and this process is done.
    """
    log.open(BridgeNames(bridge).relay_log, log_level)
    try:
        netns.enter(BridgeNames(bridge).namespace)
        predecessor = _meet_predecessor()
        if predecessor is not None and not replace:
            send(predecessor, wire.Adopt())
            send(channel, wire.Adopted(), [predecessor.fileno()])
            return
        set_title(BridgeNames(bridge).relay_title)
        relay = Relay()
        if predecessor is not None:
            relay.take_over(predecessor)
        relay.serve(channel)
    except (KernelError, OSError) as error:
        log.error("relay cannot run: %s", error)
        with suppress(OSError):
            send(channel, wire.Failed(str(error)))


def _meet_predecessor() -> socket.socket | None:
    meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        meeting.connect(RENDEZVOUS)
    except ConnectionRefusedError:
        meeting.close()
        return None
    meeting.settimeout(PATIENCE)
    return meeting


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.set_options(listener, near=True)
        listener.bind((SERVICE_ADDRESS, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class Relay:
    """The loop in the namespace."""

    def __init__(self) -> None:
        self._loop = Loop()
        self._channel: socket.socket | None = None
        self._channel_mask = 0
        self._listeners: dict[int, socket.socket] = {}
        self._ports: dict[int, int] = {}  # by descriptor
        self._waiting: Batch | None = None  # accepted, but the daemon is away or behind
        self._report: wire.Report | None = None  # due, but the daemon is behind
        self._paused = False
        self._accepting = False
        self._rendezvous = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    # Life

    def take_over(self, predecessor: socket.socket) -> None:
        """Get the old relay's listening sockets, and with them the guests that wait there."""
        with predecessor:
            try:
                send(predecessor, wire.Takeover())
                while received := receive(predecessor):
                    message, fds = received
                    match message:
                        case wire.Accepted(port, peers):
                            self._waiting = Batch(port, peers, fds)
                        case wire.Listeners(ports):
                            for port, fd in zip(ports, fds, strict=True):
                                listener = socket.socket(fileno=fd)
                                tcp.set_options(listener, near=True)  # an older version's may differ
                                self._keep(port, listener)
            except (OSError, ProtocolError) as error:
                log.warning("the relay before this one gave up half-way: %s", error)

    def serve(self, channel: socket.socket) -> None:
        """Run until told to end."""
        try:
            self._rendezvous.bind(RENDEZVOUS)
        except OSError as error:
            raise KernelError(f"another relay holds this namespace: {error.strerror}") from None
        self._rendezvous.listen()
        self._loop.add(self._rendezvous.fileno(), READ, self)
        # A batch process does not interrupt a running one when it wakes up (sched(7)). On a busy
        # host more guests have come by the time it runs, and share one message to the daemon; on
        # one with a processor to spare it runs at once. Measured: a third more new connections.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self._loop.on_signal(signal.SIGTERM, self._loop.stop)
        self._loop.on_signal(signal.SIGINT, self._loop.stop)
        self._loop.on_signal(signal.SIGHUP, log.reopen)
        log.info("relay started")
        self._greet(channel)
        self._loop.run()
        log.info("relay ended")

    def on_event(self, fd: int, mask: int) -> None:
        if fd in self._ports:
            self._accept(self._ports[fd])
        elif fd == self._rendezvous.fileno():
            self._receive_visitor()
        else:
            self._on_channel(mask)

    def _settle(self) -> None:
        """Bring what is polled in line with the state."""
        accepting = self._channel is not None and self._waiting is None and not self._paused
        if accepting != self._accepting:
            self._accepting = accepting
            for listener in self._listeners.values():
                if accepting:
                    self._loop.add(listener.fileno(), READ, self)
                else:
                    self._loop.remove(listener.fileno())
        if self._channel is not None:
            mask = READ | WRITE if self._waiting is not None or self._report is not None else READ
            if mask != self._channel_mask:
                self._loop.modify(self._channel.fileno(), mask)
                self._channel_mask = mask

    # The daemon

    def _greet(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as proof:
            send(channel, wire.Hello(wire.VERSION, os.getpid()), [proof.fileno()])
        self._channel = channel
        self._channel_mask = READ
        self._loop.add(channel.fileno(), READ, self)
        self._settle()

    def _on_channel(self, mask: int) -> None:
        try:
            if mask & WRITE and self._channel is not None:
                self._tell(self._channel)
                self._pass_on()
            if mask & ~WRITE and self._channel is not None:
                self._hear(self._channel)
        except (OSError, ProtocolError) as error:
            self._forget_daemon(str(error))

    def _hear(self, channel: socket.socket) -> None:
        received = receive(channel)
        if received is None:
            self._forget_daemon("gone")
            return
        match received[0]:
            case wire.Listen(generation, log_level, ports):
                log.level = log_level
                self._report = wire.Report(generation, self._listen(ports))
                self._tell(channel)
            case wire.Quit():
                self._loop.stop()
                if self._waiting is not None:
                    self._waiting.reset()
                    self._waiting = None
            case other:
                raise ProtocolError(f"unexpected {type(other).__name__}")

    def _tell(self, channel: socket.socket) -> None:
        """Send the report that is due; later, while the daemon is behind."""
        if self._report is not None:
            with suppress(BlockingIOError):
                send(channel, self._report)
                self._report = None
        self._settle()

    def _forget_daemon(self, why: str) -> None:
        log.warning("daemon lost (%s); guests wait", why)
        if self._channel is not None:
            self._loop.close_later(self._channel)
            self._channel = None
            self._report = None
        self._settle()

    # Listening

    def _listen(self, ports: tuple[int, ...]) -> dict[int, int]:
        """Listen on exactly these ports, and say why not (errno by port). Others are not touched."""
        for port in set(self._listeners) - set(ports):
            listener = self._listeners.pop(port)
            del self._ports[listener.fileno()]
            listener.shutdown(socket.SHUT_RD)  # listens no longer: the report goes out before it is closed
            self._loop.close_later(listener)
            log.info("port %d listens no longer", port)
        problems = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(limit - RESERVE, limit // 2)
        for port in sorted(set(ports) - set(self._listeners)):
            try:
                if len(self._listeners) >= most:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                listener = _listener(port)
            except OSError as error:
                problems[port] = error.errno or errno.EINVAL
                log.error("port %d cannot listen: %s", port, error.strerror)
                continue
            self._keep(port, listener)
            if self._accepting:
                self._loop.add(listener.fileno(), READ, self)
            log.info("port %d listens", port)
        return problems

    def _keep(self, port: int, listener: socket.socket) -> None:
        self._listeners[port] = listener
        self._ports[listener.fileno()] = port

    def _accept(self, port: int) -> None:
        listener = self._listeners[port]
        fds: list[int] = []
        peers: list[bytes] = []
        while len(fds) < BATCH:
            try:
                # What socket.accept() is made of: the descriptor is all that is wanted here.
                fd, (address, peer_port) = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _ENDED_BEFORE:
                    continue
                # EMFILE, ENFILE, ENOBUFS, ENOMEM: trying again at once would only spin.
                log.warning("cannot accept for now: %s", error.strerror)
                self._paused = True
                self._loop.call_later(PAUSE, self._end_pause)
                break
            fds.append(fd)
            peers.append(socket.inet_aton(address) + peer_port.to_bytes(2, "big"))
        if fds:
            self._waiting = Batch(port, tuple(peers), fds)
            self._pass_on()
        self._settle()

    def _end_pause(self) -> None:
        self._paused = False
        self._settle()

    def _pass_on(self) -> None:
        """Send what was accepted. What cannot go now keeps the relay from accepting more."""
        batch = self._waiting
        if batch is None or self._channel is None:
            return
        try:
            send(self._channel, batch.message, batch.fds)
        except BlockingIOError:
            pass
        except OSError as error:
            self._forget_daemon(str(error))
        else:
            batch.close()
            self._waiting = None
        self._settle()

    # Visitors at the rendezvous

    def _receive_visitor(self) -> None:
        """Hear what one visitor wants; it says so at once, or is not one of ours."""
        visitor, _ = self._rendezvous.accept()
        visitor.settimeout(PATIENCE)
        try:
            received = receive(visitor)
            match received and received[0]:
                case wire.Adopt():
                    self._forget_daemon("a new one is here")
                    self._greet(visitor)
                    return
                case wire.Takeover():
                    self._hand_over(visitor)
        except (OSError, ProtocolError) as error:
            log.warning("a visitor was turned away: %s", error)
        visitor.close()

    def _hand_over(self, successor: socket.socket) -> None:
        """Give the successor the listening sockets, and end."""
        self._rendezvous.close()
        self._loop.stop()
        if self._waiting is not None:
            send(successor, self._waiting.message, self._waiting.fds)
            self._waiting.close()  # or the daemon gets it as well: the rest of the batch has its events
            self._waiting = None
        ports = tuple(self._listeners)
        for start in range(0, len(ports), wire.MAX_DESCRIPTORS):
            some = ports[start : start + wire.MAX_DESCRIPTORS]
            fds = [self._listeners[port].fileno() for port in some]
            send(successor, wire.Listeners(some), fds)
        log.info("a new relay took over")
