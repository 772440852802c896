"""Hears from the workers what becomes of a guest's connections, for as long as a trace runs.

A worker that is started meanwhile is asked, too. One that was asked twice is listened to once, so that
nothing is told twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.daemon.asking import PATIENCE, Inquiry
from tproxy.daemon.client import SOCKET
from tproxy.datapath.tracing import READY, Told, parse
from tproxy.errors import ProcessError
from tproxy.kernel.loop import READ, Loop
from tproxy.process import run_directory

_LATE = "a worker does not answer"


class Reports:
    """``heard`` gets each report, and ``lost`` is called with how many were left out.

    ``problem`` says why not all workers can be heard, in words; "" when they can.
    """

    def __init__(
        self, loop: Loop, words: list[str], heard: Callable[[Told], None], lost: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._words = words
        self._heard = heard
        self._lost = lost
        self._inquiries: dict[int, Inquiry] = {}  # by descriptor
        self._tellers: dict[int, Inquiry] = {}  # by the worker's process id
        self._asked: set[int] = set()
        self._inode = 0
        self._since = time.monotonic()
        self._stale = True
        self.problem = ""

    @property
    def settled(self) -> bool:
        """Whether all workers that were asked tell by now, or cannot be asked."""
        return not self._asked - self._tellers.keys()

    def tick(self) -> None:
        """Ask, if there may be workers that were not asked; to be called now and then."""
        inode = 0
        with suppress(OSError):
            inode = os.stat(f"{run_directory.directory()}/{SOCKET}").st_ino
        late = not self.settled and time.monotonic() - self._since > PATIENCE
        if late or self.problem == _LATE:
            self.problem = _LATE if late else ""
        if self._stale or inode != self._inode:
            self._inode = inode
            self._ask()

    def close(self) -> None:
        """Hear nothing more."""
        for inquiry in self._inquiries.values():
            inquiry.close()
        self._inquiries.clear()

    def on_event(self, fd: int, mask: int) -> None:
        inquiry = self._inquiries[fd]
        for worker, line in inquiry.poll():
            teller = self._tellers.setdefault(worker.pid, inquiry)
            if teller is not inquiry or line.get("what") == READY:
                continue
            if (told := parse(line)) is not None:
                self._heard(told)
            elif isinstance(line.get("left_out"), int):
                self._lost(line["left_out"])
        if not inquiry.open:
            self._loop.remove(fd)
            del self._inquiries[fd]
            inquiry.close()
        self._forget_ended()

    def _ask(self) -> None:
        try:
            inquiry = Inquiry("trace", self._words)
        except ProcessError as error:
            self.problem = f"workers cannot be asked: {error}"
            return
        self._stale = False
        self._since = time.monotonic()
        self.problem = "a worker of another version cannot be asked" if inquiry.unasked else ""
        unasked = {each.pid for each in inquiry.unasked}
        self._asked |= {each.pid for each in inquiry.silent} - unasked
        self._inquiries[inquiry.fileno()] = inquiry
        self._loop.add(inquiry.fileno(), READ, self)

    def _forget_ended(self) -> None:
        """Ask again when a worker has ended: another one is started in its place."""
        alive = {pid for pid in self._asked if os.path.exists(f"/proc/{pid}")}
        if alive != self._asked:
            self._asked = alive
            self._tellers = {pid: each for pid, each in self._tellers.items() if pid in alive}
            self._stale = True
