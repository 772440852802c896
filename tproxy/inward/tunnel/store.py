"""The gateway's state: a directory with a file for each node, operator and join token.

The gateway and commands change it at the same time: each change holds the lock, reads what it changes, and
puts the new file in the place of the old one. A file belongs to the owner of the directory, who is the
gateway's user, also when root's command writes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tproxy.errors import ProcessError, quoted
from tproxy.inward.tunnel import records
from tproxy.inward.tunnel.records import Node, Operator, Token

DIRECTORY = "/var/lib/tproxy-tunnel"

_FOLDERS: dict[type, str] = {Node: "nodes", Operator: "operators", Token: "tokens"}
_DENIED, _SEEN, _SETTINGS = "denied.json", "seen.json", "gateway.json"

Record = TypeVar("Record", Node, Operator, Token)


class Store:
    """The state in a directory. Reading it raises ProcessError where a file cannot be used."""

    def __init__(self, directory: str | Path = DIRECTORY) -> None:
        self.directory = Path(directory)
        # What was read last, by file, with what stat(2) said of the file: the gateway looks each second.
        self._known: dict[str, tuple[tuple[int, int, int], Any]] = {}

    def prepare(self) -> None:
        """Make the directories that are missing. Raises ProcessError."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for each in _FOLDERS.values():
                if not (self.directory / each).is_dir():
                    (self.directory / each).mkdir(mode=0o700, exist_ok=True)
                    self._own(self.directory / each)
        except OSError as error:
            raise ProcessError(f"cannot make {self.directory}: {error.strerror}") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock: nobody else changes the state meanwhile."""
        self.prepare()
        path = self.directory / "lock"
        with open(path, "ab") as file:
            if os.fstat(file.fileno()).st_uid != self.directory.stat().st_uid:
                self._own(path)
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # Records

    def all(self, kind: type[Record]) -> list[Record]:
        folder = self.directory / _FOLDERS[kind]
        found = [self._read(kind, each) for each in sorted(folder.glob("*.json"))]
        return [each for each in found if each is not None]

    def find(self, kind: type[Record], name: str) -> Record | None:
        return self._read(kind, self._place(kind, name))

    def required(self, kind: type[Record], name: str) -> Record:
        """Return a record. Raises ProcessError when there is none."""
        found = self.find(kind, name)
        if found is None:
            raise ProcessError(f"there is no {kind.__name__.lower()} {quoted(name)}")
        return found

    def put(self, record: Node | Operator | Token) -> None:
        key = record.id if isinstance(record, Token) else record.name
        self._write(self._place(type(record), key), records.to_json(record))

    def drop(self, record: Node | Operator) -> None:
        """Forget a node or operator, and deny its certificates."""
        self.deny(dict(record.serials))
        self._place(type(record), record.name).unlink(missing_ok=True)

    def denied(self) -> dict[int, float]:
        """Return the serials of certificates that are not accepted, and until when they were valid."""
        return {int(serial): until for serial, until in self._json(_DENIED).items()}

    def deny(self, serials: dict[int, float]) -> None:
        now = time.time()
        kept = {serial: until for serial, until in (self.denied() | serials).items() if until > now}
        self._write(self.directory / _DENIED, json.dumps(kept))

    # When nodes were seen last, by name, as far as the gateway has written it down

    def seen(self) -> dict[str, float]:
        return dict(self._json(_SEEN))

    def set_seen(self, seen: dict[str, float]) -> None:
        self._write(self.directory / _SEEN, json.dumps(seen))

    @property
    def address(self) -> str:
        """HOST:PORT by which nodes reach the gateway; "" when nobody has said it."""
        return str(self._json(_SETTINGS).get("address", ""))

    @address.setter
    def address(self, said: str) -> None:
        self._write(self.directory / _SETTINGS, json.dumps({"address": said}))

    # Files

    def text(self, name: str) -> str | None:
        """Return the text of a file; None when there is none."""
        try:
            return (self.directory / name).read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ProcessError(f"cannot read {self.directory / name}: {error.strerror}") from None

    def write_text(self, name: str, text: str) -> None:
        self._write(self.directory / name, text)

    def _place(self, kind: type, name: str) -> Path:
        return self.directory / _FOLDERS[kind] / f"{name}.json"

    def _read(self, kind: type[Record], path: Path) -> Record | None:
        found: Record | None = self._parsed(path, lambda text: records.from_json(kind, text))
        return found

    def _json(self, name: str) -> dict[str, Any]:
        return self._parsed(self.directory / name, lambda text: dict(json.loads(text))) or {}

    def _parsed(self, path: Path, parse: Callable[[str], Any]) -> Any:
        """Return what a file holds; None when there is none. One that has not changed is not read again."""
        place = str(path)
        try:
            status = os.stat(place)
        except FileNotFoundError:
            self._known.pop(place, None)
            return None
        except OSError as error:
            raise ProcessError(f"cannot read {path}: {error.strerror}") from None
        # Each change makes a new file, so the inode or the time differs.
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._known.get(place)
        if known is not None and known[0] == stamp:
            return known[1]
        text = self.text(str(path.relative_to(self.directory)))
        try:
            found = parse(text) if text is not None else None
        except (ValueError, TypeError) as error:
            raise ProcessError(f"{path} cannot be used: {error}") from None
        self._known[place] = (stamp, found)
        return found

    def _write(self, path: Path, text: str) -> None:
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            self._own(new)
            new.rename(path)
        except OSError as error:
            raise ProcessError(f"cannot write {path}: {error.strerror}") from None

    def _own(self, path: Path) -> None:
        """Give a file that root has made to the directory's owner."""
        owner = self.directory.stat()
        if os.geteuid() == 0 and owner.st_uid:
            os.chown(path, owner.st_uid, owner.st_gid)
