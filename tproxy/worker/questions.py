"""Questions to a worker, and its answers: which connections there are, or what becomes of the next ones.

Theory of operation. A command asks the daemon, and the daemon passes the question on to each worker, with a
socket beside it (``orders.Question``). The other end of that socket goes to the command. So answers do not
pass through the daemon, however long they are. An answer is lines, each a JSON object.

A worker has guests to serve. So it makes only some lines of a long answer in one turn of its loop, and the
next ones when the command has read these. Another kind of answer has no end: it tells what happens, until
the command has gone. While nobody asks, all of this costs nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from tproxy.kernel.loop import ERROR, HANGUP, WRITE, Loop
from tproxy.log import lines
from tproxy.log.file import Log

# Lines that are made in one turn of the loop at most, and the seconds after which no further one is begun.
AT_ONCE = 25
TURN = 0.001

# Bytes of an answer without an end that wait for its reader. What comes then is left out, and counted.
MOST_WAITING = 256 * 1024

# Answers at once. Each takes a descriptor, of those that are not for connections (``admission``).
MOST = 32

# The last line of an answer that is complete.
END = '{"end": true}'

# In place of a line, where making lines may pause: what is passed over takes time, too.
PAUSE = ""

_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Answer:
    """One answer on its way to the command that has asked.

    ``over`` is called when nothing more will be said, and ``on_gone``, which the one who answers may set,
    likewise.
    """

    def __init__(self, loop: Loop, sock: socket.socket, log: Log, over: Callable[[Answer], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._log = log
        self._over = over
        self._made: Iterator[str] | None = None
        self._complete = False
        self._waiting = b""
        self._left_out = 0
        self._mask = 0  # epoll reports in any case that the reader has gone (epoll_ctl(2), EPOLLHUP)
        self.open = True
        self.on_gone: Callable[[], None] = lambda: None
        sock.setblocking(False)
        loop.add(sock.fileno(), 0, self)

    @property
    def has_end(self) -> bool:
        """Whether it is an answer that ends by itself."""
        return self._complete or self._made is not None

    def give(self, made: Iterator[str]) -> None:
        """Answer with these lines, which are made as they are read, and end."""
        self._made = made
        self._poll(WRITE)

    def say(self, line: str) -> None:
        """Add a line to an answer that has no end. It is left out if the reader is too far behind."""
        if not self.open:
            return
        if len(self._waiting) > MOST_WAITING:
            self._left_out += 1
            return
        self._waiting += f"{line}\n".encode()
        if not self._mask:
            self._send()

    def close(self) -> None:
        """Say nothing more. The reader sees that the answer is not complete."""
        if self.open:
            self.open = False
            self._loop.close_later(self._sock, shared=True)
            self._over(self)
            self.on_gone()

    def on_event(self, fd: int, mask: int) -> None:
        if mask & (ERROR | HANGUP):
            self.close()
            return
        if not self._waiting and self._made is not None:
            self._make(self._made)
        if self.open:
            self._send()

    def _make(self, made: Iterator[str]) -> None:
        some: list[str] = []
        end = time.monotonic() + TURN
        try:
            for each in islice(made, AT_ONCE):
                some.append(each)
                if time.monotonic() > end:
                    break
            else:
                self._complete = len(some) < AT_ONCE
        except Exception as error:  # of any kind: a question never ends the connections of guests
            self._log.error("a question cannot be answered: %s: %s", type(error).__name__, error)
            self.close()
            return
        if self._complete:
            some.append(END)
            self._made = None
        self._waiting = "".join(f"{each}\n" for each in some if each != PAUSE).encode()

    def _send(self) -> None:
        try:
            self._waiting = self._waiting[self._sock.send(self._waiting, _SEND) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self.close()
            return
        if self._left_out and not self._waiting:
            self._waiting = f"{lines.json_object({'left_out': self._left_out})}\n".encode()
            self._left_out = 0
        if self._complete and not self._waiting:
            self.close()
        else:
            self._poll(WRITE if self._waiting or self._made is not None else 0)

    def _poll(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(self._sock.fileno(), mask)


# Answers a question, which came with these words: returns the lines of an answer that ends, or None if it
# goes on to ``say`` lines. It may close the answer.
Answerer = Callable[[tuple[str, ...], Answer], Iterator[str] | None]


class Questions:
    """The questions that this process can answer, by their kind."""

    def __init__(self, loop: Loop, log: Log, answerers: Mapping[str, Answerer]) -> None:
        self._loop = loop
        self._log = log
        self._answerers = answerers
        self._answers: set[Answer] = set()

    @property
    def unfinished(self) -> bool:
        """Whether somebody still waits for the end of an answer."""
        return any(each.has_end for each in self._answers)

    def ask(self, kind: str, words: tuple[str, ...], sock: socket.socket) -> None:
        """Answer a question on a socket, which is this object's from now on."""
        answerer = self._answerers.get(kind)
        if answerer is None or len(self._answers) >= MOST:
            self._log.warning("a question is left unanswered: %s", "too many" if answerer else kind)
            sock.close()
            return
        answer = Answer(self._loop, sock, self._log, self._answers.discard)
        self._answers.add(answer)
        try:
            made = answerer(words, answer)
        except Exception as error:  # of any kind, as above
            self._log.error("a question cannot be answered: %s: %s", type(error).__name__, error)
            answer.close()
            return
        if made is not None and answer.open:
            answer.give(made)
