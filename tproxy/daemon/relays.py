"""The daemon's side of the relays: start, prove, instruct, listen to, and look after them.

Theory of operation. A link is a relay as the daemon sees it: a channel, and what was said on it.
It begins with Hello, which brings a socket made in the relay's namespace. That the namespace is the
bridge's own, the kernel says, not the relay; and every socket that comes later must belong to that
same namespace. A link whose channel ends is replaced, sooner or later depending on how long it
lived; a link whose bridge has got another namespace under the same name is let go.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tproxy.daemon.catalog import Catalog
from tproxy.datapath.connection import Connections
from tproxy.errors import ProtocolError
from tproxy.kernel import netns, tcp
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.kernel.netns import NamespaceId
from tproxy.log import output
from tproxy.model import BridgeNames
from tproxy.relay import wire
from tproxy.relay.channel import receive, send
from tproxy.relay.relay import BATCH
from tproxy.relay.spawner import Order, Spawner

log = logging.getLogger(__name__)

# A relay that lived this long has not failed at starting; the next one comes at once (seconds).
SETTLED = 10.0
RETRY_FIRST, RETRY_MOST = 0.1, 5.0

# How long a relay may take to end before it is killed, in seconds.
PATIENCE = 3.0

# How long one may take to say Hello, in seconds; a busy host that starts hundreds at once takes some.
GREETING = 30.0

_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)


@dataclass
class Absence:
    """Why a wanted relay is not there now, and when it will be tried again."""

    reason: str
    delay: float
    retry: Timer


class Link:
    """One relay."""

    def __init__(self, bridge: str, channel: socket.socket, after: Absence | None) -> None:
        self.bridge = bridge
        self.channel = channel
        self.after = after  # the failed attempt before this one
        self.since = time.monotonic()
        self.pid = 0
        self.namespace: NamespaceId | None = None
        self.cookie: int | None = None
        self.asked: wire.Listen | None = None
        self.report: wire.Report | None = None
        self.retry: Timer | None = None  # of ports that could not be had

    @property
    def greeted(self) -> bool:
        return self.namespace is not None

    @property
    def settled(self) -> bool:
        """It has done what it was last asked."""
        return (
            self.asked is not None
            and self.report is not None
            and self.report.generation == self.asked.generation
        )

    def owns(self, sock: socket.SocketType) -> bool:
        """Whether the kernel says that the socket is of this link's namespace."""
        if self.cookie is not None:
            return netns.cookie(sock) == self.cookie
        return netns.of_socket(sock.fileno()) == self.namespace


