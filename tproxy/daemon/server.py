"""The daemon's side of ``client``: receives requests, and sends each answer when the daemon has it."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.daemon.client import SOCKET, Json
from tproxy.errors import ProtocolError
from tproxy.kernel.loop import READ, WRITE, Loop
from tproxy.log import limit

log = logging.getLogger(__name__)

# Bytes. A request is a few words: a client that sends more without a line end is not one of ours.
MAX_REQUEST = 64 * 1024

# Bytes that are sent beside descriptors: what a socket's buffer always has room for.
FIRST = 4096

# Seconds until clients are accepted again, after there was no descriptor for one.
PAUSE = 0.2


class Server:
    """Listens on the control socket and calls ``handle`` with each request and its client.

    ``handle`` need not answer at once: the client may be answered later, from anywhere in the loop.
    """

    def __init__(self, loop: Loop, directory: str, handle: Callable[[Json, Client], None]) -> None:
        self._loop = loop
        self._path = f"{directory}/{SOCKET}"
        self._handle = handle
        self._warnings = limit.warnings()
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        # A crash leaves a socket file on which nobody listens. It can be removed without a check: the command
        # that starts a daemon holds the host's lock, and has ended or retired the daemon before.
        _remove(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(self._path)
        listener.listen(128)
        self._inode = os.stat(self._path).st_ino
        self._loop.add(listener.fileno(), READ, self)
        return listener

    @property
    def lost(self) -> bool:
        """Whether nobody can find the socket any more, because its file was removed."""
        try:
            return os.stat(self._path).st_ino != self._inode
        except OSError:
            return True

    def listen_again(self) -> None:
        """Make the socket anew. Raises OSError; then clients that are connected still are served."""
        old, self._listener = self._listener, self._listen()
        self._loop.close_later(old)

    def on_event(self, fd: int, mask: int) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # EMFILE: another try right away would only spin
            if self._warnings.allows(time.monotonic()):
                log.warning(
                    "no request can be accepted for now: %s%s", error.strerror, self._warnings.suffix()
                )
            self._loop.modify(fd, 0)
            self._loop.call_later(PAUSE, self._resume)
            return
        Client(self._loop, client, self._handle)

    def _resume(self) -> None:
        with suppress(OSError, ValueError):  # the listener may be closed by now
            self._loop.modify(self._listener.fileno(), READ)

    def close(self) -> None:
        """Listen no more, and let a successor make its socket file in this place."""
        _remove(self._path)
        self._loop.close_later(self._listener)


class Client:
    """The connection of one client: it sends one request, and gets one answer."""

    def __init__(self, loop: Loop, sock: socket.socket, handle: Callable[[Json, Client], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._handle = handle
        self._incoming = b""
        self._outgoing = memoryview(b"")
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self)

    def answer(self, answer: Json) -> None:
        """Send the answer, and close the connection when it is sent."""
        self._outgoing = memoryview(json.dumps(answer).encode())
        with suppress(OSError, ValueError):  # the client may have left meanwhile
            self._loop.modify(self._sock.fileno(), WRITE)

    def answer_with(self, answer: Json, fds: list[int]) -> None:
        """Send the answer, and beside its first bytes these descriptors, which stay the caller's."""
        data = json.dumps(answer).encode()
        try:
            sent = socket.send_fds(self._sock, [data[:FIRST]], fds)
            self._outgoing = memoryview(data)[sent:]
            self._loop.modify(self._sock.fileno(), WRITE)
        except (OSError, ValueError):  # the client has left
            with suppress(OSError, ValueError):
                self._loop.close_later(self._sock)

    def answer_now(self, answer: Json) -> None:
        """Send the answer at once: this process has no later. It must be short."""
        with suppress(OSError):
            self._sock.send(json.dumps(answer).encode())
            self._sock.shutdown(socket.SHUT_RDWR)

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
