"""What the store knows about an artifact, as a value, and as JSON in manifests and in the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from tproxy.errors import TproxyError

# Bytes of one read while a file is hashed: more is not faster, and less calls the kernel more often.
CHUNK = 1 << 20

_HEXADECIMAL = frozenset("0123456789abcdef")


class StoreError(TproxyError):
    """The store cannot be used, or has no room."""


class Damaged(StoreError):
    """Content is not what its hash says."""


class NoRoom(StoreError):
    """The quota, or the disk, is full, and nothing may be evicted."""


@dataclass(frozen=True)
class Record:
    """An artifact that the store has, or that a bundle brings.

    ``kind`` is pypi, deb, oci, galaxy, role, file or dists; ``name`` the project, image or URL; ``file`` the
    file's name within it. ``origin`` is the address that the content came from.
    """

    kind: str
    name: str
    file: str
    sha256: str
    size: int
    version: str = ""
    media: str = ""
    origin: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.name, self.file)

    def as_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value != "" and value != {}}


class Listed(NamedTuple):
    """What an index of a Debian repository says of one package."""

    path: str
    sha256: str
    size: int
    package: str
    version: str
    architecture: str


def record_from(found: Any) -> Record:
    """Return the record that parsed JSON describes. Raises StoreError."""
    if not isinstance(found, dict):
        raise StoreError("a record is no JSON object")
    texts = {name: found.get(name, "") for name in ("kind", "name", "file", "version", "media", "origin")}
    size, meta = found.get("size"), found.get("meta", {})
    right = all(isinstance(text, str) for text in texts.values()) and isinstance(meta, dict)
    if not right or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise StoreError(f"a record has fields of wrong types: {json.dumps(found)[:200]}")
    return Record(**texts, sha256=checked_hash(found.get("sha256")), size=size, meta=meta)


def checked_hash(text: object) -> str:
    """Return ``text`` if it is a SHA-256 in lower-case hexadecimal: it becomes part of a path."""
    if not isinstance(text, str) or len(text) != 64 or not _HEXADECIMAL.issuperset(text):
        raise StoreError(f"{str(text)[:80]!a} is no SHA-256")
    return text


def hash_of(file: BinaryIO) -> tuple[str, int]:
    """Return SHA-256 and size of what is left in a file."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        size += count
    return digest.hexdigest(), size
