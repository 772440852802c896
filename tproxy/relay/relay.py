"""The relay: in a bridge's namespace it accepts connections and passes their sockets on to the workers.

A relay reads no byte of a guest, knows no endpoint, and holds no connection. Its listening sockets are what
matters: they outlive the daemon, and a successor takes them over, so that no guest is refused while one of
our processes is replaced.

Theory of operation. Four kinds of descriptors are polled: the channel to the daemon, which says what to
listen on; the listening sockets (``listening``); data channels to workers that are behind (``passing``); and
a rendezvous. The rendezvous is an abstract UNIX socket, whose name is private to the namespace
(network_namespaces(7)): there a new daemon asks to be served (Adopt), and a successor asks for the listening
sockets (Takeover). While the daemon is away, guests are served as before. While no worker takes sockets, the
relay does not accept: guests wait in the backlog, in the kernel.

A relay gives up its rights before it listens (kernel/privileges.py). Ports below 1024 are open to it because
the daemon has told the namespace to reserve none for root (bridge/wall.py).
"""

import os
import signal
import socket
from contextlib import ExitStack, suppress

from tproxy.errors import KernelError, ProtocolError
from tproxy.kernel import netns, privileges, seccomp, tcp
from tproxy.kernel.loop import READ, WRITE, Loop
from tproxy.log.file import Log
from tproxy.model import TCP, ServiceKey
from tproxy.names import BridgeNames
from tproxy.process.title import set_title
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, receive, send
from tproxy.relay.listening import Batch, Listening
from tproxy.relay.passing import Passing

log = Log()

# Abstract (unix(7)): leaves no file behind, and can be reached from this namespace only.
RENDEZVOUS = "\0one_tproxy_relay"

# Seconds that a relay and its successor wait for each other's messages. A busy host may let either of them
# stand still for some seconds, and a restart fails if one gives up.
PATIENCE = 10.0

# Copies of listening sockets that go to the daemon in one message: it may have few descriptors left.
COPIES_AT_ONCE = 64


def run(bridge: str, channel: socket.socket, empty: str, *, replace: bool) -> None:
    """Be the relay of ``bridge`` until told to end; ``channel`` leads to the daemon, ``log`` has its file.

    ``empty`` is the path of an empty directory (kernel/privileges.py). If the namespace has a relay already,
    this process takes over its listening sockets (``replace``), or connects it with the daemon and returns at
    once. A relay that cannot run tells the daemon why (Failed).
    """
    log.fields = {"bridge": bridge}
    try:
        netns.enter(BridgeNames(bridge).namespace)
        # A batch process does not interrupt a running one when it wakes up (sched(7)). On a busy host more
        # guests have come by the time it runs, and share one message to the worker; on one with a processor
        # to spare it runs at once. Measured: a third more new connections.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        failed = privileges.drop(empty, seccomp.RELAY)
        predecessor = _meet_predecessor()
        if predecessor is not None and not replace:
            with predecessor:
                send(predecessor, wire.Adopt())
                send(channel, wire.Adopted(), [predecessor.fileno()])
            return
        set_title(BridgeNames(bridge).relay_title)
        for line in failed:
            log.warning("a right that the relay does not need could not be given up: %s", line)
        relay = Relay(BridgeNames(bridge).veth_namespace)
        if predecessor is not None:
            relay.take_over(predecessor)
        relay.serve(channel)
    except (KernelError, OSError) as error:
        log.error("relay cannot run: %s", error)
        with suppress(OSError):
            send(channel, wire.Failed(str(error)))


def _meet_predecessor() -> socket.socket | None:
    """Return a connection to the relay that this namespace has already; None if it has none."""
    meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        meeting.connect(RENDEZVOUS)
    except ConnectionRefusedError:
        meeting.close()
        return None
    meeting.settimeout(PATIENCE)
    return meeting


