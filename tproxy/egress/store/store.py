"""The store as a whole: records over blobs, in layers, within a quota.

Two layers answer a question. First the active bundle, whose manifest is a file below ``bundles/``; then what
was fetched, whose records are in the database. A bundle becomes active by one rename of ``bundles/current``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tproxy.egress.store.blobs import Blobs
from tproxy.egress.store.durable import point, replace, sync_directory
from tproxy.egress.store.quota import Kept, room_of_disk, victims
from tproxy.egress.store.records import Listed, NoRoom, Record, StoreError, record_from

# Milliseconds that a process waits for another one's transaction, which takes a few at most.
BUSY = 30_000

# Beside a bundle's manifest: the records that this site made for it, which are its signed Debian suites.
SITE = "site.json"

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, name TEXT NOT NULL, file TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    version TEXT NOT NULL, media TEXT NOT NULL, origin TEXT NOT NULL, meta TEXT NOT NULL,
    fetched INTEGER NOT NULL, PRIMARY KEY (kind, name, file)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_hash ON records (sha256);
CREATE TABLE IF NOT EXISTS documents (
    key TEXT PRIMARY KEY, fetched INTEGER NOT NULL, etag TEXT NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (
    kind TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pinned (sha256 TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listed (
    repository TEXT NOT NULL, path TEXT NOT NULL, suite TEXT NOT NULL, part TEXT NOT NULL,
    sha256 TEXT NOT NULL, size INTEGER NOT NULL, package TEXT NOT NULL, version TEXT NOT NULL,
    architecture TEXT NOT NULL, PRIMARY KEY (repository, path, suite, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wanted (
    kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, network TEXT NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (kind, name, version, network)
) WITHOUT ROWID;
"""

_COLUMNS = "kind, name, file, sha256, size, version, media, origin, meta"


class Layer:
    """The records of one bundle's manifest, by key and by name."""

    def __init__(self, records: list[Record]) -> None:
        self._by_name: dict[tuple[str, str], dict[str, Record]] = {}
        self.hashes = frozenset(record.sha256 for record in records)
        for record in records:
            self._by_name.setdefault((record.kind, record.name), {})[record.file] = record

    def find(self, kind: str, name: str, file: str) -> Record | None:
        return self._by_name.get((kind, name), {}).get(file)

    def named(self, kind: str, name: str) -> Mapping[str, Record]:
        return self._by_name.get((kind, name), {})

    def all(self) -> Iterator[Record]:
        for records in self._by_name.values():
            yield from records.values()


