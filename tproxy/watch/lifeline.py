"""A connection to the daemon that tells at once when the daemon ends. Nothing is ever sent on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

from tproxy.daemon import client
from tproxy.kernel.loop import READ, Loop
from tproxy.process import run_directory


class Lifeline:
    """Calls ``ended`` when the daemon to which it is connected has ended."""

    def __init__(self, loop: Loop, ended: Callable[[], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._socket: socket.socket | None = None
        self._inode = 0  # of the daemon's socket: a new daemon has a new one

    def connected(self) -> bool:
        """Whether this is connected to the running daemon; connects first, if it is not."""
        path = f"{run_directory.directory()}/{client.SOCKET}"
        with suppress(
            OSError
        ):  # no socket: the daemon is being replaced or has ended, which this hears anyway
            if self._socket is not None and os.stat(path).st_ino != self._inode:
                self._disconnect()  # the old daemon only finishes its open connections
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._inode = os.stat(path).st_ino
                sock.connect(path)
            except OSError:
                sock.close()
                return False
            self._socket = sock
            self._loop.add(sock.fileno(), READ, self)
        return True

    def on_event(self, fd: int, mask: int) -> None:
        self._disconnect()
        self._ended()

    def _disconnect(self) -> None:
        assert self._socket is not None
        self._loop.close_later(self._socket)
        self._socket = None
