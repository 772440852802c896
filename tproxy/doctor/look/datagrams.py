"""Asks UDP endpoints for a refusal, all at the same time, with datagrams without content, as a worker does.

An endpoint that is only silent cannot be told from one that has nothing to say
(``datapath.datagram_checks``).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterable

from tproxy.datapath.datagram_checks import REFUSAL
from tproxy.doctor.look.dial import AT_ONCE, Dialled, as_user_of
from tproxy.kernel.tcp import family
from tproxy.model import Endpoint, Service


def ask(services: Iterable[Service], worker: int | None) -> dict[Endpoint, Dialled]:
    """Ask the endpoints of these services, each once. ``problem`` is "" for one that does not refuse.

    ``worker`` is as in ``dial.dial``.
    """
    endpoints = list(dict.fromkeys(endpoint for each in services for endpoint in each.candidates))
    found: dict[Endpoint, Dialled] = {}
    for start in range(0, len(endpoints), AT_ONCE):
        with as_user_of(worker):
            found |= _ask(endpoints[start : start + AT_ONCE])
    return found


def _ask(endpoints: list[Endpoint]) -> dict[Endpoint, Dialled]:
    found: dict[Endpoint, Dialled] = {}
    waiting: dict[int, tuple[socket.socket, Endpoint]] = {}
    poller, began = select.poll(), time.monotonic()
    try:
        for endpoint in endpoints:
            sock = socket.socket(family(endpoint.address), socket.SOCK_DGRAM)
            waiting[sock.fileno()] = sock, endpoint
            try:
                sock.connect(endpoint)
                sock.send(b"", socket.MSG_DONTWAIT)
            except OSError as error:
                found[endpoint] = _ended(error, began)
            else:
                poller.register(sock, select.POLLIN)
        while len(found) < len(endpoints) and (left := began + REFUSAL - time.monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                poller.unregister(fd)
                sock, endpoint = waiting[fd]
                try:
                    sock.recv(1, socket.MSG_DONTWAIT)
                except OSError as error:
                    found[endpoint] = _ended(error, began)
                else:
                    found[endpoint] = Dialled("", time.monotonic() - began)
    finally:
        for sock, _ in waiting.values():
            sock.close()
    return {each: Dialled("", REFUSAL) for each in endpoints} | found


def _ended(error: OSError, began: float) -> Dialled:
    number = error.errno or errno.EIO
    words = "refuses datagrams" if number == errno.ECONNREFUSED else f"is unreachable: {os.strerror(number)}"
    return Dialled(words, time.monotonic() - began)
