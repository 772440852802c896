"""The manifest of a bundle: the first thing in it, and the only thing that is signed. Pure.

It names each record, and so the hash of each blob. A delta names the same records as a whole bundle, and
brings only the blobs that its base does not have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packageurl import PackageURL

from tproxy.egress.model import Artifact
from tproxy.egress.purls import purl_of
from tproxy.egress.store.records import Record, StoreError, record_from
from tproxy.errors import TproxyError

FORMAT = 1

# The names in the tar, in their order; blobs follow as blobs/sha256/HASH.
SIGNATURE, KEY, MANIFEST = "manifest.json.minisig", "key.pub", "manifest.json"
BLOBS = "blobs/sha256/"

# The kind of records of the appliance's own packages, which an import keeps and nothing serves.
APPLIANCE = "appliance"

LARGEST = 256 << 20  # bytes of a manifest; a record has some 400


class BundleError(TproxyError):
    """A bundle is not what it should be, or may not be imported."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle is. ``blobs`` are those in the tar, in their order, each with its size."""

    serial: int
    base: int | None
    created: str
    records: tuple[Record, ...]
    blobs: Mapping[str, int]

    def as_bytes(self) -> bytes:
        found = {
            "format": FORMAT,
            "serial": self.serial,
            "base": self.base,
            "created": self.created,
            "blobs": [{"sha256": sha256, "size": size} for sha256, size in self.blobs.items()],
            "records": [record.as_json() for record in self.records],
        }
        return json.dumps(found, indent=1, sort_keys=True).encode()

    @property
    def needed(self) -> dict[str, int]:
        """All blobs that records name, with their sizes, whether the tar has them or not."""
        return {record.sha256: record.size for record in self.records}


def make(serial: int, records: Iterable[Record], base: Mapping[str, Any] | None = None) -> Manifest:
    """Return the manifest for these records; with the parsed manifest of a base, that of a delta."""
    ordered = sorted(records, key=lambda record: record.key)
    have = {each.get("sha256") for each in (base or {}).get("records", ())}
    blobs = {record.sha256: record.size for record in ordered if record.sha256 not in have}
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Manifest(serial, base["serial"] if base else None, created, tuple(ordered), blobs)


def parse(content: bytes) -> Manifest:
    """Return a manifest whose signature was verified. Raises BundleError."""
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise BundleError(f"the bundle has format {found['format']!a}; this program knows {FORMAT}")
        serial, base = found["serial"], found["base"]
        if not isinstance(serial, int) or serial < 1 or not (base is None or isinstance(base, int)):
            raise BundleError("the bundle's serial is no number")
        records = tuple(record_from(each) for each in found["records"])
        blobs = {str(each["sha256"]): int(each["size"]) for each in found["blobs"]}
        manifest = Manifest(serial, base, str(found["created"]), records, blobs)
    except (ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
        raise BundleError(f"the bundle's manifest cannot be used: {error}") from error
    unknown = blobs.keys() - manifest.needed.keys()
    if unknown:
        raise BundleError(f"the bundle brings a blob that no record names: {min(unknown)}")
    return manifest


def label(record: Record) -> str:
    """Return how people call an artifact: its package URL, or kind, name and file."""
    kinds: dict[str, Any] = {"pypi": "pypi", "deb": "deb", "galaxy": "galaxy", "role": "galaxy"}
    if record.kind in kinds and not record.file.endswith(".metadata"):
        name = record.file.rpartition("/")[2].partition("_")[0] if record.kind == "deb" else record.name
        return purl_of(Artifact(kinds[record.kind], name, record.version, record.file.rpartition("/")[2]))
    if record.kind == "oci" and not record.file.startswith("sha256:"):
        return purl_of(Artifact("oci", record.name, record.file, sha256=record.sha256))
    if record.kind == APPLIANCE:
        # Generic, so that a list made of an SBOM does not name it.
        return PackageURL(
            "generic", None, record.file, record.version or None, {"tproxy": APPLIANCE}
        ).to_string()
    if record.kind == "file":
        return purl_of(Artifact("file", url=record.name, sha256=record.sha256))
    return ""


def differences(old: Iterable[Record], new: Iterable[Record]) -> list[str]:
    """Return what a bundle adds ("+") and no longer has ("-") against another, a line each."""
    before, after = {label(each) for each in old} - {""}, {label(each) for each in new} - {""}
    changed = [(each, "-") for each in before - after] + [(each, "+") for each in after - before]
    return [f"{sign} {each}" for each, sign in sorted(changed)]
