"""The daemon's side of ``control``: takes questions while it serves, and answers when it can."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from tproxy.daemon.client import SOCKET, Json
from tproxy.errors import ProtocolError
from tproxy.kernel.loop import READ, WRITE, Loop

log = logging.getLogger(__name__)

# A request is a few words; whoever sends more without a line end is not one of ours.
MAX_REQUEST = 64 * 1024

# When there is no descriptor for who asks: so many seconds until the next try.
PAUSE = 0.2


class Server:
    """Takes requests for the daemon; each may be answered later, from anywhere in its loop."""

    def __init__(self, loop: Loop, directory: str, handle: Callable[[Json, Client], None]) -> None:
        self._loop = loop
        self._path = f"{directory}/{SOCKET}"
        self._handle = handle
        # A socket file that nobody listens behind is what a crash leaves. The caller holds the
        # host's lock and has sent an older daemon away, so the file is nobody's.
        _remove(self._path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(self._path)
        self._listener.listen(128)
        loop.add(self._listener.fileno(), READ, self)

    def on_event(self, fd: int, mask: int) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # EMFILE: trying again at once would only spin
            log.warning("nobody can be answered for now: %s", error.strerror)
            self._loop.modify(fd, 0)
            self._loop.call_later(PAUSE, self._resume)
            return
        Client(self._loop, client, self._handle)

    def _resume(self) -> None:
        with suppress(OSError, ValueError):  # it may be closed by now
            self._loop.modify(self._listener.fileno(), READ)

    def close(self) -> None:
        """Leave the place to a successor."""
        _remove(self._path)
        self._loop.close_later(self._listener)


class Client:
    """One question under way."""

    def __init__(self, loop: Loop, sock: socket.socket, handle: Callable[[Json, Client], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._handle = handle
        self._incoming = b""
        self._outgoing = memoryview(b"")
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self)

    def answer(self, answer: Json) -> None:
        self._outgoing = memoryview(json.dumps(answer).encode())
        with suppress(OSError, ValueError):  # it may have left meanwhile
            self._loop.modify(self._sock.fileno(), WRITE)

    def on_event(self, fd: int, mask: int) -> None:
        try:
            if mask & WRITE:
                self._outgoing = self._outgoing[self._sock.send(self._outgoing) :]
                if not self._outgoing:
                    self._loop.close_later(self._sock)
            else:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self._loop.close_later(self._sock)

    def _read(self) -> None:
        data = self._sock.recv(MAX_REQUEST)
        self._incoming += data
        if not data or len(self._incoming) > MAX_REQUEST:
            self._loop.close_later(self._sock)
            return
        line, end, _ = self._incoming.partition(b"\n")
        if end:
            self._loop.modify(self._sock.fileno(), 0)
            try:
                self._handle(json.loads(line), self)
            except (ValueError, TypeError, KeyError, RecursionError, ProtocolError) as error:
                self.answer({"error": f"bad request: {error}"})


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
