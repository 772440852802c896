"""Keeps a watcher running while the daemon runs (``tproxy_watch: true``).

What is kept is that some watcher runs, not one child process: a watcher is recognised by the lock that it
holds (``PLACE``). It may have been started by an operator, or by an earlier daemon which it outlived and
restarted.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

from tproxy.errors import KernelError
from tproxy.kernel.loop import READ, Loop, Timer
from tproxy.process import run_directory, table

log = logging.getLogger(__name__)

PLACE = "watch.lock"  # in the run directory; the watcher holds it, so that there is only one

# Seconds between two looks whether a watcher is there.
LOOK = 2.0

# Seconds. A watcher that lived this long has not failed at starting; after shorter lives the time between two
# looks is doubled, up to RETRY_MOST.
SETTLED = 30.0
RETRY_MOST = 60.0


class WatcherKeeper:
    """Starts a watcher whenever one is wanted and none is there."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._file = ""
        self._timer: Timer | None = None
        self._child: _Child | None = None
        self._delay = LOOK
        self._was_free = True

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
        if not self._file:
            return
        if self._child is not None and self._child.ended:
            lived = time.monotonic() - self._child.started
            self._delay = LOOK if lived >= SETTLED else min(self._delay * 2, RETRY_MOST)
            self._child = None
        elif self._child is None:
            # Free in two looks: a watcher that is replaced by a new one is absent for a moment.
            free, before = _is_free(), self._was_free
            self._was_free = free
            if free and before:
                self._child = _Child(self._loop, self._file)
        self._timer = self._loop.call_later(self._delay, self._look)


class _Child:
    """A watcher that this process started; waited for as soon as it ends, so that no zombie is left."""

    def __init__(self, loop: Loop, file: str) -> None:
        self._loop = loop
        self.ended = False
        self.started = time.monotonic()
        # With the pid of this process: a watcher that starts after this process has ended must end, too.
        command = [sys.executable, "-m", "tproxy", "watch", "--config", file, "--kept-by", str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.error("cannot start a watcher: %s", error.strerror)
            self.ended = True
            return
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add(self._pidfd, READ, self)

    def terminate(self) -> None:
        if not self.ended:
            self._process.terminate()

    def on_event(self, fd: int, mask: int) -> None:
        self._process.wait()
        self.ended = True
        self._loop.close_later(self)

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
