"""Dials of UNIX sockets, which the daemon makes for this process: a worker has no path in sight.

The daemon answers with the connected socket, or with an error (``daemon.unix_dialing``). A dial that no
daemon has answered waits, and is asked for again when another daemon comes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint
from tproxy.typed import NamedTuple

_NUMBERS = 1 << 32

# Seconds until the daemon, which is behind with what it was asked before, is asked for more.
LATER = 0.01

# Takes the connected socket, or None and the errno.
Answer = Callable[[int, socket.SocketType | None, int], None]


class _Dial(NamedTuple):
    path: str
    until: float  # by time.monotonic()
    answer: Answer


def no_socket() -> socket.SocketType:
    """Return what stands in the place of a socket that the daemon has not sent yet. It has no descriptor."""
    return socket.SocketType.__new__(socket.SocketType)


class UnixDials:
    """The dials that are not answered.

    ``ask`` and ``hang_up`` tell the daemon, if there is one. ``ask`` returns whether the daemon has room for
    what it is told.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.ask: Callable[[int, float, str], bool] = lambda number, seconds, path: True
        self.hang_up: Callable[[int], object] = lambda number: None
        self._number = 0
        self._dials: dict[int, _Dial] = {}
        self._unasked: dict[int, None] = {}  # for which there was no room, in order

    def dial(self, endpoint: Endpoint, seconds: float, answer: Answer) -> int:
        """Have a UNIX socket dialled for so many seconds; return the number of the dial, which is above 0.

        ``answer`` is called with it later, once, unless the dial is cancelled before.
        """
        self._number = self._number % (_NUMBERS - 1) + 1
        self._dials[self._number] = _Dial(endpoint.path, time.monotonic() + seconds, answer)
        self._unasked[self._number] = None
        if len(self._unasked) == 1:  # otherwise a timer asks
            self._ask()
        return self._number

    def cancel(self, number: int) -> None:
        """Forget a dial, if it is not answered yet."""
        if self._dials.pop(number, None) is not None:
            self.hang_up(number)

    def answered(self, number: int, sock: socket.SocketType | None, error: int) -> None:
        """Pass the daemon's answer on. The socket of a dial that is not wanted any more is closed."""
        dial = self._dials.pop(number, None)
        if dial is not None:
            dial.answer(number, sock, error)
        elif sock is not None:
            sock.close()

    def ask_again(self) -> None:
        """Ask another daemon for all that is not answered."""
        waits = bool(self._unasked)
        self._unasked = dict.fromkeys(self._dials)
        if not waits:
            self._ask()

    def _ask(self) -> None:
        now = time.monotonic()
        while self._unasked:
            number = next(iter(self._unasked))
            dial = self._dials.get(number)
            if dial is not None and dial.until > now and not self.ask(number, dial.until - now, dial.path):
                self._loop.call_later(LATER, self._ask)
                return
            del self._unasked[number]
