"""Reads the lines that a growing log has got since the last time, also when the log was moved away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Bytes of the log that are read at a time, so that other work is done in between. No line is as long.
MOST = 1 << 20


class Tail:
    """A place in a log. The file stays open, so a log that was moved away is read to its end first.

    A log that was truncated is read from its beginning.
    """

    def __init__(self, path: Path, start: Callable[[os.stat_result], int]) -> None:
        """``start`` says where to begin in a log that is there already, from its stat(2)."""
        self._path, self._start = path, start
        self._file: int | None = None
        self.inode, self.offset, self._before = 0, 0, 0

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def new(self) -> list[str]:
        """Return whole lines that are new, at most MOST bytes of them. Raises OSError."""
        if self._file is None and not self._open(self._start):
            return []
        lines = self._read()
        if not lines and self._was_moved() and not (lines := self._read()):
            self.close()
            if self._open(lambda stat: 0):
                lines = self._read()
        return lines

    def again(self) -> None:
        """Have ``new`` return the last lines once more."""
        self.offset = self._before

    def _open(self, start: Callable[[os.stat_result], int]) -> bool:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        stat = os.fstat(self._file)
        self.inode, self.offset = stat.st_ino, start(stat)
        return True

    def _read(self) -> list[str]:
        assert self._file is not None
        if os.fstat(self._file).st_size < self.offset:
            self.offset = 0
        self._before = self.offset
        data = os.pread(self._file, MOST, self.offset)
        whole, newline, _ = data.rpartition(b"\n")
        if not newline:
            if len(data) == MOST:  # no line is that long
                self.offset += len(data)
            return []
        self.offset += len(whole) + 1
        return whole.decode("utf-8", "replace").split("\n")

    def _was_moved(self) -> bool:
        """Return whether another file has the log's name now. Its writer may have added lines until then."""
        try:
            return self._path.stat().st_ino != self.inode
        except FileNotFoundError:
            return False
