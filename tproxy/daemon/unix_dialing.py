"""Dials UNIX sockets for workers, which have no path in sight, and sends them the connected sockets.

A worker that was taken over could ask for any path. So only paths count that are endpoints of services which
are served now; anything else is refused, and logged. Which bridge a worker asks for is not asked: every
worker serves all bridges. The worker never has the socket before it is connected, so it cannot connect it
to anything else.

connect(2) of a UNIX socket is done at once, or fails at once; while the server's backlog is full, it is tried
again and again by a timer. The server sees the worker's user (``kernel.unix_sockets``).
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from tproxy.addresses import UNIX
from tproxy.kernel.loop import Loop
from tproxy.kernel.privileges import uid_of
from tproxy.kernel.unix_sockets import connect
from tproxy.log import limit
from tproxy.model import Service
from tproxy.worker import orders

log = logging.getLogger(__name__)

# Seconds until the next attempt while the backlog is full; doubled with each.
RETRY_FIRST, RETRY_MOST = 0.005, 0.1

# Dials of one worker that wait for room in backlogs; arbitrary. More fail.
MOST_WAITING = 1024

# Seconds. No connect_timeout is longer.
MOST_SECONDS = 300.0


class Worker(Protocol):
    """Who asks (``worker_link.WorkerLink``)."""

    pid: int
    gone: bool  # nothing can be told to it any more

    @property
    def behind(self) -> bool:
        """Whether it does not take what it is told."""

    def tell(self, message: orders.Message, *fds: int) -> None: ...


class UnixDialing:
    """The dials of all workers. ``services`` are those of each bridge; a list in it is never changed.

    Until it is ``complete``, a path that is in none of them waits: a new daemon has not read all maps yet,
    and workers of the one before ask already.
    """

    def __init__(self, loop: Loop, services: Mapping[str, Sequence[Service]]) -> None:
        self._loop = loop
        self._services = services
        self.complete = False
        self._known: dict[str, tuple[str, Sequence[Service]]] = {}  # by path: a bridge that has it
        self._waiting: dict[Worker, dict[int, float]] = {}  # by number: until when
        self._warnings = limit.warnings()

    def dial(self, worker: Worker, asked: orders.Dial) -> None:
        """Connect, and tell the worker what came of it, now or later."""
        if worker.behind:
            return
        waiting = self._waiting.setdefault(worker, {})
        if len(waiting) >= MOST_WAITING:
            worker.tell(orders.Dialled(asked.number, errno.EAGAIN))
            return
        waiting[asked.number] = time.monotonic() + min(asked.seconds, MOST_SECONDS)
        self._try(worker, asked, RETRY_FIRST)

    def hang_up(self, worker: Worker, number: int) -> None:
        """Do not go on with a dial."""
        self._forget(worker, number)

    def _try(self, worker: Worker, asked: orders.Dial, delay: float) -> None:
        until = self._waiting.get(worker, {}).get(asked.number)
        if until is None or worker.gone:
            self._forget(worker, asked.number)
            return
        sock, error = self._connect(worker, asked.path)
        if error == errno.EAGAIN:
            if time.monotonic() < until:
                again = min(delay * 2, RETRY_MOST)
                self._loop.call_later(delay, lambda: self._try(worker, asked, again))
                return
            error = errno.ETIMEDOUT
        self._forget(worker, asked.number)
        if sock is None:
            worker.tell(orders.Dialled(asked.number, error))
            return
        with sock:
            worker.tell(orders.Dialled(asked.number, 0), sock.fileno())

    def _connect(self, worker: Worker, path: str) -> tuple[socket.socket | None, int]:
        """Return the connected socket, or the errno: EAGAIN where another attempt may succeed."""
        if self._is_endpoint(path):
            return connect(path, uid_of(worker.pid))
        if not self.complete:
            return None, errno.EAGAIN
        if self._warnings.allows(time.monotonic()):
            log.warning(
                "worker %d asks for %a, which is no endpoint: refused%s",
                worker.pid,
                path[:200],
                self._warnings.suffix(),
            )
        return None, errno.EACCES

    def _forget(self, worker: Worker, number: int) -> None:
        waiting = self._waiting.get(worker)
        if waiting is not None:
            waiting.pop(number, None)
            if not waiting:
                del self._waiting[worker]

    def _is_endpoint(self, path: str) -> bool:
        bridge, services = self._known.get(path, ("", ()))
        if services and self._services.get(bridge) is services:
            return True
        address = UNIX + path
        for bridge, services in self._services.items():
            if any(address in (each.endpoint.address, *each.endpoints) for each in services):
                self._known[path] = bridge, services
                return True
        self._known.pop(path, None)
        return False
