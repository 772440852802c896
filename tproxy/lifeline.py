"""Notices at once when the daemon ends: a connection to it, on which nothing is ever said."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tproxy import control, instance
from tproxy.loop import READ, Loop


class Lifeline:
    def __init__(self, loop: Loop, ended: Callable[[], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._socket: socket.socket | None = None

    def connected(self) -> bool:
        """Whether there is a daemon; looks for one if there was none."""
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                sock.connect(f"{instance.directory()}/{control.SOCKET}")
            except OSError:
                sock.close()
                return False
            self._socket = sock
            self._loop.add(sock.fileno(), READ, self)
        return True

    def on_event(self, fd: int, mask: int) -> None:
        assert self._socket is not None
        self._loop.close_later(self._socket)
        self._socket = None
        self._ended()
