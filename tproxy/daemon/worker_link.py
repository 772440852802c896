"""A worker as the daemon sees it: the channel to one worker process, and what is known of it.

What the worker cannot take yet waits in ``_outgoing``, with copies of the descriptors. ``Sync`` tells when it
has taken all; a worker that does not answer it within PATIENCE is killed. The process is known by its pidfd,
which it sent while it was still our own code (``spawner``), or, if it was there before this daemon, from the
kernel. So nothing that a worker says makes the daemon signal another process.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import time
from contextlib import suppress
from typing import Protocol

from tproxy.daemon.client import Json
from tproxy.daemon.unix_dialing import UnixDialing
from tproxy.datapath.counters import View, read_only
from tproxy.datapath.counts import Counts, EndpointState, LoopTimes
from tproxy.errors import ProtocolError
from tproxy.kernel.loop import READ, WRITE, Loop, Timer
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, receive, send_bytes
from tproxy.worker import orders

log = logging.getLogger(__name__)

# Seconds until a worker that does not answer is killed. A worker answers between two batches of events.
PATIENCE = 5.0

# Seconds that a worker may take to start. A busy host may need some of them.
GREETING = 30.0

_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)

# Messages that a worker has not taken. With so many it gets no answers to its dials of UNIX sockets.
MOST_OUTGOING = 256

# Seconds for which a worker may have guests of a UDP service refused without telling anew.
MOST_REFUSED = 60.0

Key = tuple[str, ServiceKey]  # with the bridge


class Owner(Protocol):
    """Gets the reports of a worker (``workers.Workers``)."""

    dialing: UnixDialing

    def greeted(self, worker: WorkerLink, version: int) -> None:
        """The worker is there, and speaks this version."""

    def changed(self) -> None:
        """``settled`` may have a new answer."""

    def cannot_reach(self, bridge: str, key: ServiceKey, seconds: float) -> None:
        """The worker says that no endpoint of a UDP service can be reached, as ``orders.Unreachable``."""

    def found_inlet(self, listener: socket.socket) -> None:
        """The worker has handed over a socket for streams from outside; it is the owner's from now on."""

    def found_absent(self, bridge: str, number: int) -> None:
        """The guest of a route is not there, as ``orders.Absent``."""

    def ended(self, worker: WorkerLink, reason: str) -> None:
        """The worker is gone; the owner closes the link."""


