"""Limits of guests at the mirror's own port: how many connections one may have, and how fast it is served.

Behind squid, squid slows guests down. Here the kernel does: a socket has a largest rate (SO_MAX_PACING_RATE,
socket(7)), and the connections of a guest that are sending share the guest's rate.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tproxy.egress.model import Caller
from tproxy.egress.policy.rules import Limits

_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; the module socket of Python 3.11 does not have it

# Bytes of a slowed socket that may wait in it: they are still sent when the guest's rate is shared anew.
_WAITING = 1 << 17


class Guests:
    """The open connections of each guest."""

    def __init__(self, limits: Callable[[Caller], Limits]) -> None:
        self._limits = limits
        self._open: defaultdict[str, list[asyncio.BaseTransport]] = defaultdict(list)
        self._sending: defaultdict[str, list[asyncio.BaseTransport]] = defaultdict(list)

    def admit(self, transport: asyncio.BaseTransport, caller: Caller) -> bool:
        """Count a new connection. Return False if its guest has as many as it may."""
        self._forget_closed()
        found = self._open[caller.guest]
        most = self._limits(caller).connections
        if most and len(found) >= most:
            return False
        found.append(transport)
        return True

    @contextmanager
    def sending(self, transport: asyncio.BaseTransport | None, caller: Caller) -> Iterator[bool]:
        """Slow a connection down while it sends. Yield whether the guest has a rate."""
        rate = self._limits(caller).bytes_per_second
        if not rate or transport is None:
            yield False
            return
        found = self._sending[caller.guest]
        found.append(transport)
        _share(rate, found)
        try:
            yield True
        finally:
            found.remove(transport)
            _share(rate, found)
            if not found:
                self._sending.pop(caller.guest, None)

    def _forget_closed(self) -> None:
        for guest, transports in list(self._open.items()):
            transports[:] = (each for each in transports if not each.is_closing())
            if not transports:
                del self._open[guest]


def _share(rate: int, transports: list[asyncio.BaseTransport]) -> None:
    for each in transports:
        found: socket.socket | None = each.get_extra_info("socket")
        if found is not None and found.fileno() >= 0:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WAITING)
            found.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, max(1, rate // len(transports)))
