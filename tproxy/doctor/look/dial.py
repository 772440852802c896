"""Dials endpoints, all at the same time, as a worker does: from this namespace, and with a worker's user id.

Nothing is sent. Firewall rules for the host's own programs may depend on the user, so the sockets belong to
the user id of a worker where one runs. UNIX sockets are dialled as the daemon does it, with root's right to
pass the modes of files.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tproxy.datapath.this_host import met_itself
from tproxy.kernel.netns import LIBC
from tproxy.kernel.tcp import family
from tproxy.model import Endpoint, Service

AT_ONCE = 256  # sockets: few beside the 1,024 descriptors that any process may have
LONGEST = 10.0  # seconds: a command that looks has to come back, whatever connect_timeout says
_AGAIN = 1.0  # seconds for the comparison with root
_ALL = 30.0  # seconds for all endpoints


class Dialled(NamedTuple):
    """How dialling an endpoint ended: ``problem`` is "" if it accepted. ``seconds`` is how long that took."""

    problem: str
    seconds: float


def dial(services: Iterable[Service], worker: int | None) -> dict[Endpoint, Dialled]:
    """Dial the endpoints of these services, each once, within their connect_timeout.

    ``worker`` is the process whose user id the sockets have; None for root's. An endpoint that is left when
    the time for all is over is not in the result.
    """
    longest: dict[Endpoint, float] = {}
    for each in services:
        for endpoint in each.candidates:
            longest[endpoint] = max(longest.get(endpoint, 0.0), min(each.connect_timeout, LONGEST))
    found = _dial([each for each in longest.items() if each[0].is_unix])
    waiting, end = [each for each in longest.items() if not each[0].is_unix], time.monotonic() + _ALL
    while waiting and time.monotonic() < end:
        part, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        with as_user_of(worker):
            found |= _dial(part)
    if worker is not None:
        found |= _compared(found, longest)
    return found


def _compared(
    found: Mapping[Endpoint, Dialled], longest: Mapping[Endpoint, float]
) -> dict[Endpoint, Dialled]:
    """Dial what failed once more, as root: where that succeeds, a rule concerns the workers only."""
    failed = [
        (each, min(longest[each], _AGAIN))
        for each, dialled in found.items()
        if dialled.problem and not each.is_unix
    ]
    only = "for workers, and not for root: see the rules on OUTPUT"
    return {
        each: found[each]._replace(problem=f"{found[each].problem} {only}")
        for each, dialled in _dial(failed[:AT_ONCE]).items()
        if not dialled.problem
    }


def _dial(part: list[tuple[Endpoint, float]]) -> dict[Endpoint, Dialled]:
    found: dict[Endpoint, Dialled] = {}
    open_: dict[int, tuple[socket.socket, Endpoint, float]] = {}
    poller = select.poll()
    began = time.monotonic()
    try:
        for endpoint, seconds in part:
            sock = socket.socket(_family(endpoint), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            open_[sock.fileno()] = sock, endpoint, began + seconds
            number = sock.connect_ex(endpoint.path if endpoint.is_unix else endpoint)
            if number == errno.EINPROGRESS:
                poller.register(sock, select.POLLOUT)
            else:
                found[endpoint] = _ended(sock, endpoint, number, began)
        while len(found) < len(part):
            soonest = min(until for _, endpoint, until in open_.values() if endpoint not in found)
            for fd, _ in poller.poll(max(0.0, soonest - time.monotonic()) * 1000 + 1):
                sock, endpoint, _ = open_[fd]
                poller.unregister(fd)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found[endpoint] = _ended(sock, endpoint, number, began)
            now = time.monotonic()
            for fd, (_, endpoint, until) in open_.items():
                if endpoint not in found and until <= now:
                    poller.unregister(fd)
                    found[endpoint] = Dialled(f"does not answer within {until - began:g} s", now - began)
    finally:
        for sock, _, _ in open_.values():
            # Without lingering, so that no local port stays in TIME_WAIT for a minute.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
    return found


def _ended(sock: socket.socket, endpoint: Endpoint, number: int, began: float) -> Dialled:
    if number == 0 and not endpoint.is_unix and met_itself(sock.getsockname(), endpoint):
        number = errno.ECONNREFUSED
    words = {
        errno.ECONNREFUSED: "refuses the connection",
        errno.ETIMEDOUT: "does not answer",
        errno.ENOENT: "is missing: no server has made it",
        errno.EAGAIN: "has as many connections waiting as its server lets wait",
    }
    problem = words.get(number, f"is unreachable: {os.strerror(number)}") if number else ""
    return Dialled(problem, time.monotonic() - began)


def _family(endpoint: Endpoint) -> int:
    return socket.AF_UNIX if endpoint.is_unix else family(endpoint.address)


def command(endpoint: Endpoint, *, udp: bool = False) -> str:
    """Return the command with which an operator dials an endpoint, or sends it a datagram."""
    if endpoint.is_unix:
        return f"nc -zvU {shlex.quote(endpoint.path)}"
    return f"nc -zv{'u' if udp else ''} {endpoint.address} {endpoint.port}"


@contextmanager
def as_user_of(pid: int | None) -> Iterator[None]:
    """Have sockets belong to the user of a process; with root's rights for everything else (setfsuid(2))."""
    uid = 0
    if pid is not None:
        with suppress(OSError):
            uid = os.stat(f"/proc/{pid}").st_uid
    LIBC.setfsuid(uid)
    try:
        yield
    finally:
        LIBC.setfsuid(0)
