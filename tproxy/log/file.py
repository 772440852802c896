"""Log files that survive rotation and full disks, and the small logger of relays and workers.

A level of ``logging`` and the format of lines go together as one number, a style: ``lazy.JSON`` is added to
the level where lines are JSON. So every message and option that has a level has the format too.

These two use ``Log`` instead of ``logging``, because ``logging`` and its imports would be a fifth of a
relay's memory. A third of that would be private to each relay, which is forked, because the relay writes to
it. All other processes use ``logging`` (log/output.py).
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from tproxy.log import journal, lines
from tproxy.log.lazy import JSON
from tproxy.log.lines import Fields

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
    rotated. ``journal`` is a socket of ``journal``, or None. ``fields`` are those of all lines.
    """

    def __init__(self) -> None:
        self.level = INFO
        self.json = False
        self.journal: socket.socket | None = None
        self.fields: Fields = {}
        self._fd = -1

    def use_style(self, style: int) -> None:
        """Write lines from this level up, and in this format."""
        self.level, self.json = style & ~JSON, bool(style & JSON)

    @property
    def has_fields(self) -> bool:
        """Whether anybody sees the fields of a line."""
        return self.json or self.journal is not None

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

    def info(self, message: str, *words: object, fields: Fields | None = None) -> None:
        self._write(INFO, message, words, fields)

    def warning(self, message: str, *words: object, fields: Fields | None = None) -> None:
        self._write(WARNING, message, words, fields)

    def error(self, message: str, *words: object, fields: Fields | None = None) -> None:
        self._write(ERROR, message, words, fields)

    def _write(self, level: int, message: str, words: tuple[object, ...], fields: Fields | None) -> None:
        if level < self.level or self._fd < 0:
            return
        text, now, pid = message % words, time.time(), os.getpid()
        if self.has_fields:
            fields = {**self.fields, **lines.fields_in(message, words), **(fields or {})}
            if self.journal is not None:
                journal.send(self.journal, lines.as_entry(level, text, fields))
        if self.json:
            line = lines.as_json(now, pid, level, text, fields or {})
        else:
            line = lines.as_text(now, pid, level, text)
        with suppress(OSError):  # a full disk loses log lines, never connections
            os.write(self._fd, f"{line}\n".encode(errors="backslashreplace"))