class WorkerLink:
    """One worker. ``meeting`` is the path of its meeting point."""

    def __init__(self, loop: Loop, channel: socket.socket, meeting: str, owner: Owner) -> None:
        self.since = time.monotonic()
        self.pid = 0
        self.draining = False
        self.counted = True  # whether status counts its connections
        self.ready = False
        self.adopted = False  # whether it was there before this daemon
        self._version = orders.VERSION
        self._held = False  # until its version is known
        self._loop = loop
        self._channel = channel
        self.meeting = meeting
        self._owner = owner
        self._pidfd = -1
        self._view: View | None = None
        self.counters = -1  # a descriptor of its counters, read-only
        self._outgoing: list[tuple[bytes, tuple[int, ...]]] = []
        self._asked = self._answered = 0  # numbers of Sync
        self._timer: Timer | None = None
        self.gone = False
        loop.add(channel.fileno(), READ, self)

    @property
    def settled(self) -> bool:
        """Whether all that it was told has taken effect."""
        return self._asked == self._answered

    @property
    def behind(self) -> bool:
        """Whether much of what it was told waits for it."""
        return len(self._outgoing) >= MOST_OUTGOING

    @property
    def understands(self) -> bool:
        """Whether it is of this version, as far as is known."""
        return self._version == orders.VERSION

    def tell(self, message: orders.Message, *fds: int) -> None:
        """Tell the worker something; ``fds`` stay the caller's.

        One of another version is told only what has the same form in all versions.
        """
        data = orders.encode(message)
        if self._version != orders.VERSION and data[:1] not in orders.IN_ALL_VERSIONS:
            return
        waits = self._held and not isinstance(message, (orders.Drain, orders.LogFile))
        if not waits and (self._held or not self._outgoing):
            try:
                send_bytes(self._channel, data, fds)
                return
            except BlockingIOError:
                self._loop.modify(self._channel.fileno(), READ | WRITE)
            except OSError:
                return  # it has ended, which its channel tells too
        self._outgoing.append((data, tuple(map(os.dup, fds))))

    def sync(self, *, count: bool = False) -> None:
        """Ask whether it has taken all; kill it if it does not answer."""
        if self._version != orders.VERSION:
            return
        self._asked += 1
        self.tell(orders.Sync(self._asked, count))
        if self._timer is None:
            self._judge_later()

    def adopt(self) -> None:
        """Learn from the kernel which process is at the other end of a meeting point.

        It may be of another version: nothing is sent before it has said so.
        """
        self._held = self.adopted = True
        peer = self._channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid = _CREDENTIALS.unpack(peer)[0]
        with suppress(OSError):
            self._pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def read(self) -> tuple[int, dict[Key, Counts]]:
        """Return its open connections and counts."""
        return self._view.read() if self._view is not None else (0, {})

    def loop(self) -> LoopTimes:
        """Return how long the turns of its event loop took."""
        return self._view.loop() if self._view is not None else LoopTimes()

    def states(self) -> dict[str, EndpointState]:
        """Return what it knows of endpoints, by address and port."""
        return self._view.states() if self._view is not None else {}

    def report(self) -> Json:
        """Return what ``tproxy status`` shows of it."""
        open_, counts = self.read()
        bridges: dict[str, int] = {}
        for (bridge, _), each in counts.items():
            bridges[bridge] = bridges.get(bridge, 0) + each.open
        return {
            "pid": self.pid,
            "draining": self.draining,
            "open": open_,
            "cpu_seconds": self.cpu_seconds,
            "bridges": [{"bridge": name, "open": bridges[name]} for name in sorted(bridges)],
        }

    @property
    def cpu_seconds(self) -> float:
        """Seconds of processor time that it has used (proc(5), /proc/PID/stat)."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Hear nothing more of it."""
        self.gone = True
        if self._timer is not None:
            self._timer.cancel()
        self._forget_outgoing()
        self._loop.close_later(self._channel)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self.counters >= 0:
            os.close(self.counters)
            self.counters = -1

    def forget_counts(self) -> None:
        """Give back the memory of its counts, which holds a descriptor."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def remove_meeting(self) -> None:
        with suppress(OSError):
            os.unlink(self.meeting)

    def on_event(self, fd: int, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & ~WRITE:
            self._hear()

    def _hear(self) -> None:
        try:
            delivery = receive(self._channel, _decode)
            if delivery is not None:
                with delivery:
                    self._note(delivery)
                return
            reason = "it has ended"
        except BlockingIOError:
            return
        except Exception as error:  # of any kind: what a worker says never ends the daemon
            if not isinstance(error, OSError | ProtocolError):
                log.exception("worker %d: unexpected error", self.pid)
            reason = str(error)
            self.kill()
        self._owner.ended(self, reason)

    def _note(self, delivery: Delivery) -> None:
        match delivery.message:
            case wire.Born(pid) if len(delivery.fds) == 1 and not self.pid:
                self.pid, self._pidfd = pid, delivery.take()[0]
            case orders.Ready(version, draining) if len(delivery.fds) == 1 and self.pid and not self.ready:
                if version == orders.VERSION:
                    self._view = View(delivery.fds[0])
                    with suppress(OSError):  # EMFILE
                        self.counters = read_only(delivery.fds[0])
                self._meet(version)
                self.ready = True
                self.draining |= draining  # this daemon may have told it to finish before it said Ready
                self._owner.greeted(self, version)
            case orders.Synced(number) if self._answered < number <= self._asked:
                self._answered = number
                self._owner.changed()
            case orders.Unreachable(bridge, key, seconds) if 0 <= seconds <= MOST_REFUSED:
                self._owner.cannot_reach(bridge, key, seconds)
            case orders.Inlet() if len(delivery.fds) == 1 and self.ready:
                self._owner.found_inlet(delivery.take_socket())
            case orders.Absent(bridge, number):
                self._owner.found_absent(bridge, number)
            case orders.Dial(_, seconds, _) if self.ready and 0 < seconds < float("inf"):
                self._owner.dialing.dial(self, delivery.message)
            case orders.HangUp(number):
                self._owner.dialing.hang_up(self, number)
            case other:
                raise ProtocolError(f"unexpected {type(other).__name__}")

    def _meet(self, version: int) -> None:
        """Send what had to wait for the version; only what has the same form in all, if it is another one."""
        self._version = version
        if version != orders.VERSION:
            outgoing, self._outgoing = self._outgoing, []
            for data, fds in outgoing:
                if data[:1] in orders.IN_ALL_VERSIONS:
                    self._outgoing.append((data, fds))
                else:
                    _close(fds)
            self._asked = self._answered = 0
        self._held = False
        if self._outgoing:
            self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            message, fds = self._outgoing[0]
            try:
                send_bytes(self._channel, message, fds)
            except BlockingIOError:
                self._loop.modify(self._channel.fileno(), READ | WRITE)
                return
            except OSError:
                self._forget_outgoing()  # it has ended, which its channel tells too
                break
            del self._outgoing[0]
            _close(fds)
        self._loop.modify(self._channel.fileno(), READ)

    def _forget_outgoing(self) -> None:
        for _, fds in self._outgoing:
            _close(fds)
        self._outgoing.clear()

    def _judge_later(self) -> None:
        asked = self._asked
        self._timer = self._loop.call_later(PATIENCE, lambda: self._judge(asked))

    def _judge(self, asked: int) -> None:
        self._timer = None
        if not self.ready and time.monotonic() - self.since < GREETING:
            self._judge_later()
        elif self._answered < asked:
            log.warning("worker %d does not answer; killed", self.pid)
            self.kill()
            self._owner.ended(self, "it did not answer")
        elif not self.settled:
            self._judge_later()


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def _decode(data: bytes) -> object:
    """Return a message of a worker, or of the process that is about to be one."""
    return wire.decode(data) if data[:1] == b"B" else orders.decode(data)
