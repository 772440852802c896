"""Log files that survive rotation, and what to do when the disk does not take a line.

``logs`` has them for ``logging``. A relay has ``Log`` instead: ``logging``, with what it imports in turn,
would be a fifth of its memory, and each relay would write anew to a third of that.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

DIRECTORY = "/var/log"

# As ``logging`` has them.
INFO, WARNING, ERROR = 20, 30, 40


class LogFile:
    """Appends lines, each in one write(2); ``reopen`` goes on in a new file of that name."""

    def __init__(self, name: str) -> None:
        self._path = f"{DIRECTORY}/{name}"
        self._fd = self._open()

    def write(self, line: str) -> None:
        with suppress(OSError):  # a full disk loses log lines, never connections
            os.write(self._fd, f"{line}\n".encode(errors="backslashreplace"))

    def reopen(self) -> None:
        os.close(self._fd)  # first: there may be no other descriptor left
        self._fd = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(self._path, flags | os.O_CREAT, 0o640)
        except OSError:
            # No directory, read-only, full: running without a log beats not running.
            return os.open(os.devnull, flags)


class Log:
    """Writes lines from ``level`` up in the form that ``logs`` gives them; none before it is opened."""

    def __init__(self) -> None:
        self.level = INFO
        self._file: LogFile | None = None

    def open(self, name: str, level: int) -> None:
        self._file, self.level = LogFile(name), level

    def reopen(self) -> None:
        if self._file is not None:
            self._file.reopen()

    def info(self, message: str, *words: object) -> None:
        self._write(INFO, "INFO", message % words)

    def warning(self, message: str, *words: object) -> None:
        self._write(WARNING, "WARNING", message % words)

    def error(self, message: str, *words: object) -> None:
        self._write(ERROR, "ERROR", message % words)

    def _write(self, level: int, name: str, message: str) -> None:
        if level >= self.level and self._file is not None:
            now = time.time()
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
            self._file.write(f"{when}.{int(now % 1 * 1000):03} {os.getpid()} {name} {message}")