class Relay:
    """The loop in the namespace."""

    def __init__(self, link: str = "") -> None:
        self._loop = Loop()
        self._channel: socket.socket | None = None
        self._channel_mask = 0
        self._listening = Listening(self._loop, log, self._accepted, link)
        self._passing = Passing(self._loop, log, self._settle, self._tell_behind, link)
        self._report: wire.Report | None = None  # due, but the daemon is behind
        self._copied: set[ServiceKey] = set()  # keys of whose listening sockets the daemon has copies
        self._rendezvous = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    # Life

    def take_over(self, predecessor: socket.socket) -> None:
        """Get the predecessor's listening sockets, and with them the guests that wait there."""
        with predecessor:
            try:
                send(predecessor, wire.Takeover())
                while delivery := receive(predecessor):
                    with delivery:
                        self._inherit(delivery)
            except (OSError, ProtocolError) as error:
                log.warning("the relay before this one did not hand everything over: %s", error)

    def serve(self, channel: socket.socket) -> None:
        """Run until told to end. Raises KernelError when another relay serves this namespace."""
        try:
            self._rendezvous.bind(RENDEZVOUS)
        except OSError as error:
            raise KernelError(f"another relay serves this namespace: {error.strerror}") from None
        self._rendezvous.listen()
        self._loop.add(self._rendezvous.fileno(), READ, self)
        self._loop.on_signal(signal.SIGTERM, self._loop.stop)
        self._loop.on_signal(signal.SIGINT, self._loop.stop)
        log.info("relay started")
        try:
            self._greet(channel)
        except OSError as error:
            # The daemon ended meanwhile. Guests wait at the sockets of the relay before, until the next one.
            if not self._listening.keys:
                raise
            log.warning("daemon lost: %s", error.strerror)
        self._loop.run()
        log.info("relay ended")

    def on_event(self, fd: int, mask: int) -> None:
        if fd == self._rendezvous.fileno():
            self._receive_visitor()
        else:
            self._on_channel(mask)

    def _inherit(self, delivery: Delivery) -> None:
        match delivery.message:
            case wire.Accepted(key):
                self._passing.take(Batch(key, (b"",) * len(delivery.fds), delivery.take()))
            case wire.Listeners() as message:
                self._keep(message, delivery)
            case _:
                raise _unexpected(delivery)

    def _keep(self, message: wire.Listeners, delivery: Delivery) -> None:
        """Go on with the listening sockets of a relay before this one."""
        if len(message.keys) != len(delivery.fds):
            raise _unexpected(delivery)
        for key in message.keys:
            with ExitStack() as owned:
                listener = owned.enter_context(delivery.take_socket())
                if not _waits(listener, key):
                    raise ProtocolError(f"a socket for port {key.in_words} that does not listen")
                if key.protocol == TCP:
                    tcp.set_options(listener, near=True)  # those of an older version may differ
                    tcp.watch_peer(listener)
                    tcp.reset_on_close(listener)
                owned.pop_all()
            self._listening.keep(key, listener)

    def _settle(self) -> None:
        """Bring what is polled in line with the state."""
        self._listening.accept_while(self._passing.room)
        if self._channel is not None:
            mask = READ | WRITE if self._report is not None else READ
            if mask != self._channel_mask:
                self._loop.modify(self._channel.fileno(), mask)
                self._channel_mask = mask

    # The workers

    def _accepted(self, batch: Batch) -> None:
        self._passing.take(batch)
        self._settle()

    def _tell_behind(self, place: int) -> None:
        if self._channel is not None:
            with suppress(OSError):  # it is told again while it is so
                send(self._channel, wire.Behind(place))

    # The daemon

    def _greet(self, channel: socket.socket) -> None:
        """Follow the daemon at the other end of ``channel`` from now on."""
        channel.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as proof:
            send(channel, wire.Hello(wire.VERSION), [proof.fileno()])
        self._channel = channel
        self._copied.clear()
        self._channel_mask = READ
        self._loop.add(channel.fileno(), READ, self)
        self._settle()

    def _on_channel(self, mask: int) -> None:
        try:
            if mask & WRITE and self._channel is not None:
                self._tell(self._channel)
            if mask & ~WRITE and self._channel is not None:
                self._hear(self._channel)
        except (OSError, ProtocolError) as error:
            self._forget_daemon(str(error))

    def _hear(self, channel: socket.socket) -> None:
        delivery = receive(channel)
        if delivery is None:
            self._forget_daemon("it has ended")
            return
        with delivery:  # closes descriptors that are not taken
            match delivery.message:
                case wire.Workers() if delivery.fds:
                    self._passing.use([delivery.take_socket() for _ in range(len(delivery.fds))])
                case wire.Listen(generation, log_level, keys):
                    log.use_style(log_level)
                    self._report = wire.Report(generation, self._listening.listen(keys))
                    self._tell(channel)
                case wire.Listeners() as message:
                    self._keep(message, delivery)
                    self._copied.update(message.keys)
                case wire.LogFile() if len(delivery.fds) == 1:
                    log.use(delivery.take()[0])
                case wire.Quit():
                    self._loop.stop()
                    self._passing.give_up()
                case _:
                    raise _unexpected(delivery)

    def _tell(self, channel: socket.socket) -> None:
        """Send the report that is due, after copies of new listening sockets.

        With these another relay can go on. All is kept for later while the daemon is behind.
        """
        if self._report is not None:
            with suppress(BlockingIOError):
                self._copied.intersection_update(self._listening.keys)
                for message, fds in self._listening.messages(COPIES_AT_ONCE, tuple(self._copied)):
                    send(channel, message, fds)
                    self._copied.update(message.keys)
                send(channel, self._report)
                self._report = None
        self._settle()

    def _forget_daemon(self, why: str) -> None:
        log.warning("daemon lost: %s", why)
        if self._channel is not None:
            self._loop.close_later(self._channel)
            self._channel = None
            self._report = None
        self._settle()

    # Visitors at the rendezvous

    def _receive_visitor(self) -> None:
        """Do what one visitor asks for. Ours send their message at once; others are turned away."""
        visitor, _ = self._rendezvous.accept()
        visitor.settimeout(PATIENCE)
        try:
            delivery = receive(visitor)
            if delivery is not None:
                with delivery:
                    match delivery.message:
                        case wire.Adopt():
                            self._forget_daemon("a new one has come")
                            self._greet(visitor)
                            return
                        case wire.Takeover():
                            self._hand_over(visitor)
                        case _:
                            raise _unexpected(delivery)
        except (OSError, ProtocolError) as error:
            log.warning("a visitor at the rendezvous was refused: %s", error)
        visitor.close()

    def _hand_over(self, successor: socket.socket) -> None:
        """Give the listening sockets to the successor, and end."""
        self._rendezvous.close()
        self._loop.stop()
        # The listening sockets first: of all guests, few are among those that wait here.
        for message, fds in self._listening.messages(wire.MAX_DESCRIPTORS):
            send(successor, message, fds)
        # Events that were fetched with this one may still be handled: no worker must get these guests as
        # well.
        for batch in self._passing.hand_over():
            try:
                send(successor, batch.message, batch.fds)
            except OSError as error:
                log.warning("%d guests that waited are reset: %s", len(batch.fds), error.strerror)
                batch.reset()
            else:
                batch.close()
        log.info("a new relay took over")


def _waits(listener: socket.socket, key: ServiceKey) -> bool:
    """Whether a socket is of the key's protocol and IP version, and waits for guests."""
    if listener.family != (socket.AF_INET6 if ":" in key.address else socket.AF_INET):
        return False
    return tcp.listens(listener) if key.protocol == TCP else listener.proto == socket.IPPROTO_UDP


def _unexpected(delivery: Delivery) -> ProtocolError:
    kind = type(delivery.message).__name__
    return ProtocolError(f"unexpected {kind} with {len(delivery.fds)} descriptors")
