"""All relays: each bridge that has a map gets one, which is started, replaced when it ends, and dismissed.

Theory of operation. The daemon knows a relay by its link (``link``). A bridge has one link; links that are
told to end are kept apart until they have ended. When the channel of a link ends, another relay is started:
at once if the relay lived for long, otherwise after a delay that doubles (``Absence``). Meanwhile guests wait
at copies of its listening sockets (``listener_copies``). A relay that does not report what it was asked for
hangs, and is killed; nothing waits for it longer than for any that died.

When a bridge's namespace is deleted, or is another one under the same name, its relay is told to end, the
connections are ended, and another relay is started when there is a namespace (``namespace_watch``).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tproxy.daemon.catalog import Catalog
from tproxy.daemon.link import Link
from tproxy.daemon.listener_copies import ListenerCopies
from tproxy.daemon.namespace_watch import NamespaceWatch
from tproxy.daemon.patience import Patience
from tproxy.daemon.spawner import Order, Spawner
from tproxy.daemon.wall_keeper import WallKeeper
from tproxy.daemon.workers import Workers
from tproxy.kernel import netns, tcp
from tproxy.kernel.loop import Loop, Timer
from tproxy.log import output
from tproxy.log.file import open_log
from tproxy.model import TCP, UDP, ServiceKey
from tproxy.names import BridgeNames
from tproxy.relay import wire

log = logging.getLogger(__name__)

# Seconds. A relay that lived this long has not failed at starting; the next one is started at once.
SETTLED = 10.0

# Seconds until the next attempt to start a relay; doubled with each failure.
RETRY_FIRST, RETRY_MOST = 0.1, 5.0

# Seconds that a relay may take to end before it is killed, and after that until it is written off.
PATIENCE = 3.0

# Bytes, with the kernel's overhead, of datagrams that may wait at the UDP socket of a service: some thousand
# small ones, or 25 of the largest. They wait while their worker is busy or replaced.
GATE_BYTES = 2 << 20
_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>


@dataclass
class Absence:
    """Why a bridge has no relay now, and when the next one is started."""

    reason: str
    delay: float  # seconds
    retry: Timer


class Relays:
    """The relays of all bridges; the owner of all links.

    ``on_change`` is called whenever one of the questions below may have a new answer.
    """

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        catalog: Catalog,
        workers: Workers,
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._spawner = spawner
        self._catalog = catalog
        self._workers = workers
        self._on_change = on_change
        self._walls = WallKeeper(loop)
        self._copies = ListenerCopies()
        self._namespaces = NamespaceWatch(loop, self.look)
        self._patience = Patience(loop, self._present, self._give_up)
        self._syns: dict[str, set[ServiceKey]] = {}  # listeners whose SYNs are kept, by bridge
        self._links: dict[str, Link] = {}
        self._leaving: set[Link] = set()
        self._absent: dict[str, Absence] = {}
        self._previous: dict[Link, Absence] = {}  # the failed attempt right before each link
        self._restarts: dict[str, int] = {}

    # What is wanted

    def ensure(self, bridge: str, *, replace: bool = False) -> None:
        """Have a relay for the bridge, in its namespace as it is now, listening as the catalog says.

        ``replace``: where a relay of an older daemon is found, start one in its place.
        """
        self._namespaces.begin()
        self._copies.keep(bridge, self._catalog.listeners(bridge))
        self._choose_syns(bridge)
        link = self._links.get(bridge)
        if link is not None and self._lost_namespace(link):
            link = None
        if link is None:
            self._spawn(bridge, replace=replace)
        elif link.greeted:
            self._instruct(link)
            self._walls.look([bridge])

    def dismiss(self, bridge: str) -> None:
        """Have no relay for the bridge."""
        absence = self._absent.pop(bridge, None)
        if absence is not None:
            absence.retry.cancel()
        link = self._links.get(bridge)
        if link is not None:
            self._let_go(link)
        self._copies.drop(bridge)
        self._syns.pop(bridge, None)
        self._restarts.pop(bridge, None)
        self._walls.forget(bridge)

    def look(self, bridge: str | None) -> None:
        """Look whether the bridge's namespace is still the same one; None: those of all bridges."""
        for link in list(self._links.values()):
            if bridge in (None, link.bridge) and self._lost_namespace(link):
                self._spawn(link.bridge, replace=False)
        for name, absence in self._absent.items():
            if bridge in (None, name):  # a name comes a moment before its namespace (netns.create)
                absence.retry.cancel()
                absence.delay = RETRY_FIRST
                absence.retry = self._retry(name, absence.delay)

    def refuse(self, bridge: str, key: ServiceKey, seconds: float) -> None:
        """Have the kernel refuse guests' datagrams for a service for so many seconds; 0: no more."""
        self._walls.refuse(bridge, key, seconds)

    def close(self) -> None:
        """Finish what was to be done soon."""
        self._walls.close()

    def regroup(self) -> None:
        """Give all relays new data channels: the number of workers has changed."""
        for link in self._links.values():
            if link.greeted:
                self._connect(link)

    # Questions

    @property
    def bridges(self) -> set[str]:
        return set(self._links) | set(self._absent)

    @property
    def pids(self) -> set[int]:
        return {link.pid for link in self._links.values() if link.pid}

    def settled(self, bridge: str) -> bool:
        """Return whether all that was asked for the bridge is done, or known to have failed."""
        if any(link.bridge == bridge for link in self._leaving):
            return False
        link = self._links.get(bridge)
        return link is None or link.settled

    def problem(self, bridge: str, key: ServiceKey) -> str:
        """Return why the port of a service does not listen; empty when it does."""
        link = self._links.get(bridge)
        if link is None:
            absence = self._absent.get(bridge)
            return absence.reason if absence else "no relay"
        if not link.started:
            return "relay is starting"
        number = link.problems.get(key.listener)
        return os.strerror(number) if number else ""

    def silent(self, bridge: str) -> list[ServiceKey] | None:
        """Return the keys of the ports that do not listen; None when none does."""
        link = self._links.get(bridge)
        return sorted(link.problems) if link is not None and link.started else None

    def restarts(self, bridge: str) -> int:
        """Return how often the relay of the bridge has ended by itself, and another one was started."""
        return self._restarts.get(bridge, 0)

    def pid(self, bridge: str) -> int | None:
        link = self._links.get(bridge)
        return link.pid or None if link else None

    def reopen_logs(self) -> None:
        for link in self._links.values():
            self._give_log(link)

    # Starting and ending relays

    def _spawn(self, bridge: str, *, replace: bool) -> None:
        name = BridgeNames(bridge).namespace
        previous = self._absent.pop(bridge, None)
        if previous is not None:
            previous.retry.cancel()
        if netns.identify(name) is None:
            self._miss(bridge, f"namespace {name} does not exist", previous)
            return
        log_file = open_log(BridgeNames(bridge).relay_log)
        try:
            channel = self._spawner.spawn(Order(bridge, replace, output.level()), log_file)
        except OSError as error:
            self._miss(bridge, f"cannot start a relay: {error.strerror}", previous)
            return
        finally:
            os.close(log_file)
        link = Link(self._loop, bridge, channel, self)
        self._links[bridge] = link
        if previous is not None:
            self._previous[link] = previous
        # While the relay starts. It listens to nothing before it is told to.
        self._walls.build(bridge, self._catalog.listeners(bridge), self._catalog.targets(bridge), again=True)
        self._patience.await_hello(link)

    def _miss(self, bridge: str, reason: str, previous: Absence | None) -> None:
        """Note why the bridge has no relay, and try again later."""
        delay = min(previous.delay * 2, RETRY_MOST) if previous else RETRY_FIRST
        if previous is None or previous.reason != reason:
            log.error("bridge %s: %s", bridge, reason)
        self._absent[bridge] = Absence(reason, delay, self._retry(bridge, delay))
        self._on_change()

    def _retry(self, bridge: str, delay: float) -> Timer:
        return self._loop.call_later(delay, lambda: self._spawn(bridge, replace=False))

    def _let_go(self, link: Link) -> None:
        """Tell a relay to end; kill it if it does not."""
        self._links.pop(link.bridge, None)
        self._leaving.add(link)
        link.quit()
        self._loop.call_later(PATIENCE, lambda: self._kill(link))

    def _kill(self, link: Link) -> None:
        if link in self._leaving and link.pid:
            log.warning("bridge %s: relay %d does not end; killed", link.bridge, link.pid)
            link.kill()

    def _give_up(self, link: Link, what: str) -> None:
        log.warning("bridge %s: relay does not %s; killed", link.bridge, what)
        link.kill()
        # When the kernel has ended it, and so closed its channel, another one is started; without that word
        # too, if it is one that even the kernel waits for.
        self._loop.call_later(PATIENCE, lambda: self._write_off(link, f"relay did not {what}"))

    def _write_off(self, link: Link, reason: str) -> None:
        if self._present(link):
            self.ended(link, reason)

    def _present(self, link: Link) -> bool:
        return self._links.get(link.bridge) is link or link in self._leaving

    def _lost_namespace(self, link: Link) -> bool:
        """Return whether the namespace is gone, or another one. Then nothing of ours keeps the old one."""
        if not link.greeted or link.namespace == netns.identify(BridgeNames(link.bridge).namespace):
            return False
        log.info("bridge %s has lost its namespace, or has another one", link.bridge)
        self._let_go(link)
        self._copies.drop(link.bridge)
        self._workers.abort(link.bridge)
        return True

    def _choose_syns(self, bridge: str) -> None:
        """Have the kernel keep the SYNs of the ports where it counts who is calling."""
        before = self._syns.get(bridge, set())
        wanted = {
            each.key.listener
            for each in self._catalog.services(bridge)
            if (each.introduced or each.key.network) and each.key.protocol == TCP
        }
        introduced = {key.port for key in wanted}
        wanted |= {
            key
            for key in self._catalog.listeners(bridge)
            if (key.protocol, ":" in key.address) == (TCP, True) and key.port in introduced
        }
        self._syns[bridge] = wanted
        for key in before ^ wanted:
            if (listener := self._copies.get(bridge, key)) is not None:
                _save_syn(listener, wanted=key in wanted)

    def tell_level(self) -> None:
        """Tell all relays the log level as it is now."""
        for link in self._links.values():
            if link.greeted:
                self._instruct(link)

    def _give_log(self, link: Link) -> None:
        fd = open_log(BridgeNames(link.bridge).relay_log)
        link.use_log(fd)
        os.close(fd)

    def _instruct(self, link: Link) -> None:
        self._walls.build(
            link.bridge, self._catalog.listeners(link.bridge), self._catalog.targets(link.bridge)
        )
        self._copies.keep(link.bridge, self._catalog.listeners(link.bridge))
        link.listen(self._catalog.listeners(link.bridge), output.level())
        if not link.settled:
            self._patience.await_report(link)

    def _connect(self, link: Link) -> None:
        """Give a relay a data channel to each worker."""
        try:
            channels = self._workers.channels(link.bridge, link.cookie)
        except OSError as error:  # EMFILE
            log.error("bridge %s: no channels to the workers: %s", link.bridge, error.strerror)
            return
        if channels:
            link.use_workers(channels)
        for each in channels:
            each.close()

    # What links tell (link.Owner)

    def greeted(self, link: Link) -> None:
        if link.version == wire.VERSION:
            if link.adopted:
                self._give_log(link)  # logs may have been rotated while there was no daemon
            self._connect(link)
            link.use_listeners(self._copies.of(link.bridge, link.namespace))
            self._instruct(link)
            return
        log.info("bridge %s: relay %d is of another version", link.bridge, link.pid)
        self._let_go(link)
        self._spawn(link.bridge, replace=True)

    def reported(self, link: Link, before: dict[ServiceKey, int]) -> None:
        # Had it got the copy of such a port, the port would listen. Without our copy it can try again.
        self._copies.keep(
            link.bridge, [key for key in self._catalog.listeners(link.bridge) if key not in link.problems]
        )
        for key, number in link.problems.items():
            why = f"cannot listen: {os.strerror(number)}"
            if before.get(key) != number and link.warnings.allows(time.monotonic()):
                log.error("bridge %s: port %s %s%s", link.bridge, key.in_words, why, link.warnings.suffix())
        self._on_change()

    def accepted_before(self, link: Link, message: wire.Accepted, fds: list[int]) -> None:
        self._workers.deliver(link.bridge, link.cookie, message, fds)

    def copied(self, link: Link, key: ServiceKey, listener: socket.socket) -> None:
        if key.protocol == UDP:
            _widen(listener)
            self._workers.take_gate(link.bridge, key, listener)
        else:
            _save_syn(listener, wanted=key in self._syns.get(link.bridge, ()))
        self._copies.add(link.bridge, link.namespace, key, listener)

    def behind(self, link: Link, place: int) -> None:
        self._workers.behind(place, link.bridge)

    def ended(self, link: Link, reason: str) -> None:
        link.close()
        self._leaving.discard(link)
        previous = self._previous.pop(link, None)
        if self._links.get(link.bridge) is link:
            del self._links[link.bridge]
            if not link.trusted:  # whoever made it misbehave may have done something to its sockets
                self._copies.drop(link.bridge)
            self._workers.let_go(link.bridge)
            self._restarts[link.bridge] = self._restarts.get(link.bridge, 0) + 1
            self._replace(link, reason, previous)
        self._on_change()

    def _replace(self, link: Link, reason: str, previous: Absence | None) -> None:
        if link.greeted:
            log.warning("bridge %s: %s; starting another", link.bridge, reason)
        bridge, first = link.bridge, previous is None
        if time.monotonic() - link.since >= SETTLED:
            self._spawn(bridge, replace=False)
        elif link.started and first:  # it could do its work; but if the next one dies soon as well, wait
            self._absent[bridge] = Absence(reason, RETRY_FIRST, self._retry(bridge, RETRY_FIRST))
            self._spawn(bridge, replace=False)
        else:
            self._miss(link.bridge, reason, previous)


def _save_syn(listener: socket.socket, *, wanted: bool) -> None:
    """Have the kernel keep the SYN of each connection, with the guest's MAC.

    The relay has the same socket; so it needs to know nothing of that.
    """
    with suppress(OSError):  # before Linux 5.10; workers then ask for the ARP entry
        tcp.save_syn(listener, wanted=wanted)


def _widen(bound: socket.socket) -> None:
    """Have room for more datagrams that wait than net.core.rmem_max allows: all guests share the socket."""
    with suppress(OSError):
        bound.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, GATE_BYTES)
