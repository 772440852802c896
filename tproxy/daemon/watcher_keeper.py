"""Keeps a watcher running while the daemon runs (``tproxy_watch: true``).

What is kept is that some watcher runs, not one child process: a watcher is recognised by the lock that it
holds (``PLACE``). It may have been started by an operator, or by an earlier daemon which it outlived and
restarted. The kernel tells of the end of any watcher (pidfd_open(2)), so another one starts at once; later
and later if it keeps dying.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.errors import KernelError
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.process import run_directory, table

log = logging.getLogger(__name__)

# In the run directory. The watcher holds it, so that there is only one, and writes KEPT into it when a daemon
# keeps it.
PLACE = "watch.lock"
KEPT = b"kept"

# Seconds between two looks whether a watcher is there, where none is attended.
LOOK = 2.0

# Seconds from the end of a watcher to the start of the next one. The time is doubled, up to RETRY_MOST, while
# watchers of this daemon live for less than SETTLED.
RETRY_FIRST, RETRY_MOST = 0.1, 60.0
SETTLED = 10.0

# Seconds for which nobody must have been there before a watcher is started after one that no daemon kept:
# whoever started that one may start it again (RestartSec= in tproxy-watch.service, and the start).
OTHERS_TURN = 3.0


class WatcherKeeper:
    """Starts a watcher whenever one is wanted and none is there."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._file = ""
        self._timer: Timer | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._delay = 0.0  # before the last start; 0: the last watcher lived for long
        self._attended: _End | None = None  # of the watcher that is there
        self._free_since: float | None = 0.0  # None when a watcher was there at the last look
        self._turn = 0.0  # seconds for which the place must have been free

    @property
    def file(self) -> str:
        """The configuration file for which a watcher is kept; empty if none is."""
        return self._file

    def keep(self, file: str) -> None:
        """Keep a watcher for this configuration file from now on; none if the name is empty."""
        if file != self._file and self._child is not None:
            self._child.terminate()  # it reads the other file
        self._file = file
        if file and self._timer is None:
            self._look()

    def close(self) -> None:
        """Start no watcher any more; the one that runs is left to the successor of this daemon."""
        self._file = ""

    def _look(self) -> None:
        self._timer = None
        if not self._file or self._attended is not None:
            return  # the end of the watcher is the next event
        if not _is_free():
            self._free_since = None
            self._attend(table.find())
            return
        now = time.monotonic()
        if self._free_since is None:
            self._free_since = now
        left = self._free_since + self._turn - now
        if left > 0:
            self._look_after(left)
        else:
            self._start()

    def _look_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._look)

    def _attend(self, running: table.Running) -> None:
        """Wait for the end of a watcher that an operator or an earlier daemon has started."""
        self._turn = RETRY_FIRST if _is_kept() else OTHERS_TURN
        for watcher in running.watchers:
            with suppress(OSError):  # it has ended
                self._attended = _End(self._loop, watcher.pid, self._others_ended)
                return
        self._look_after(LOOK)  # one that is starting has no title yet

    def _others_ended(self) -> None:
        self._attended = None
        self._free_since = time.monotonic()
        self._look_after(RETRY_FIRST)

    def _start(self) -> None:
        # With the pid of this process: a watcher that starts after this process has ended must end, too.
        command = [sys.executable, "-m", "tproxy", "watch", "--config", self._file]
        self._started = time.monotonic()
        try:
            self._child = subprocess.Popen(
                [*command, "--kept-by", str(os.getpid())],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._attended = _End(self._loop, self._child.pid, self._child_ended)
        except OSError as error:
            log.error("cannot start a watcher: %s", error.strerror)
            if self._child is not None:
                self._child.kill()
            self._child_ended()

    def _child_ended(self) -> None:
        self._attended = None
        if self._child is not None:
            self._child.wait()  # no zombie is left
            self._child = None
        if time.monotonic() - self._started >= SETTLED:
            self._delay = 0.0
        self._delay = min(max(self._delay * 2, RETRY_FIRST), RETRY_MOST)
        # The place is the child's, or it could not take it.
        self._turn = 0.0
        self._look_after(self._delay)


class _End:
    """Calls ``on_end`` when a process has ended. Raises OSError when it has ended before."""

    def __init__(self, loop: Loop, pid: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._on_end = on_end
        self._pidfd = os.pidfd_open(pid)
        loop.add(self._pidfd, READ, self)

    def on_event(self, fd: int, mask: int) -> None:
        self._loop.close_later(self)
        self._on_end()

    def fileno(self) -> int:
        return self._pidfd

    def close(self) -> None:
        os.close(self._pidfd)


def _is_free() -> bool:
    """Return whether no watcher runs. False as well if that cannot be told now."""
    try:
        place = run_directory.claim(PLACE)
    except (KernelError, OSError):
        return False
    if place is None:
        return False
    os.close(place)
    return not table.find().watchers  # somebody may have removed the file that a watcher has locked


def take_place(*, kept: bool) -> int | None:
    """Be the only watcher of the instance, as ``run_directory.claim``; note whether a daemon keeps it."""
    place = run_directory.claim(PLACE)
    if place is not None:
        os.ftruncate(place, 0)
        os.pwrite(place, KEPT if kept else b"", 0)
    return place


def _is_kept() -> bool:
    """Whether a daemon kept the last watcher."""
    try:
        with open(f"{run_directory.directory()}/{PLACE}", "rb") as file:
            return file.read() == KEPT
    except OSError:
        return False
