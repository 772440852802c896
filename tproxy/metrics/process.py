"""The processes of ``tproxy metrics --listen``: one reads, and another one without rights renders and serves.

Theory of operation. The process that Prometheus talks to has no rights at all, like a relay: an empty root
directory that nobody else can see, a user id of its own, no capabilities, only some system calls, and no
socket but those that it was given. For each page it asks its parent, over a pair of sockets, and gets the
daemon's answer, with read-only descriptors of the workers' counters. The parent hears nobody else. It stays
root, because the control socket of the daemon is root's; of root's rights it keeps that to read.

A question is the ``known`` of ``facts`` and a line end. A reply begins with its length, beside which the
descriptors come; then JSON. Before the first question the server says READY, when it has given up its rights.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
from contextlib import suppress
from typing import Any, NoReturn

from tproxy.console import say
from tproxy.datapath.counters import View
from tproxy.errors import ProtocolError, TproxyError
from tproxy.kernel import privileges, seccomp
from tproxy.kernel.loop import READ, Loop
from tproxy.metrics import source
from tproxy.metrics.facts import Facts, Process, Snapshot
from tproxy.process import service_manager
from tproxy.process.title import set_title

# Not "tproxy-...": `tproxy stop` must not end these, which are not the daemon's.
TITLE, SERVER_TITLE = "tproxy metrics", "tproxy metrics server"

READY = b"ready\n"

_LENGTH = struct.Struct("!I")

BACKLOG = 16


def serve(places: list[str], group: int | None) -> NoReturn:
    """Serve metrics at these places, UNIX sockets and ADDRESS:PORT, until a signal. Raises TproxyError.

    ``group`` may connect to the UNIX sockets; None: only root.
    """
    listeners = [_listen(place, group) for place in places]
    paths = [place for place in places if place.startswith("/")]
    parent, child = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if os.fork() == 0:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            parent.close()
            _be_server(child, listeners)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    child.close()
    for each in listeners:
        each.close()
    set_title(TITLE)
    for line in privileges.limit_to_reading():
        say(f"a right that metrics do not need could not be given up: {line}")
    try:
        if parent.recv(len(READY), socket.MSG_WAITALL) == READY:
            service_manager.report_ready()
        while True:
            _reply(parent)
    finally:
        for path in paths:
            with suppress(OSError):
                os.unlink(path)


def _listen(place: str, group: int | None) -> socket.socket:
    try:
        if place.startswith("/"):
            return _listen_unix(place, group)
        host, _, port = place.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        family, _, _, _, address = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        return sock
    except (ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise TproxyError(f"cannot listen at {place}: {why}") from None


def _listen_unix(path: str, group: int | None) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _somebody_listens(path):
            os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177 if group is None else 0o117)
    own = os.getegid()
    try:
        if group is not None:
            os.setegid(group)  # to give the file to a group afterwards would take CAP_CHOWN
        sock.bind(path)
    finally:
        os.setegid(own)
        os.umask(before)
    sock.listen(BACKLOG)
    return sock


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return False
    return True


# The parent


def _reply(channel: socket.socket) -> None:
    """Answer one question of the server. Ends this process when the server has ended."""
    known = b""
    while not known.endswith(b"\n"):
        part = channel.recv(4096)
        if not part:
            raise TproxyError("the server of metrics has ended")
        known += part
    answer, processes, fds = source.read(known.decode().strip())
    data = json.dumps([answer, processes]).encode()
    try:
        socket.send_fds(channel, [_LENGTH.pack(len(data))], fds)
    finally:
        for fd in fds:
            os.close(fd)
    channel.sendall(data)


# The server


def _be_server(channel: socket.socket, listeners: list[socket.socket]) -> None:
    # What it needs is loaded before it cannot open files any more.
    from tproxy.metrics import rendering
    from tproxy.metrics.server import Server

    privileges.keep_only(2, channel.fileno(), *(each.fileno() for each in listeners))
    loop = Loop()
    pages = Pages(channel)
    rendering.render(Snapshot(True))
    set_title(SERVER_TITLE)
    folder = tempfile.mkdtemp(prefix="tproxy-metrics-", dir=os.environ.get("RUNTIME_DIRECTORY"))
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.rmdir(folder)
    for line in privileges.drop(f"/proc/self/fd/{fd}", seccomp.of_metrics()):
        say(f"a right that the server of metrics does not need could not be given up: {line}")
    os.close(fd)
    server = Server(loop, listeners, rendering.CONTENT_TYPE, pages.ask)
    pages.publish = server.publish
    loop.add(channel.fileno(), READ, pages)
    channel.sendall(READY)
    loop.run()


class Pages:
    """Asks the parent, and makes a page of each reply."""

    def __init__(self, channel: socket.socket) -> None:
        from tproxy.metrics import rendering

        self._rendering = rendering
        self._channel = channel
        self._facts = Facts()
        self.publish: Any = None

    def ask(self) -> None:
        self._channel.sendall(self._facts.known.encode() + b"\n")

    def on_event(self, fd: int, mask: int) -> None:
        reply = receive(self._channel)
        if reply is None:
            os._exit(0)  # the parent has ended
        answer, processes, fds = reply
        try:
            views = [View(fd) for fd in fds]
            snapshot = self._facts.take(answer, views, processes)
        except ProtocolError as error:
            # The service manager starts the installed code, which the daemon runs too.
            say(f"metrics cannot be read: {error}")
            os._exit(1)
        finally:
            for each in fds:
                os.close(each)
        self.publish(self._rendering.render(snapshot))


def receive(channel: socket.socket) -> tuple[Any, list[Process], list[int]] | None:
    """Return a reply: the daemon's answer, the processes, and descriptors; None at the end of file."""
    room = socket.CMSG_SPACE(source.MOST_MEMORIES * array.array("i").itemsize)
    data, ancillary, _, _ = channel.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    fds = [
        fd
        for level, kind, content in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for fd in array.array("i", content)
    ]
    (left,) = _LENGTH.unpack(data)
    body = bytearray()
    while left > len(body):
        part = channel.recv(min(left - len(body), 1 << 20))
        if not part:
            return None
        body += part
    answer, processes = json.loads(body)
    return answer, [Process(*each) for each in processes], fds
