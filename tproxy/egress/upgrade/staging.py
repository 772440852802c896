"""Lays out the appliance's files of a bundle, each of which was found to be what a signed manifest names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tproxy.egress.bundle import manifest as manifests
from tproxy.egress.bundle import reading
from tproxy.egress.bundle.appliance import form, is_tproxy
from tproxy.egress.bundle.manifest import APPLIANCE, MANIFEST, SIGNATURE, BundleError, Manifest
from tproxy.egress.signing import SigningError, verify
from tproxy.egress.store.records import CHUNK, Record, hash_of
from tproxy.egress.store.store import Store


@dataclass(frozen=True)
class Staged:
    """The files in ``folder`` by their own names, with their records."""

    folder: Path
    serial: int
    records: tuple[Record, ...]

    def of(self, wanted: str) -> list[Record]:
        """Return the records of one form: "whl", "deb" or "tar"."""
        return [record for record in self.records if form(record) == wanted]

    def tproxy(self, wanted: str, ends: tuple[str, ...] = ("",)) -> Record:
        """Return tproxy itself in this form, from a file whose name ends so. Raises BundleError."""
        found = [record for record in self.of(wanted) if is_tproxy(record) and record.file.endswith(ends)]
        if len(found) != 1:
            kinds = {"whl": "wheels", "deb": "Debian packages", "tar": "OCI archives"}[wanted]
            raise BundleError(f"bundle {self.serial} has {len(found)} {kinds} of tproxy, and not one")
        return found[0]


@contextmanager
def staged(store: Store, source: str, fingerprint: str = "") -> Iterator[Staged]:
    """Yield the appliance of a bundle: of one that was imported, by its serial, or of a bundle's file.

    Raises BundleError for a bundle whose signature or content is not good, and for one without appliance.
    """
    with tempfile.TemporaryDirectory(prefix="tproxy-upgrade.", dir=store.root) as name:
        folder = Path(name)
        if source.isdecimal():
            manifest = _imported(store, int(source))
        else:
            manifest = _from_file(store, Path(source), fingerprint, folder)
        records = _appliance(manifest)
        for record in records:
            if not (folder / record.file).exists():
                _copy(store, record, folder)
        yield Staged(folder, manifest.serial, records)


def _appliance(manifest: Manifest) -> tuple[Record, ...]:
    found = tuple(record for record in manifest.records if record.kind == APPLIANCE)
    if not found:
        raise BundleError(f"bundle {manifest.serial} does not carry the appliance")
    for record in found:
        form(record)
    return found


def _imported(store: Store, serial: int) -> Manifest:
    """Return the manifest of an imported bundle, verified again: the disk is not what was signed."""
    folder = store.bundles / str(serial)
    trusted = reading.trusted_key(store.root)
    try:
        content, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_text()
    except FileNotFoundError as error:
        known = ", ".join(map(str, store.serials()))
        raise BundleError(f"bundle {serial} was not imported here; here are {known or 'none'}") from error
    if trusted is None:
        raise BundleError("no key is trusted yet")
    try:
        verify(content, signature, trusted)
    except SigningError as error:
        raise BundleError(f"the signature of bundle {serial} is not good: {error}") from error
    return manifests.parse(content)


def _from_file(store: Store, path: Path, fingerprint: str, folder: Path) -> Manifest:
    with reading.opened(path, reading.trusted_key(store.root), fingerprint) as bundle:
        wanted = {record.sha256: record for record in _appliance(bundle.manifest)}
        for sha256, content in bundle.blobs():
            if sha256 in wanted:
                _write(content, wanted[sha256], folder)
        return bundle.manifest


def _copy(store: Store, record: Record, folder: Path) -> None:
    path = store.blobs.find(record.sha256)
    if path is None:
        raise BundleError(f"{record.file} is not in the store: import the bundle again, or its base")
    with path.open("rb") as content:
        _write(iter(lambda: content.read(CHUNK), b""), record, folder)


def _write(content: Iterable[bytes | memoryview], record: Record, folder: Path) -> None:
    """Write a file, and look at what was written."""
    path = folder / record.file
    try:
        with path.open("wb") as file:
            file.writelines(content)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    with path.open("rb") as file:
        if hash_of(file)[0] != record.sha256:
            raise BundleError(f"{record.file} of the bundle is damaged")
