"""Notices at once when the daemon ends: a connection to it, on which nothing is ever said."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

from tproxy.daemon import client
from tproxy.kernel.loop import READ, Loop
from tproxy.process import run_directory


class Lifeline:
    def __init__(self, loop: Loop, ended: Callable[[], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._socket: socket.socket | None = None
        self._place = 0  # of the daemon's socket

    def connected(self) -> bool:
        """Whether there is a daemon; looks for one if there was none, or is another."""
        path = f"{run_directory.directory()}/{client.SOCKET}"
        with suppress(OSError):  # none there: it is being replaced, or ended, and that is told
            if self._socket is not None and os.stat(path).st_ino != self._place:
                self._leave()  # one that only finishes what is open
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._place = os.stat(path).st_ino
                sock.connect(path)
            except OSError:
                sock.close()
                return False
            self._socket = sock
            self._loop.add(sock.fileno(), READ, self)
        return True

    def on_event(self, fd: int, mask: int) -> None:
        self._leave()
        self._ended()

    def _leave(self) -> None:
        assert self._socket is not None
        self._loop.close_later(self._socket)
        self._socket = None
