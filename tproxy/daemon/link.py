"""A link: the channel between the daemon and one relay, and what is known of the relay behind it.

Theory of operation. Messages come in this order (``relay.wire``):

1. Born, with the pidfd of the process, while it still is our own code with all rights. By it the daemon ends
   the process. Nothing that a relay says later can make the daemon signal another one.
2. Hello, with a socket that was made in the relay's namespace. The kernel tells which namespace that is; it
   must be the bridge's own.
   Or Adopted, with a channel to a relay that was there already: the link goes on with that channel instead of
   its own, and Hello comes there.
3. The daemon sends Workers, with the data channels on which the relay passes sockets on, and Listen with all
   wanted ports whenever these change. The relay answers with Listeners, which are copies of its new listening
   sockets, and with Report. A relay that takes the place of one that died gets such copies with Listeners,
   before Listen.
4. Behind, when a worker does not take sockets.

Anything else ends the link. A link decides nothing more: it reports to its owner (``Owner``).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Protocol

from tproxy.daemon.budget import Budget
from tproxy.errors import ProtocolError
from tproxy.kernel import netns
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.kernel.netns import NamespaceId
from tproxy.log import limit
from tproxy.model import TCP, ServiceKey
from tproxy.names import BridgeNames
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, receive, send

log = logging.getLogger(__name__)

# Seconds until a relay is asked again for ports that it could not have: another program may have let them go.
PORT_RETRY = 5.0

# Letters of a relay's reason that are believed.
REASON_LENGTH = 200

_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)


class Owner(Protocol):
    """Gets the reports of a link (``relays.Relays``)."""

    def greeted(self, link: Link) -> None:
        """The relay has proved that it is in the bridge's namespace, and waits for Listen."""

    def reported(self, link: Link, before: dict[ServiceKey, int]) -> None:
        """``link.problems`` are as of now; they were ``before``."""

    def accepted_before(self, link: Link, message: wire.Accepted, fds: list[int]) -> None:
        """A relay of version 1 had accepted guests while it had no daemon; ``fds`` stay the link's."""

    def copied(self, link: Link, key: ServiceKey, listener: socket.socket) -> None:
        """The relay has given a copy of its listening socket, which is the owner's from now on."""

    def behind(self, link: Link, place: int) -> None:
        """The worker at this place in Workers takes no sockets."""

    def ended(self, link: Link, reason: str) -> None:
        """The relay is gone, or is no relay of ours; the owner closes the link."""


