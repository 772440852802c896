"""A link: the channel between the daemon and one relay, and what is known of the relay behind it.

Theory of operation. Messages come in this order (``relay.wire``):

1. Hello, with a socket that was made in the relay's namespace. The kernel tells which namespace that is; it
   must be the bridge's own, and every socket that comes later must belong to it.
   Or Adopted, with a channel to a relay that was there already: the link goes on with that channel instead of
   its own, and Hello comes there.
2. The daemon sends Listen with all wanted ports whenever these change. The relay answers with Report.
3. Accepted, with the sockets of guests, at any time after Hello.

Anything else ends the link. A link decides nothing more: it reports to its owner (``Owner``).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import time
from contextlib import ExitStack, suppress
from typing import Protocol

from tproxy.daemon.admission import Admission
from tproxy.errors import ProtocolError
from tproxy.kernel import netns
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.kernel.netns import NamespaceId
from tproxy.log import limit
from tproxy.model import BridgeNames
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, receive, send

log = logging.getLogger(__name__)

# Seconds until a relay is asked again for ports that it could not have: another program may have let them go.
PORT_RETRY = 5.0

_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)


class Owner(Protocol):
    """Gets the reports of a link (``relays.Relays``)."""

    def greeted(self, link: Link) -> None:
        """The relay has proved that it is in the bridge's namespace, and waits for Listen."""

    def reported(self, link: Link, before: dict[int, int]) -> None:
        """``link.problems`` are as of now; they were ``before``."""

    def connected(self, link: Link, port: int, peers: tuple[bytes, ...], delivery: Delivery) -> None:
        """Guests have connected to ``port``; ``delivery`` has a socket for each of ``peers``."""

    def ended(self, link: Link, reason: str) -> None:
        """The relay is gone, or is no relay of ours; the owner closes the link."""


class Link:
    """One relay as the daemon sees it. ``admission`` says whether there is room for more guests."""

    def __init__(
        self, loop: Loop, bridge: str, channel: socket.socket, owner: Owner, admission: Admission
    ) -> None:
        self.bridge = bridge
        self.since = time.monotonic()
        self.pid = 0  # until Hello or Adopted
        self.version = 0  # of its protocol, from Hello
        self.namespace: NamespaceId | None = None
        self.leaving = False
        self.warnings = limit.warnings()  # of what it sends: a relay that was taken over may send anything
        self._loop = loop
        self._channel = channel
        self._owner = owner
        self._admission = admission
        self._cookie: int | None = None  # of the namespace
        self._asked: wire.Listen | None = None
        self._report: wire.Report | None = None
        self._retry: Timer | None = None  # of ports that could not be had
        loop.add(channel.fileno(), self._mask(), self)

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
    def problems(self) -> dict[int, int]:
        """The errno of each port that it could not have, as last reported."""
        return self._report.problems if self._report is not None else {}

    def owns(self, sock: socket.SocketType) -> bool:
        """Return whether the kernel says that the socket is of this link's namespace."""
        if self._cookie is not None:
            return netns.cookie(sock) == self._cookie
        with suppress(OSError):  # EMFILE: this question takes a descriptor
            return netns.of_socket(sock.fileno()) == self.namespace
        return False  # not proved

    # What the relay is told

    def listen(self, ports: tuple[int, ...], log_level: int) -> None:
        """Ask for exactly these ports, unless that was asked for already and there are no problems."""
        asked = self._asked
        if asked is None or (asked.ports, asked.log_level) != (ports, log_level) or self.problems:
            self._ask(ports, log_level)

    def quit(self) -> None:
        """Tell the relay to end."""
        self.leaving = True
        self.poll()
        self._send(wire.Quit())

    def signal(self, number: int) -> None:
        """Send a signal to the relay's process, if it is known and there."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def poll(self) -> None:
        """Bring what is polled in line with the state; to be called when ``admission.full`` has changed."""
        self._loop.modify(self._channel.fileno(), self._mask())

    def close(self) -> None:
        """Hear nothing more of the relay. It is not told to end, but sees that its daemon is gone."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.close_later(self._channel)

    # What the relay says

    def on_event(self, fd: int, mask: int) -> None:
        if mask == READ and not self._mask() & READ:
            return  # since these events were fetched, another relay's guests have taken the room
        try:
            delivery = receive(self._channel)
            if delivery is not None:
                with delivery:
                    self._hear(delivery)
                return
            reason = "relay ended"
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("bridge %s: relay lost: %s", self.bridge, error)
            reason = f"relay lost: {error}"
        self._owner.ended(self, reason)

    def _hear(self, delivery: Delivery) -> None:
        """Act on one message. The caller closes the descriptors that are not taken, whatever happens here."""
        message, count = delivery.message, len(delivery.fds)
        match message:
            case wire.Accepted(port, peers) if self.greeted and len(peers) == count:
                self._owner.connected(self, port, peers, delivery)
            case wire.Hello(version, pid) if count == 1:
                self._greet(version, pid, delivery)
            case wire.Adopted() if count == 1:
                self._adopt(delivery)
            case wire.Report() if self.greeted:
                self._note(message)
            case wire.Failed(reason):
                self._owner.ended(self, reason)
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__} with {count} descriptors")

    def _greet(self, version: int, pid: int, delivery: Delivery) -> None:
        with delivery.take_socket() as proof:
            namespace = netns.of_socket(proof.fileno())
            if namespace != netns.identify(BridgeNames(self.bridge).namespace):
                raise ProtocolError("it is in another namespace than the bridge's")
            cookie = netns.cookie(proof)
        self.version, self.pid, self.namespace, self._cookie = version, pid, namespace, cookie
        if self.leaving:
            self._send(wire.Quit())  # again: the relay has not got what was sent on the channel before
        else:
            self._owner.greeted(self)

    def _adopt(self, delivery: Delivery) -> None:
        """Go on with a relay that was there already, on a channel of its own."""
        with ExitStack() as owned:
            channel = owned.enter_context(delivery.take_socket())
            channel.setblocking(False)
            # From the kernel, as the relay may hang and never say Hello: then it is killed by this pid.
            peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            self._loop.add(channel.fileno(), self._mask(), self)
            owned.pop_all()
        self._loop.close_later(self._channel)
        self._channel = channel
        self.pid = _CREDENTIALS.unpack(peer)[0]

    def _note(self, report: wire.Report) -> None:
        before = self.problems
        self._report = report
        self.poll()
        if self._retry is not None:
            self._retry.cancel()
        if report.problems:
            self._retry = self._loop.call_later(PORT_RETRY, self._ask_again)
        self._owner.reported(self, before)

    def _ask_again(self) -> None:
        if self._asked is not None and self.settled and self.problems and not self.leaving:
            self._ask(self._asked.ports, self._asked.log_level)

    def _ask(self, ports: tuple[int, ...], log_level: int) -> None:
        generation = self._asked.generation + 1 if self._asked is not None else 1
        self._asked = wire.Listen(generation, log_level, ports)
        self._send(self._asked)

    def _send(self, message: wire.Message) -> None:
        # If the relay is gone, the end of its channel shows it; if it does not read, a timer of the owner
        # does.
        with suppress(OSError):
            send(self._channel, message)

    def _mask(self) -> int:
        """Return what to poll the channel for.

        When there is no room, only relays that start or leave are heard: a command waits for them. The end of
        any other relay is told once (EPOLLET, epoll(7)), and noticed after the guests that it sent before.
        """
        starts_or_leaves = self._report is None or self.leaving
        return READ if starts_or_leaves or not self._admission.full else select.EPOLLET
