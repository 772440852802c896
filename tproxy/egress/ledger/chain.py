"""The chain: JSON lines, each of which holds the SHA-256 of the line before.

Theory of operation. Whoever changes or removes a line breaks the chain behind it; whoever writes the rest
anew ends in another hash than the heads that were signed and sent away (``heads``). Processes and threads
append under a lock. A line that was cut off by a power cut or a full disk is removed before the next one is
written; a note in the chain says so. Files are named by the number of their first line, and end at about
SEGMENT bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tproxy.egress.store.durable import sync_directory
from tproxy.errors import TproxyError

SEGMENT = 64 << 20  # bytes of one file: what a text editor still opens

START = "0" * 64  # what the first line holds instead of a hash

LONGEST = 1 << 16  # bytes of a line; an event has a dozen texts of at most 2,000 characters


class LedgerError(TproxyError):
    """The ledger cannot be written or read."""


class Head(NamedTuple):
    """The end of the chain: number and hash of the last line; 0 and START of an empty one."""

    number: int
    hash: str


class Ledger:
    """The ledger in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise LedgerError(f"cannot open the ledger in {directory}: {error.strerror}") from error
        self._file: int | None = None
        self._path: Path | None = None
        self._size = -1  # of the file after our last line
        self._head = Head(0, START)
        self._dirty = False
        self._thread = threading.Lock()  # flock(2) is between open files: the threads of a process share one

    def close(self) -> None:
        self.sync()
        if self._file is not None:
            os.close(self._file)
        os.close(self._lock)

    def append(self, *events: dict[str, Any]) -> Head:
        """Add a line for each event, and return the new head. Raises LedgerError; then nothing was added."""
        try:
            with self._locked():
                self._catch_up()
                self._write(*events)
                return self._head
        except OSError as error:
            raise LedgerError(f"cannot write to the ledger in {self.directory}: {error.strerror}") from error

    def head(self) -> Head:
        """Return the head, after all lines of all processes. Raises LedgerError."""
        return self.append()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def sync(self) -> None:
        """Have all lines on the disk. Raises LedgerError."""
        try:
            with self._thread:
                self._sync()
        except OSError as error:
            raise LedgerError(f"cannot write to the ledger in {self.directory}: {error.strerror}") from error

    def _sync(self) -> None:
        if self._file is not None and self._dirty:
            os.fdatasync(self._file)
            self._dirty = False

    def _catch_up(self) -> None:
        """Find the end, which another process may have moved."""
        paths = segments(self.directory)
        if not paths:
            self._open(self.directory / _name(1))
            self._head, self._size = Head(0, START), 0
            return
        if paths[-1] != self._path or not self._is_file_of(paths[-1]):
            self._open(paths[-1])
            self._size = -1
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if size == self._size:
            return
        number, last, end = _last_line(paths)
        self._head, self._size = Head(number, last), end
        if end != size:
            os.ftruncate(self._file, end)
            self._write({"verdict": "repaired", "reason": f"a line was cut off after {size - end} bytes"})

    def _is_file_of(self, path: Path) -> bool:
        """Return whether the open file still has its name: what is written to a removed one is lost."""
        return self._file is not None and os.path.samestat(os.fstat(self._file), path.stat())

    def _open(self, path: Path) -> None:
        is_new = not path.exists()
        new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        if is_new:
            sync_directory(self.directory)
        old, self._file, self._path = self._file, new, path
        if old is not None:
            os.fdatasync(old)
            os.close(old)

    def _write(self, *events: dict[str, Any]) -> None:
        if self._size >= SEGMENT:
            self._open(self.directory / _name(self._head.number + 1))
            self._size = 0
        assert self._file is not None
        head, data = self._head, b""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for event in events:
            line = {"n": head.number + 1, "prev": head.hash, "time": stamp, **event}
            text = json.dumps(line, separators=(",", ":")).encode()
            head = Head(head.number + 1, hashlib.sha256(text).hexdigest())
            data += text + b"\n"
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        self._head = head
        self._dirty = self._dirty or bool(data)


def segments(directory: Path) -> list[Path]:
    """Return the files of a ledger in their order."""
    return sorted(directory.glob("ledger-*.jsonl"))


def lines(directory: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Yield each line with its file and its number there, without the line's end."""
    for path in segments(directory):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield path, number, line


def entries(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield all entries that can be read, in order."""
    for _, _, line in lines(directory):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def problems(directory: Path, heads: list[Head]) -> Iterator[str]:
    """Yield what is wrong with the chain, a line each: edits, gaps, and what signed heads say is missing."""
    number, previous = 0, START
    known = {0: START}
    wanted = {head.number for head in heads}
    for path, at, line in lines(directory):
        where = f"{path.name}:{at}"
        if not line.endswith(b"\n"):
            yield f"{where}: the line is cut off"
        text = line.removesuffix(b"\n")
        try:
            found = json.loads(line)
            stated, before = found["n"], found["prev"]
        except (ValueError, KeyError, TypeError):
            yield f"{where}: the line is no entry"
            number, previous = number + 1, hashlib.sha256(text).hexdigest()
            continue
        if stated != number + 1:
            yield f"{where}: entry {stated} follows entry {number}"
        if before != previous:
            yield f"{where}: entry {stated} does not follow the one before it: one of them was changed"
        number = stated if isinstance(stated, int) else number + 1
        previous = hashlib.sha256(text).hexdigest()
        if number in wanted:
            known[number] = previous
    for head in heads:
        if head.number > number:
            missing = f"a signed head names entry {head.number}"
            yield f"the ledger ends at entry {number}, and {missing}: it was cut"
        elif known.get(head.number) != head.hash:
            yield f"entry {head.number} is not the one that a signed head names"


def _name(number: int) -> str:
    return f"ledger-{number:012d}.jsonl"


def _last_line(paths: list[Path]) -> tuple[int, str, int]:
    """Return number and hash of the last whole line, and where it ends in the last file."""
    for path in reversed(paths):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * LONGEST))
            start, data = file.tell(), file.read()
        whole, newline, _ = data.rpartition(b"\n")
        if not newline:
            if path is paths[-1] and len(paths) > 1:
                number, digest, _ = _last_line(paths[:-1])
                return number, digest, 0
            return 0, START, 0
        line = whole.rpartition(b"\n")[2]
        try:
            number = int(json.loads(line)["n"])
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(
                f"the last entry of {path} cannot be read: tproxy egress log --verify"
            ) from error
        return number, hashlib.sha256(line).hexdigest(), start + len(whole) + 1
    return 0, START, 0