class Link:
    """One relay as the daemon sees it."""

    def __init__(self, loop: Loop, bridge: str, channel: socket.socket, owner: Owner) -> None:
        self.bridge = bridge
        self.since = time.monotonic()
        self.pid = 0  # until Born or Adopted
        self.version = 0  # of its protocol, from Hello
        self.namespace: NamespaceId | None = None
        self.leaving = False
        self.killed = False
        self.trusted = True  # until it sends what no relay of ours would
        self.adopted = False  # whether it was there before this daemon
        self.adopted_at = 0.0  # by time.monotonic()
        self.warnings = limit.warnings()  # of what it sends: a relay that was taken over may send anything
        self._loop = loop
        self._channel = channel
        self._owner = owner
        self.cookie: int | None = None  # of the namespace
        self._pidfd = -1
        self._asked: wire.Listen | None = None
        self._report: wire.Report | None = None
        self._budget = Budget(self.since)
        self._retry: Timer | None = None  # of ports that could not be had
        loop.add(channel.fileno(), READ, self)

    # What is known of the relay

    @property
    def greeted(self) -> bool:
        return self.namespace is not None

    @property
    def started(self) -> bool:
        """Whether it has ever reported."""
        return self._report is not None

    @property
    def settled(self) -> bool:
        """Whether it has done what it was last asked for."""
        return (
            self._asked is not None
            and self._report is not None
            and self._report.generation == self._asked.generation
        )

    @property
    def generation(self) -> int:
        """The number of the last Listen; 0 before the first."""
        return self._asked.generation if self._asked is not None else 0

    def has_reported(self, generation: int) -> bool:
        """Return whether it has reported on this Listen, or on a later one."""
        return self._report is not None and self._report.generation >= generation

    @property
    def runs(self) -> bool:
        """Whether its process computes, or waits for a processor or a disk (proc(5), /proc/PID/stat)."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("R", "D")
        except OSError:
            return False

    @property
    def problems(self) -> dict[ServiceKey, int]:
        """The errno of each port, by key, that it could not have, as last reported."""
        return self._report.problems if self._report is not None else {}

    # What the relay is told

    def listen(self, keys: tuple[ServiceKey, ...], log_level: int) -> None:
        """Ask for exactly these ports, unless that was asked for already and there are no problems."""
        asked = self._asked
        if asked is None or (asked.keys, asked.log_level) != (keys, log_level) or self.problems:
            self._ask(keys, log_level)

    def use_workers(self, channels: list[socket.socket]) -> None:
        """Let the relay pass sockets on by these channels, which stay the caller's."""
        self._send(wire.Workers(), *(each.fileno() for each in channels))

    def use_listeners(self, listeners: Mapping[ServiceKey, socket.socket]) -> None:
        """Let the relay go on with these listening sockets by key, which stay the caller's."""
        keys = tuple(listeners)
        for start in range(0, len(keys), wire.MAX_DESCRIPTORS):
            some = keys[start : start + wire.MAX_DESCRIPTORS]
            self._send(wire.Listeners(some), *(listeners[key].fileno() for key in some))

    def use_log(self, fd: int) -> None:
        """Let the relay log to this file; the descriptor stays the caller's."""
        self._send(wire.LogFile(), fd)

    def quit(self) -> None:
        """Tell the relay to end."""
        self.leaving = True
        self._send(wire.Quit())

    def kill(self) -> None:
        """Kill the relay's process, if it is known and there."""
        self.killed = True
        if self._pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Hear nothing more of the relay. It is not told to end, but sees that its daemon is gone."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.close_later(self._channel)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    # What the relay says

    def on_event(self, fd: int, mask: int) -> None:
        try:
            delivery = receive(self._channel)
            if delivery is not None:
                with delivery:
                    self._charge(delivery)
                    self._hear(delivery)
                return
            reason = "relay ended"
        except BlockingIOError:
            return
        except Exception as error:  # of any kind: what a relay says ends its own link, and never the daemon
            if not isinstance(error, OSError | ProtocolError):
                log.exception("bridge %s: unexpected error", self.bridge)
            self.trusted = isinstance(error, OSError)
            log.warning("bridge %s: relay lost: %s", self.bridge, error)
            reason = f"relay lost: {error}"
            self.kill()  # it must not be found and followed again
        self._owner.ended(self, reason)

    def _charge(self, delivery: Delivery) -> None:
        """Refuse more than a relay has to say: one report for each Listen, and few other messages."""
        if not self._budget.spend(len(delivery.fds), time.monotonic()):
            raise ProtocolError("it says too much")
        message = delivery.message
        reported = self._report.generation if self._report is not None else 0
        if isinstance(message, wire.Report) and message.generation <= reported:
            raise ProtocolError("it reports what nobody asked for")

    def _hear(self, delivery: Delivery) -> None:
        """Act on one message. The caller closes the descriptors that are not taken, whatever happens here."""
        message, count = delivery.message, len(delivery.fds)
        match message:
            case wire.Born(pid) if count == 1 and not self.pid:
                self.pid, self._pidfd = pid, delivery.take()[0]
            case wire.Hello(version) if count == 1 and not self.greeted:
                self._greet(version, delivery)
            case wire.Adopted() if count == 1 and not self.greeted:
                self._adopt(delivery)
            case wire.Report() if self.greeted:
                self._note(message)
            case wire.Listeners(keys) if self.greeted and len(keys) == count:
                for key in keys:
                    self._take_copy(key, delivery)
            case wire.Behind(place) if self.greeted:
                self._owner.behind(self, place)
            case wire.Accepted() if self.greeted and self.version == 1:
                self._owner.accepted_before(self, message, delivery.fds)
            case wire.Failed(reason):
                self._owner.ended(self, reason[:REASON_LENGTH].encode("unicode_escape").decode())
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__} with {count} descriptors")

    def _greet(self, version: int, delivery: Delivery) -> None:
        with delivery.take_socket() as proof:
            namespace = netns.of_socket(proof.fileno())
            if namespace != netns.identify(BridgeNames(self.bridge).namespace):
                raise ProtocolError("it is in another namespace than the bridge's")
            cookie = netns.cookie(proof)
        self.version, self.namespace, self.cookie = version, namespace, cookie
        if self.leaving:
            self._send(wire.Quit())  # again: the relay has not got what was sent on the channel before
        else:
            self._owner.greeted(self)

    def _adopt(self, delivery: Delivery) -> None:
        """Go on with a relay that was there already, on a channel of its own."""
        with ExitStack() as owned:
            channel = owned.enter_context(delivery.take_socket())
            channel.setblocking(False)
            # From the kernel, as the relay may hang and never say Hello: then it is killed.
            peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid = _CREDENTIALS.unpack(peer)[0]
            pidfd = os.pidfd_open(pid)
            owned.callback(os.close, pidfd)
            # The channel may have been made by any process, even this one.
            if netns.of_process(pid) != netns.identify(BridgeNames(self.bridge).namespace):
                raise ProtocolError("its channel leads into another namespace than the bridge's")
            self._loop.add(channel.fileno(), READ, self)
            owned.pop_all()
        self._loop.close_later(self._channel)
        self._channel = channel
        self.adopted, self.adopted_at = True, time.monotonic()
        if self._pidfd >= 0:
            os.close(self._pidfd)  # of the process that brought the channel, and ends now
        self.pid, self._pidfd = pid, pidfd

    def _take_copy(self, key: ServiceKey, delivery: Delivery) -> None:
        """Take the next socket, if it listens as a relay of this bridge may be asked to."""
        with ExitStack() as owned:
            listener = owned.enter_context(delivery.take_socket())
            if (
                self._asked is not None
                and key in self._asked.keys
                and listener.family == (socket.AF_INET6 if ":" in key.address else socket.AF_INET)
                and _waits(listener, key)
                and listener.getsockname()[:2] == (key.address, key.port)
                and netns.of_socket(listener.fileno()) == self.namespace
            ):
                self._owner.copied(self, key, listener)
                owned.pop_all()

    def _note(self, report: wire.Report) -> None:
        if report.generation > self.generation:
            raise ProtocolError("it reports what it was not asked for")
        before = self.problems
        self._report = report
        if self._retry is not None:
            self._retry.cancel()
        if report.problems:
            self._retry = self._loop.call_later(PORT_RETRY, self._ask_again)
        self._owner.reported(self, before)

    def _ask_again(self) -> None:
        if self._asked is not None and self.settled and self.problems and not self.leaving:
            self._ask(self._asked.keys, self._asked.log_level)

    def _ask(self, keys: tuple[ServiceKey, ...], log_level: int) -> None:
        generation = self._asked.generation + 1 if self._asked is not None else 1
        self._asked = wire.Listen(generation, log_level, keys)
        self._send(self._asked)

    def _send(self, message: wire.Message, *fds: int) -> None:
        # If the relay is gone, the end of its channel shows it; if it does not read, a timer of the owner
        # does.
        with suppress(OSError):
            send(self._channel, message, fds)


def _waits(listener: socket.socket, key: ServiceKey) -> bool:
    """Whether a socket is of the key's protocol, and waits for guests."""
    if key.protocol == TCP:
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return listener.proto == socket.IPPROTO_TCP and bool(listening)
    return listener.proto == socket.IPPROTO_UDP
