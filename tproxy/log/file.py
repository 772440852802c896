"""Log files that survive rotation and full disks, and the small logger of relays and workers.

These two use ``Log`` instead of ``logging``, because ``logging`` and its imports would be a fifth of a
relay's memory. A third of that would be private to each relay, which is forked, because the relay writes to
it. All other processes use ``logging`` (log/output.py).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

DIRECTORY = "/var/log"

# The levels of ``logging``.
INFO, WARNING, ERROR = 20, 30, 40


def open_log(name: str) -> int:
    """Return a descriptor of the log file ``name`` below DIRECTORY; of /dev/null where that fails."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(f"{DIRECTORY}/{name}", flags | os.O_CREAT, 0o640)
    except OSError:
        # The directory is missing, read-only or full: run without a log rather than not at all.
        return os.open(os.devnull, flags)


class LogFile:
    """Appends lines to a file below DIRECTORY, each with one write(2)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = open_log(name)

    def write(self, line: str) -> None:
        with suppress(OSError):  # a full disk loses log lines, never connections
            os.write(self._fd, f"{line}\n".encode(errors="backslashreplace"))

    def reopen(self) -> None:
        """Continue in a new file of the same name, after a rotation has moved the old one away."""
        os.close(self._fd)  # first, because the process may be at its limit of descriptors
        self._fd = open_log(self._name)

    def close(self) -> None:
        os.close(self._fd)


class Log:
    """Writes lines from ``level`` up in the format of log/output.py. It drops lines before it has a file.

    Relays and workers cannot open files. The daemon gives them the descriptor, and another one when logs are
    rotated.
    """

    def __init__(self) -> None:
        self.level = INFO
        self._fd = -1

    def use(self, fd: int) -> None:
        """Write to the file ``fd`` from now on, and own it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Drop lines from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Return the descriptor of the file; -1 when there is none."""
        return self._fd

    def info(self, message: str, *words: object) -> None:
        self._write(INFO, "INFO", message % words)

    def warning(self, message: str, *words: object) -> None:
        self._write(WARNING, "WARNING", message % words)

    def error(self, message: str, *words: object) -> None:
        self._write(ERROR, "ERROR", message % words)

    def _write(self, level: int, name: str, message: str) -> None:
        if level >= self.level and self._fd >= 0:
            now = time.time()
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
            line = f"{when}.{int(now % 1 * 1000):03} {os.getpid()} {name} {message}\n"
            with suppress(OSError):  # a full disk loses log lines, never connections
                os.write(self._fd, line.encode(errors="backslashreplace"))
