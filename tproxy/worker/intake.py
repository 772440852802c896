"""Takes sockets that a relay passes on, and checks each before anything is done with it.

A relay has a data channel for each worker. The daemon made the channel, and says which bridge it belongs to;
no message of a relay does. A relay that was taken over could pass on any socket that it has or makes. So the
kernel is asked what each one is: a TCP socket, connected, at the service address and port, of the
bridge's namespace. Before Linux 5.14 the kernel does not tell a process without privileges which namespace a
socket is of; there the channel alone proves the bridge.
"""

from __future__ import annotations

import errno
import select
import socket
import time

from tproxy.datapath.connections import Connections
from tproxy.datapath.target import Target
from tproxy.datapath.waiting import Divided
from tproxy.errors import ProtocolError
from tproxy.kernel import netns, tcp
from tproxy.kernel.loop import READ, Loop
from tproxy.log import limit
from tproxy.log.file import Log
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, receive, send
from tproxy.typed import Protocol
from tproxy.worker.admission import Admission


class Refused(Exception):
    """A socket is not what a relay may pass on; the text says why."""


class Owner(Protocol):
    """Knows the services, and is told when a channel has ended (``worker.Worker``)."""

    def find(self, bridge: str, key: ServiceKey) -> Target | Divided | None:
        """Return the target of a service; None if the bridge has no such service.

        Where networks have different services under this key: all of these.
        """

    def dialled(self, intake: Intake, delivery: Delivery) -> None:
        """The relay has answered a question (``ask``)."""

    def ended(self, intake: Intake) -> None:
        """The relay has closed the channel, or what it said cannot be used."""


class Intake:
    """One data channel. ``cookie`` is as in ``orders.Bridge``."""

    def __init__(
        self,
        bridge: str,
        cookie: int | None,
        channel: socket.socket,
        loop: Loop,
        log: Log,
        connections: Connections,
        admission: Admission,
        owner: Owner,
    ) -> None:
        self.bridge = bridge
        self.cookie = cookie
        self._channel = channel
        self._loop = loop
        self._log = log
        self._connections = connections
        self._admission = admission
        self._owner = owner
        self._warnings = limit.warnings()
        channel.setblocking(False)
        loop.add(channel.fileno(), self._mask(), self)

    def poll(self) -> None:
        """Bring what is polled in line with the state; to be called when ``admission.full`` has changed."""
        self._loop.modify(self._channel.fileno(), self._mask())

    def ask(self, message: wire.Dial) -> bool:
        """Ask the relay to dial a guest; return whether the question has left."""
        try:
            send(self._channel, message)
        except OSError:  # it is behind, or gone, which its channel tells too
            return False
        return True

    def close(self) -> None:
        # The daemon has a copy: sockets that were not received yet are for the worker after this one.
        self._loop.close_later(self._channel, shared=True)

    def on_event(self, fd: int, mask: int) -> None:
        if mask == READ and self._admission.full:
            return  # since these events were fetched, another bridge's guests have taken the room
        try:
            delivery = receive(self._channel)
        except BlockingIOError:
            return
        except ProtocolError as error:
            # The next message may be a good one. The relay would not notice the end of the channel, because
            # the daemon has a copy of this end.
            self._warn("a message of the relay is left out: %s", error)
            return
        except OSError as error:
            self._warn("relay's channel lost: %s", error)
            self._owner.ended(self)
            return
        if delivery is None:
            self._owner.ended(self)
            return
        with delivery:
            message = delivery.message
            if isinstance(message, wire.Accepted):
                self._accept(message.key, delivery)
            elif isinstance(message, wire.Dialled):
                self._owner.dialled(self, delivery)
            else:
                self._warn("unexpected %s from the relay", type(message).__name__)
        self._admission.check()

    def _accept(self, key: ServiceKey, delivery: Delivery) -> None:
        target = self._owner.find(self.bridge, key)
        family = tcp.family(key.address)
        for _ in range(len(delivery.fds)):
            try:
                guest = delivery.take_connection(family)
            except OSError as error:
                self._warn("descriptors for port %s closed: %s", key.in_words, error.strerror)
                return  # the delivery closes this one, and those behind it
            try:
                if target is None:
                    raise Refused("there is no such service")
                peer = self._check(guest, key)
            except Refused as error:
                self._warn("connection to port %s reset: %s", key.in_words, error)
                tcp.reset_on_close(guest)
                guest.close()
            except OSError:
                guest.close()  # the guest has reset the connection meanwhile
            else:
                if isinstance(target, Divided):
                    self._connections.waiting.admit(target, guest, peer)
                else:
                    self._connections.accept(target, guest, peer)

    def _check(self, sock: socket.SocketType, key: ServiceKey) -> tuple[str, int]:
        """Return the guest's address and port.

        Raises Refused, and OSError when the connection is no more.
        """
        try:
            if self.cookie is not None and netns.cookie(sock) != self.cookie:
                raise Refused("it is of another namespace")
            protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
            if protocol != socket.IPPROTO_TCP or sock.getsockname()[:2] != (key.address, key.port):
                raise Refused("it is no TCP connection to this port of the service address")
            peer: tuple[str, int] = sock.getpeername()[:2]
        except OSError as error:
            if error.errno == errno.ENOTCONN and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise
            raise Refused(f"it is not connected: {error.strerror}") from None
        return peer

    def _warn(self, message: str, *words: object) -> None:
        if self._warnings.allows(time.monotonic()):
            self._log.warning(f"bridge %s: {message}%s", self.bridge, *words, self._warnings.suffix())

    def _mask(self) -> int:
        """Return what to poll the channel for.

        While there is no room, the end of a channel is told once (EPOLLET, epoll(7)), and noticed after the
        guests that were passed on before it.
        """
        return select.EPOLLET if self._admission.full else READ