class Supervisor:
    """All links. ``on_change`` is called whenever a question about them may have a new answer."""

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        catalog: Catalog,
        connections: Connections,
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._spawner = spawner
        self._catalog = catalog
        self._connections = connections
        self._on_change = on_change
        self._links: dict[str, Link] = {}
        self._absent: dict[str, Absence] = {}
        self._leaving: set[Link] = set()
        self._handlers: dict[int, Link] = {}
        self._generation = 0
        self._full = False
        self._draining = False
        self._max_connections = 0

    # What is wanted

    def ensure(self, bridge: str, *, replace: bool = False) -> None:
        """Have a relay for the bridge, in its namespace as it is now, listening as the catalog says."""
        link = self._links.get(bridge)
        if (
            link is not None
            and link.greeted
            and link.namespace != netns.identify(BridgeNames(bridge).namespace)
        ):
            log.info("bridge %s has a new namespace", bridge)
            self._let_go(link)
            link = None
        if link is None:
            self._spawn(bridge, replace=replace)
        elif link.greeted:
            self._instruct(link)

    def dismiss(self, bridge: str) -> None:
        """Have no relay for the bridge."""
        absence = self._absent.pop(bridge, None)
        if absence is not None:
            absence.retry.cancel()
        link = self._links.get(bridge)
        if link is not None:
            self._let_go(link)

    def drain(self) -> None:
        """Make no relays any more: a successor does. Those that are there end when it has taken over."""
        self._draining = True
        for bridge in list(self._absent):
            self.dismiss(bridge)

    # What is

    @property
    def bridges(self) -> set[str]:
        return set(self._links) | set(self._absent)

    @property
    def pids(self) -> set[int]:
        return {link.pid for link in self._links.values() if link.pid}

    def settled(self, bridge: str) -> bool:
        """Whether all that was asked for the bridge is done, or known to have failed."""
        if any(link.bridge == bridge for link in self._leaving):
            return False
        link = self._links.get(bridge)
        return link is None or link.settled

    def problem(self, bridge: str, port: int) -> str:
        """Why a port does not listen; empty when it does."""
        link = self._links.get(bridge)
        if link is None:
            absence = self._absent.get(bridge)
            return absence.reason if absence else "no relay"
        if link.report is None:
            return "relay is starting"
        number = link.report.problems.get(port)
        return os.strerror(number) if number else ""

    def pid(self, bridge: str) -> int | None:
        link = self._links.get(bridge)
        return link.pid or None if link else None

    def signal(self, number: int) -> None:
        """Send a signal to all relays."""
        for link in self._links.values():
            if link.pid:
                with suppress(ProcessLookupError):
                    os.kill(link.pid, number)

    # Making links

    def _spawn(self, bridge: str, *, replace: bool) -> None:
        name = BridgeNames(bridge).namespace
        previous = self._absent.pop(bridge, None)
        if previous is not None:
            previous.retry.cancel()
        if netns.identify(name) is None:
            self._miss(bridge, f"namespace {name} does not exist", previous)
            return
        try:
            channel = self._spawner.spawn(Order(bridge, replace, output.level()))
        except OSError as error:
            self._miss(bridge, f"cannot start a relay: {error.strerror}", previous)
            return
        link = Link(bridge, channel, previous)
        self._links[bridge] = link
        self._watch(link)
        self._loop.call_later(GREETING, lambda: self._give_up(link))

    def _watch(self, link: Link) -> None:
        self._handlers[link.channel.fileno()] = link
        self._loop.add(link.channel.fileno(), self._mask(link), self)

    def _unwatch(self, link: Link) -> None:
        del self._handlers[link.channel.fileno()]
        self._loop.close_later(link.channel)

    def _miss(self, bridge: str, reason: str, previous: Absence | None) -> None:
        """Note why there is no relay, and try again later."""
        delay = min(previous.delay * 2, RETRY_MOST) if previous else RETRY_FIRST
        if previous is None or previous.reason != reason:
            log.error("bridge %s: %s", bridge, reason)
        retry = self._loop.call_later(delay, lambda: self._spawn(bridge, replace=False))
        self._absent[bridge] = Absence(reason, delay, retry)
        self._on_change()

    def _let_go(self, link: Link) -> None:
        """Tell a relay to end; it is killed if it does not."""
        self._links.pop(link.bridge, None)
        self._leaving.add(link)
        self._loop.modify(link.channel.fileno(), READ)
        with suppress(OSError):
            send(link.channel, wire.Quit())
        self._loop.call_later(PATIENCE, lambda: self._kill(link))

    def _give_up(self, link: Link) -> None:
        """Do without a relay that hangs: it would be joined again and again, and waited for for ever."""
        if link.greeted or not (self._links.get(link.bridge) is link or link in self._leaving):
            return
        log.warning("bridge %s: relay does not answer; killed", link.bridge)
        if link.pid:
            with suppress(ProcessLookupError):
                os.kill(link.pid, signal.SIGKILL)
        self._ended(link, "relay did not answer")

    def _kill(self, link: Link) -> None:
        if link in self._leaving and link.pid:
            log.warning("bridge %s: relay %d does not end; killed", link.bridge, link.pid)
            with suppress(ProcessLookupError):
                os.kill(link.pid, signal.SIGKILL)

    # What relays say

    def on_event(self, fd: int, mask: int) -> None:
        link = self._handlers[fd]
        if mask == READ and not self._mask(link) & READ:
            return  # since this batch of events was fetched, another relay's guests have filled the place
        try:
            received = receive(link.channel)
            if received is None:
                self._ended(link, "relay ended")
            else:
                self._hear(link, *received)
        except BlockingIOError:
            pass
        except (OSError, ProtocolError) as error:
            log.warning("bridge %s: relay lost: %s", link.bridge, error)
            self._ended(link, f"relay lost: {error}")

    def _hear(self, link: Link, message: wire.Message, fds: list[int]) -> None:
        socks = [socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd) for fd in fds]
        match message:
            case wire.Accepted(port, peers) if link.greeted and len(peers) == len(socks):
                self._take(link, port, peers, socks)
                return
            case wire.Hello(version, pid) if len(socks) == 1:
                self._greet(link, version, pid, socks[0])
            case wire.Adopted() if len(fds) == 1:
                self._unwatch(link)
                link.channel = socket.socket(fileno=socks[0].detach())
                link.channel.setblocking(False)
                peer = link.channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                link.pid = _CREDENTIALS.unpack(peer)[0]  # who listened there: it may never say so itself
                self._watch(link)
            case wire.Report() if link.greeted:
                self._note(link, message)
            case wire.Failed(reason):
                self._ended(link, reason)
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__} of {len(fds)}")
        for sock in socks:
            sock.close()

    def _greet(self, link: Link, version: int, pid: int, proof: socket.SocketType) -> None:
        namespace = netns.of_socket(proof.fileno())
        if namespace != netns.identify(BridgeNames(link.bridge).namespace):
            raise ProtocolError("it is in another namespace than the bridge's")
        link.pid, link.namespace, link.cookie = pid, namespace, netns.cookie(proof)
        if link in self._leaving:
            with suppress(OSError):
                send(link.channel, wire.Quit())
        elif version != wire.VERSION:
            log.info("bridge %s: relay %d is of another version", link.bridge, pid)
            self._let_go(link)
            if not self._draining:
                self._spawn(link.bridge, replace=True)
        else:
            self._instruct(link)

    def _instruct(self, link: Link) -> None:
        log_level = output.level()
        ports = self._catalog.ports(link.bridge)
        asked = link.asked
        if (
            asked is not None
            and (asked.ports, asked.log_level) == (ports, log_level)
            and not (link.report and link.report.problems)
        ):
            return
        self._generation += 1
        link.asked = wire.Listen(self._generation, log_level, ports)
        # A relay that is gone, or does not read, is noticed on its channel and by who waits for it.
        with suppress(OSError):
            send(link.channel, link.asked)

    def _note(self, link: Link, report: wire.Report) -> None:
        before = link.report.problems if link.report else {}
        link.report = report
        self._loop.modify(link.channel.fileno(), self._mask(link))
        for port, number in report.problems.items():
            why = f"cannot listen: {os.strerror(number)}"
            if before.get(port) != number:
                log.error("bridge %s: port %d %s", link.bridge, port, why)
            entry = self._catalog.find(link.bridge, port)
            if entry is not None:
                entry.failed(why)
        if link.retry is not None:
            link.retry.cancel()
        if report.problems:
            link.retry = self._loop.call_later(RETRY_MOST, lambda: self._try_ports_again(link))
        self._on_change()

    def _try_ports_again(self, link: Link) -> None:
        if self._links.get(link.bridge) is link and link.settled and link.report and link.report.problems:
            self._instruct(link)

    def _ended(self, link: Link, reason: str) -> None:
        self._unwatch(link)
        self._leaving.discard(link)
        if self._links.get(link.bridge) is link:
            del self._links[link.bridge]
            if not self._draining:
                self._replace(link, reason)
        self._on_change()

    def _replace(self, link: Link, reason: str) -> None:
        if link.greeted:
            log.warning("bridge %s: %s; starting another", link.bridge, reason)
        if time.monotonic() - link.since >= SETTLED:
            self._spawn(link.bridge, replace=False)
        else:
            self._miss(link.bridge, reason, link.after)

    # Connections

    def limit(self, max_connections: int) -> None:
        """Take no more connections than this; guests then wait in their relays' backlog."""
        self._max_connections = max_connections

    def _take(
        self,
        link: Link,
        port: int,
        peers: tuple[bytes, ...],
        socks: list[socket.SocketType],
    ) -> None:
        entry = self._catalog.find(link.bridge, port)
        for sock, peer in zip(socks, peers, strict=True):
            if entry is None or not link.owns(sock):
                log.warning("bridge %s: a connection to port %d is not for here", link.bridge, port)
                tcp.reset_on_close(sock)
                sock.close()
                continue
            self._connections.accept(entry, sock, peer)
        if len(self._connections) + BATCH > self._max_connections:
            self._hold_back()

    def _hold_back(self) -> None:
        """Hear of no more guests until connections have ended."""
        if not self._full:
            log.warning("%d connections are open: no more for now", len(self._connections))
            self._set_full(True)
            self._loop.call_later(RETRY_FIRST, self._look_for_room)

    def _look_for_room(self) -> None:
        if len(self._connections) + BATCH > self._max_connections:
            self._loop.call_later(RETRY_FIRST, self._look_for_room)
        else:
            self._set_full(False)

    def _set_full(self, full: bool) -> None:
        self._full = full
        for fd, link in self._handlers.items():
            self._loop.modify(fd, self._mask(link))

    def _mask(self, link: Link) -> int:
        """What to poll a relay's channel for. When full, only those that start or leave: somebody waits.

        That another one ends is told once, and heard behind the guests that it sent before.
        """
        coming_or_going = link.report is None or link in self._leaving
        return READ if coming_or_going or not self._full else select.EPOLLET