class Store:
    """The store below ``root``. ``quota`` is in bytes of blobs. A part of the disk stays free in any case.

    Used by one thread. Several processes may have the same store open.
    """

    def __init__(self, root: Path, quota: int | None = None) -> None:
        self.root, self.quota = root, quota
        try:
            root.mkdir(parents=True, exist_ok=True)
            # isolation_level None: each statement is a transaction of its own.
            self._database = sqlite3.connect(root / "store.sqlite", isolation_level=None)
            self._database.execute(f"PRAGMA busy_timeout = {BUSY}")
            self._database.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last transactions, never the database. Their blobs are found again.
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(SCHEMA)
            self.blobs = Blobs(root, self._database, self._make_room)
            self.bundles = root / "bundles"
            self.bundles.mkdir(exist_ok=True)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the store in {root}: {error}") from error
        self._active_stamp: object = None
        self._active = Layer([])

    def close(self) -> None:
        self._database.close()

    # Records

    def add(self, record: Record) -> None:
        """Note that an artifact is this blob, which is in the store."""
        meta = json.dumps(dict(record.meta), sort_keys=True)
        self._database.execute(
            f"INSERT OR REPLACE INTO records ({_COLUMNS}, fetched) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*record.key, *_rest(record), meta, int(time.time())),
        )

    def find(self, kind: str, name: str, file: str) -> Record | None:
        """Return the record with this key, from the active bundle or else from what was fetched."""
        return self.active.find(kind, name, file) or next(
            self._query("kind = ? AND name = ? AND file = ?", (kind, name, file)), None
        )

    def named(self, kind: str, name: str) -> dict[str, Record]:
        """Return all records of a project, image or collection, by their files' names."""
        fetched = {record.file: record for record in self._query("kind = ? AND name = ?", (kind, name))}
        return {**fetched, **self.active.named(kind, name)}

    def by_hash(self, sha256: str) -> Iterator[Record]:
        yield from self._query("sha256 = ?", (sha256,))

    def all(self) -> Iterator[Record]:
        """Yield every record that is served: those of the active bundle first."""
        seen = set()
        for record in self.active.all():
            seen.add(record.key)
            yield record
        for record in self._query("1", ()):
            if record.key not in seen:
                yield record

    def fetched(self) -> Iterator[Record]:
        """Yield the records of what was fetched, without bundles."""
        yield from self._query("1", ())

    def forget(self, record: Record) -> None:
        self._database.execute("DELETE FROM records WHERE kind = ? AND name = ? AND file = ?", record.key)

    def _query(self, where: str, values: tuple[str, ...]) -> Iterator[Record]:
        found = self._database.execute(f"SELECT {_COLUMNS} FROM records WHERE {where}", values)
        for *fields, meta in found.fetchall():
            yield Record(*fields, meta=json.loads(meta))  # type: ignore[misc]

    # Documents: indexes and other answers of upstreams that change

    def document(self, key: str) -> tuple[int, str, bytes] | None:
        """Return (second of the fetch, ETag, content) of an answer that was kept."""
        found = self._database.execute("SELECT fetched, etag, body FROM documents WHERE key = ?", (key,))
        row: tuple[int, str, bytes] | None = found.fetchone()
        return row

    def keep_document(self, key: str, body: bytes, etag: str = "") -> None:
        now = int(time.time())
        self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", (key, now, etag, body))

    # Packages that the indexes of Debian repositories list

    def list_packages(self, repository: str, suite: str, part: str, packages: Iterable[Listed]) -> None:
        """Replace what one Packages file (``part``) of a suite lists."""
        rows = ((repository, each.path, suite, part, *each[1:]) for each in packages)
        self._database.execute("BEGIN")
        try:
            self._database.execute(
                "DELETE FROM listed WHERE repository = ? AND suite = ? AND part = ?",
                (repository, suite, part),
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO listed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def listed(self, repository: str, path: str) -> list[tuple[str, Listed]]:
        """Return which suites list a package's file, each with what it says of it."""
        found = self._database.execute(
            "SELECT suite, path, sha256, size, package, version, architecture FROM listed "
            "WHERE repository = ? AND path = ? ORDER BY suite",
            (repository, path),
        )
        return [(suite, Listed(*fields)) for suite, *fields in found.fetchall()]

    # What is kept in advance

    def keep(self, kind: str, name: str) -> bool:
        """Note that a project is kept in advance. Return False if that was noted already."""
        done = self._database.execute("INSERT OR IGNORE INTO kept VALUES (?, ?)", (kind, name))
        return done.rowcount > 0

    def release(self, kind: str, name: str) -> bool:
        done = self._database.execute("DELETE FROM kept WHERE kind = ? AND name = ?", (kind, name))
        return done.rowcount > 0

    def kept(self) -> list[tuple[str, str]]:
        return list(self._database.execute("SELECT kind, name FROM kept ORDER BY kind, name").fetchall())

    def pin(self, hashes: Iterable[str]) -> None:
        """Replace the blobs that are kept in advance, and so are never evicted."""
        self._database.execute("BEGIN")
        self._database.execute("DELETE FROM pinned")
        self._database.executemany("INSERT OR IGNORE INTO pinned VALUES (?)", [(each,) for each in hashes])
        self._database.execute("COMMIT")

    # The want list

    def want(self, kind: str, name: str, version: str, network: str) -> None:
        """Put an artifact that was asked for and is not here on the want list."""
        now = int(time.time())
        self._database.execute(
            "INSERT INTO wanted VALUES (?, ?, ?, ?, ?, ?, 1) "
            "ON CONFLICT DO UPDATE SET last = excluded.last, count = count + 1",
            (kind, name, version, network, now, now),
        )

    def wanted(self) -> list[dict[str, Any]]:
        names = ("kind", "name", "version", "network", "first", "last", "count")
        rows = self._database.execute("SELECT * FROM wanted ORDER BY kind, name, version, network")
        return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]

    def clear_wanted(self) -> None:
        self._database.execute("DELETE FROM wanted")

    # Bundles

    @property
    def active(self) -> Layer:
        """The records of the active bundle. A rename of ``current`` counts from the next question on."""
        try:
            found = (self.bundles / "current" / "manifest.json").stat()
            serial = os.readlink(self.bundles / "current")
            made = self._stamp(self.bundles / "current" / SITE)
            stamp: object = (serial, found.st_ino, found.st_mtime_ns, found.st_size, made)
        except FileNotFoundError:
            stamp = None
        if stamp != self._active_stamp:
            self._active = self.layer("current") if stamp else Layer([])
            self._active_stamp = stamp
        return self._active

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int] | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return (found.st_ino, found.st_mtime_ns)

    def serial(self) -> int | None:
        """Return the serial of the active bundle."""
        try:
            return int(os.readlink(self.bundles / "current"))
        except FileNotFoundError:
            return None

    def serials(self) -> list[int]:
        """Return the serials of all bundles that were imported and are kept."""
        return sorted(int(path.name) for path in self.bundles.iterdir() if path.name.isdecimal())

    def manifest(self, serial: int | str) -> dict[str, Any]:
        """Return a bundle's manifest as parsed JSON. Raises StoreError."""
        path = self.bundles / str(serial) / "manifest.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise self._unknown(serial) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read the manifest {path}: {error}") from error
        if not isinstance(found, dict):
            raise StoreError(f"the manifest {path} is no JSON object")
        return found

    def layer(self, serial: int | str) -> Layer:
        """Return a bundle's records, with those that this site made for it."""
        records = [record_from(each) for each in self.manifest(serial).get("records", [])]
        made = self.bundles / str(serial) / SITE
        if made.exists():
            records += [record_from(each) for each in json.loads(made.read_bytes())["records"]]
        return Layer(records)

    def add_bundle(self, serial: int, files: Mapping[str, bytes]) -> None:
        """Keep a bundle's manifest and signature. It is not active yet."""
        directory = self.bundles / str(serial)
        directory.mkdir(exist_ok=True)
        sync_directory(self.bundles)
        for name, content in files.items():
            replace(directory / name, content)

    def activate(self, serial: int) -> None:
        """Serve this bundle from now on, by one rename."""
        if not (self.bundles / str(serial) / "manifest.json").exists():
            raise self._unknown(serial)
        point(self.bundles / "current", str(serial))

    def _unknown(self, serial: int | str) -> StoreError:
        known = ", ".join(map(str, self.serials()))
        return StoreError(f"bundle {serial} is not here; here are {known or 'none'}")

    # Quota

    def used(self) -> int:
        """Return the bytes of all blobs."""
        return int(self._database.execute("SELECT COALESCE(SUM(size), 0) FROM blobs").fetchone()[0])

    def protected(self) -> set[str]:
        """Return the blobs that are never evicted: those of bundles, and those that are kept in advance."""
        hashes: set[str] = set()
        for serial in self.serials():
            if not (self.bundles / str(serial) / "manifest.json").exists():
                continue
            hashes |= self.layer(serial).hashes
        hashes |= {row[0] for row in self._database.execute("SELECT sha256 FROM pinned")}
        return hashes

    def room(self) -> int:
        """Return how many bytes may be added before something has to go; below 0 when too many are here."""
        disk = os.statvfs(self.root)
        room = room_of_disk(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)
        if self.quota is None:
            return room
        return min(room, self.quota - self.used() - self.blobs.unfinished)

    def _make_room(self, needed: int) -> None:
        room = self.room()
        if needed <= room:
            return
        rows = self._database.execute("SELECT sha256, size, used FROM blobs").fetchall()
        chosen = victims((Kept(*row) for row in rows), needed, self.used() + room, self.protected())
        if chosen is None:
            limit = "its disk is full" if self.quota is None else f"its quota is {self.quota} bytes"
            raise NoRoom(f"the store is full, and nothing may be evicted for {needed} bytes: {limit}")
        for sha256 in chosen:
            self.evict(sha256)

    def evict(self, sha256: str) -> None:
        """Remove a blob with the records of it: first the records, so that none is left without its blob."""
        self._database.execute("DELETE FROM records WHERE sha256 = ?", (sha256,))
        self.blobs.remove(sha256)


def _rest(record: Record) -> tuple[str | int, ...]:
    return (record.sha256, record.size, record.version, record.media, record.origin)
