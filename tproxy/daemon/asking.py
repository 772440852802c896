"""The command's side of questions to all workers of a daemon, those that only finish included.

    with Inquiry("connections", ["bridge=br0"]) as inquiry:
        for worker, line in inquiry.lines(PATIENCE):
            ...
    for pid, why in inquiry.silent:
        ...

Each worker answers by itself, on a socket of its own (``worker.questions``). So what is known of a worker,
its process id and whether it only finishes, comes from the daemon, and a worker that lies can lie only about
what it was asked. What it says is judged by the caller: it is any JSON object.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from tproxy.daemon import client
from tproxy.daemon.client import ANSWERS, Json
from tproxy.errors import DaemonEnded, NotRunning, ProcessError
from tproxy.process import run_directory
from tproxy.typed import NamedTuple

# Seconds. Workers that have not answered by then are left out, and named.
PATIENCE = 10.0

# Seconds that the kernel may take to end a process after it has closed its descriptors.
ENDING = 1.0

# Bytes. A worker whose line is longer is no longer listened to.
MOST_OF_A_LINE = 64 * 1024

_PART = 256 * 1024
_ROOM = socket.CMSG_SPACE(253 * array.array("i").itemsize)


class Worker(NamedTuple):
    """A worker, as the daemon knows it. ``draining``: it only finishes its connections."""

    pid: int
    draining: bool


class Silent(NamedTuple):
    """A worker whose answer is missing, or not complete, and why."""

    pid: int
    why: str


class _Reader:
    """The end of the answer of one worker."""

    def __init__(self, worker: Worker, fd: int) -> None:
        self.worker = worker
        self.fd = fd
        self._rest = b""
        self.complete = False

    def read(self) -> list[Json] | None:
        """Return the lines that have come; None when there will be no more."""
        try:
            part = os.read(self.fd, _PART)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *whole, self._rest = (self._rest + part).split(b"\n")
        if not part or len(self._rest) > MOST_OF_A_LINE:
            return None
        found = []
        for each in whole:
            with suppress(ValueError, RecursionError):
                line = json.loads(each)
                if isinstance(line, dict):
                    found.append(line)
        if found and found[-1].get("end") is True:
            self.complete = True
            del found[-1]
        return found


class Inquiry:
    """A question to all workers. Raises NotRunning, DaemonEnded and ProcessError as ``client.ask`` does.

    After ``lines``, ``silent`` are the workers that have not answered, or not to the end. They include the
    ``unasked`` ones, which run another version of the code.
    """

    def __init__(self, kind: str, words: Sequence[str] = ()) -> None:
        answer, fds = ask_for_descriptors({"op": "ask", "kind": kind, "words": [*words]}, PATIENCE)
        self._epoll = select.epoll()
        self._readers: dict[int, _Reader] = {}
        for (pid, draining), fd in zip(answer["asked"], fds, strict=True):
            os.set_blocking(fd, False)
            self._readers[fd] = _Reader(Worker(pid, draining), fd)
            self._epoll.register(fd, select.EPOLLIN)
        self.unasked = [Worker(*each) for each in answer["unasked"]]
        self._cut_off: list[Worker] = []
        self._late: list[Worker] = []

    @property
    def silent(self) -> list[Silent]:
        """The workers whose answers are not complete, but for those that have ended meanwhile."""
        late = [*self._late, *(each.worker for each in self._readers.values())]
        return [
            *(
                Silent(each.pid, "runs another version of tproxy, and cannot be asked")
                for each in self.unasked
            ),
            *(
                Silent(each.pid, "did not finish its answer")
                for each in self._cut_off
                if not _has_ended(each.pid)
            ),
            *(Silent(each.pid, "did not answer in time") for each in late),
        ]

    @property
    def open(self) -> bool:
        """Whether there is a worker that may say more."""
        return bool(self._readers)

    def fileno(self) -> int:
        """Return a descriptor that can be read from when ``poll`` has something to return (epoll(7))."""
        return self._epoll.fileno()

    def poll(self, seconds: float | None = 0.0) -> list[tuple[Worker, Json]]:
        """Return the lines that come within so many seconds, at the first event; None waits for ever."""
        found = []
        for fd, _ in self._epoll.poll(seconds):
            reader = self._readers[fd]
            lines = reader.read()
            found += [(reader.worker, line) for line in lines or ()]
            if lines is None or reader.complete:
                if not reader.complete:
                    self._cut_off.append(reader.worker)
                self._forget(fd)
        return found

    def lines(self, seconds: float | None) -> Iterator[tuple[Worker, Json]]:
        """Yield what the workers say, until all have said everything, or the time is up; None: no limit."""
        end = None if seconds is None else time.monotonic() + seconds
        while self._readers:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            yield from self.poll(left)

    def close(self) -> None:
        """Hear nothing more; the workers stop then."""
        for fd in list(self._readers):
            self._late.append(self._readers[fd].worker)
            self._forget(fd)
        self._epoll.close()

    def _forget(self, fd: int) -> None:
        del self._readers[fd]
        os.close(fd)  # epoll forgets it too: nobody has a copy

    def __enter__(self) -> Inquiry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _has_ended(pid: int) -> bool:
    """Whether a process that has closed its end has ended too, or does within a moment."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        look = select.poll()
        look.register(pidfd, select.POLLIN)
        return bool(look.poll(ENDING * 1000))
    finally:
        os.close(pidfd)


def ask_for_descriptors(request: Json, timeout: float) -> tuple[Json, list[int]]:
    """Send a request to the daemon; return its answer, and the descriptors beside it, which are the caller's.

    Raises as ``client.ask``.
    """
    client.ask({"op": "ping"}, client.PING_TIMEOUT)  # brings back a socket that somebody has removed
    fds: list[int] = []
    try:
        answer = _ask(request, timeout, fds)
        if "error" in answer:
            raise ProcessError(answer["error"])
        if answer.get("format") != ANSWERS or len(fds) != len(answer["asked"]):
            raise ProcessError("the daemon is of another version: tproxy restart")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return answer, fds


def _ask(request: Json, timeout: float, fds: list[int]) -> Json:
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(f"{run_directory.directory()}/{client.SOCKET}")
            sock.sendall(json.dumps(request).encode() + b"\n")
            while True:
                part, ancillary, _, _ = sock.recvmsg(_PART, _ROOM, socket.MSG_CMSG_CLOEXEC)
                for level, kind, content in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        fds += array.array("i", content)
                if not part:
                    break
                data += part
        answer: Json = json.loads(data)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning("the daemon is not running") from None
    except TimeoutError:
        raise ProcessError(f"the daemon did not answer within {timeout:g} s") from None
    except (OSError, ValueError):
        raise DaemonEnded("the daemon ended before it answered") from None
    return answer
