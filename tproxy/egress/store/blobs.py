"""The blobs: files named by the SHA-256 of their content.

Theory of operation. A blob is written below ``partial/``, hashed on the way, synced, and renamed to its
place: so a name below ``blobs/`` always has its whole content, also after a power cut. The database holds
size and modification time of each blob that was found right. While both are unchanged, the blob is served
without a second look; otherwise, and in ``scrub``, it is hashed again, and goes to ``quarantine/`` when it is
damaged. Who asks next does not find it, and fetches it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from tproxy.egress.store.durable import sync_directory
from tproxy.egress.store.records import Damaged, NoRoom, StoreError, checked_hash, hash_of

# Seconds between two notes that one blob was used: eviction needs no finer time, and a note is a write.
USED_GRAIN = 600

# Bytes for which room is made at a time, at most, where nobody knows how many come.
STEP = 16 << 20

_FULL = (errno.ENOSPC, errno.EDQUOT)

SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Blobs:
    """The blobs below ``root``. ``make_room`` is called before bytes are written, and may raise NoRoom."""

    def __init__(
        self, root: Path, database: sqlite3.Connection, make_room: Callable[[int], None] = lambda _: None
    ) -> None:
        self.root, self._database, self.make_room = root, database, make_room
        self.unfinished = 0  # bytes that writers of this process have written, and not taken
        self.partial, self.quarantined = root / "partial", root / "quarantine"
        for each in (root / "blobs", self.partial, self.quarantined):
            each.mkdir(parents=True, exist_ok=True)
        database.executescript(SCHEMA)

    def path(self, sha256: str) -> Path:
        """Return where the blob is, or would be."""
        return self.root / "blobs" / checked_hash(sha256)[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        """Return the path of a blob that is there and right, and note its use; None otherwise."""
        path = self.path(sha256)
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        known = self._database.execute(
            "SELECT size, mtime, used FROM blobs WHERE sha256 = ?", (sha256,)
        ).fetchone()
        if known is None or known[:2] != (found.st_size, found.st_mtime_ns):
            return path if self._check(sha256) else None
        now = int(time.time())
        if now - known[2] > USED_GRAIN:
            self._database.execute("UPDATE blobs SET used = ? WHERE sha256 = ?", (now, sha256))
        return path

    def writer(self, expected: str | None = None, size: int | None = None) -> Writer:
        """Return a file to write a blob to; the blob is there after ``commit``.

        ``expected`` is the SHA-256 that the content must have. ``size`` bytes are made room for, if known.
        """
        found = Writer(self, expected)
        try:
            found.expect(size or 0)
        except BaseException:
            found.close()
            raise
        return found

    def put(self, content: bytes, expected: str | None = None) -> str:
        """Store these bytes, and return their SHA-256. Raises Damaged if it is not the expected one."""
        sha256 = hashlib.sha256(content).hexdigest()
        if expected not in (None, sha256):
            raise Damaged(f"the content has SHA-256 {sha256}, and not {expected}")
        if self.find(sha256) is None:
            with self.writer(sha256, len(content)) as file:
                file.write(content)
                file.commit()
        return sha256

    def take(self, partial: Path, sha256: str) -> None:
        """Move a synced file, whose content has been hashed, to its place. Raises StoreError."""
        for directory in self.move(partial, sha256):
            sync_directory(directory)

    def move(self, partial: Path, sha256: str) -> list[Path]:
        """Do what ``take`` does, but return the directories, whose names are durable when they are synced."""
        path = self.path(sha256)
        changed = [path.parent]
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            changed.append(path.parent.parent)
        os.replace(partial, path)
        self._note(sha256)
        return changed

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)
        self._database.execute("DELETE FROM blobs WHERE sha256 = ?", (sha256,))

    def all(self) -> Iterator[str]:
        """Yield the SHA-256 of each blob that is on the disk."""
        for path in sorted((self.root / "blobs").glob("??/*")):
            yield path.name

    def scrub(self, seen: Callable[[int], None] = lambda _: None) -> list[str]:
        """Hash every blob. Return those that were damaged, which are now in quarantine.

        ``seen`` hears the size of each blob, for a progress bar.
        """
        damaged = []
        for sha256 in list(self.all()):
            path = self.path(sha256)
            size = path.stat().st_size if path.exists() else 0
            if not self._check(sha256):
                damaged.append(sha256)
            seen(size)
        return damaged

    def adopt_all(self) -> None:
        """Note blobs that the database lacks, as after a power cut. Remove partial files of dead writers.

        Whether such a blob is right is found out when it is asked for.
        """
        on_disk = set(self.all())
        known = {row[0] for row in self._database.execute("SELECT sha256 FROM blobs")}
        self._database.executemany(
            "DELETE FROM blobs WHERE sha256 = ?", [(each,) for each in known - on_disk]
        )
        for sha256 in on_disk - known:
            self._note(sha256, checked=False)
        for left in self.partial.glob("w.*"):
            # The name holds the writer's process id.
            if not Path("/proc", left.name.split(".")[1]).exists():
                left.unlink(missing_ok=True)

    def _check(self, sha256: str) -> bool:
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                right = hash_of(file)[0] == sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise StoreError(f"cannot read {path}: {error.strerror}") from error
            right = False  # a broken disk
        if right:
            self._note(sha256)
        else:
            os.replace(path, self.quarantined / f"{sha256}.{time.time_ns()}")
            self._database.execute("DELETE FROM blobs WHERE sha256 = ?", (sha256,))
        return right

    def _note(self, sha256: str, checked: bool = True) -> None:
        found = self.path(sha256).stat()
        self._database.execute(
            "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)",
            (sha256, found.st_size, found.st_mtime_ns if checked else -1, int(time.time())),
        )


class Writer:
    """A blob that is being written. Without ``commit`` nothing of it is left."""

    def __init__(self, blobs: Blobs, expected: str | None) -> None:
        self._blobs, self._expected = blobs, expected
        self._room = 0  # up to this size there is room
        self._digest = hashlib.sha256()
        self.size = 0
        descriptor, name = tempfile.mkstemp(dir=blobs.partial, prefix=f"w.{os.getpid()}.")
        self.path = Path(name)
        os.fchmod(descriptor, 0o644)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def expect(self, size: int) -> None:
        """Make room for a file of so many bytes. Raises NoRoom."""
        self._blobs.make_room(max(0, size - self.size))
        self._room = size

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes. Raises NoRoom."""
        if self.size + len(data) > self._room:
            self._expect_more(len(data))
        self._digest.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom(f"no space is left for the store in {self._blobs.root}") from error
            raise
        self.size += len(data)
        self._blobs.unfinished += len(data)

    def _expect_more(self, size: int) -> None:
        try:
            self.expect(self.size + max(size, min(self.size, STEP)))
        except NoRoom:
            self.expect(self.size + size)

    @property
    def sha256(self) -> str:
        """The SHA-256 of what has been written so far."""
        return self._digest.hexdigest()

    def check(self) -> str:
        """Return the SHA-256. Raises Damaged when it is not the expected one."""
        if self._expected is not None and self.sha256 != self._expected:
            raise Damaged(f"the content has SHA-256 {self.sha256}, and not {self._expected}")
        return self.sha256

    def sync(self) -> None:
        """Have the bytes on the disk. Raises NoRoom. May be called in another thread before ``commit``."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom(f"no space is left for the store in {self._blobs.root}") from error
            raise

    def commit(self) -> str:
        """Make the blob durable and known. Return its SHA-256. Raises Damaged and NoRoom."""
        sha256 = self.check()
        self.sync()
        self._blobs.take(self.path, sha256)
        return sha256

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._blobs.unfinished -= self.size
        self.path.unlink(missing_ok=True)  # gone already after a commit

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
