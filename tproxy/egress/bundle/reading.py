"""Reads a bundle from its first byte to its last, and believes nothing that is not signed."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tproxy.egress.bundle import manifest as manifests
from tproxy.egress.bundle.manifest import BLOBS, KEY, LARGEST, MANIFEST, SIGNATURE, BundleError, Manifest
from tproxy.egress.bundle.parts import Reader, of
from tproxy.egress.signing import SigningError, fingerprint, verify
from tproxy.egress.store.durable import replace
from tproxy.egress.store.records import CHUNK

SMALL = 4096  # bytes of a signature or a public key; they have some 400

TRUSTED = "bundle-key.pub"  # below the store's root: the key whose bundles are imported


class Opened:
    """A bundle whose signature was found right. ``blobs`` may be read once, in order."""

    def __init__(
        self, file: Reader, archive: tarfile.TarFile, manifest: Manifest, files: dict[str, bytes], key: str
    ) -> None:
        self._file, self._archive = file, archive
        self.manifest, self.files, self.key = manifest, files, key
        self._buffer = memoryview(bytearray(CHUNK))

    def blobs(self) -> Iterator[tuple[str, Iterator[memoryview]]]:
        """Yield hash and content of each blob that the manifest says is here. Raises BundleError.

        Whether the content has the hash is for the reader to find out. It comes in pieces, each of which is
        valid until the next one. A content that is not wanted is not read.
        """
        for sha256, size in self.manifest.blobs.items():
            member = _next(self._archive, BLOBS + sha256)
            if member.size != size:
                raise BundleError(f"blob {sha256} has {member.size} bytes in the tar, and not {size}")
            yield sha256, self._pieces(member)
        if self._archive.next() is not None:
            raise BundleError("the bundle holds more than its manifest names")

    def _pieces(self, member: tarfile.TarInfo) -> Iterator[memoryview]:
        self._file.seek(member.offset_data)
        left = member.size
        while left:
            count = self._file.readinto(self._buffer[:left])
            if not count:
                raise EOFError("unexpected end of data")
            yield self._buffer[:count]
            left -= count


@contextmanager
def opened(path: Path, trusted: str | None, fingerprint_wanted: str = "") -> Iterator[Opened]:
    """Open a bundle and verify its manifest with the ``trusted`` public key.

    Without one, the bundle's own key is taken if it has the wanted fingerprint. Raises BundleError.
    """
    with Reader(of(path)) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                files = {name: _small(archive, name, most) for name, most in _HEAD}
                key = _key(files[KEY].decode(errors="replace"), trusted, fingerprint_wanted)
                try:
                    verify(files[MANIFEST], files[SIGNATURE].decode(errors="replace"), key)
                except SigningError as error:
                    raise BundleError(f"the bundle's signature is not good: {error}") from error
                yield Opened(file, archive, manifests.parse(files[MANIFEST]), files, key)
        except (tarfile.TarError, EOFError) as error:
            raise BundleError(f"{path} is cut off, or no bundle: {error}") from error


_HEAD = ((SIGNATURE, SMALL), (KEY, SMALL), (MANIFEST, LARGEST))


def _key(own: str, trusted: str | None, wanted: str) -> str:
    try:
        found = fingerprint(own)
        if wanted and found != wanted.lower().replace(":", ""):
            raise BundleError(f"the bundle is signed by key {found}, and not by {wanted}")
        if trusted is None and not wanted:
            raise BundleError(
                f"no key is trusted yet. The bundle is signed by key {found}: "
                f"compare this with what its sender says, then give --trust {found}"
            )
        if trusted is not None and found != fingerprint(trusted) and not wanted:
            raise BundleError(f"the bundle is signed by key {found}; trusted is {fingerprint(trusted)}")
    except SigningError as error:
        raise BundleError(f"the bundle's key cannot be used: {error}") from error
    return own if wanted or trusted is None else trusted


def _next(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    member = archive.next()
    if member is None:
        raise BundleError(f"the bundle ends before {name}: it is cut off")
    if member.name != name or not member.isreg():
        raise BundleError(f"the bundle has {member.name!a} where {name} should be")
    return member


def _small(archive: tarfile.TarFile, name: str, most: int) -> bytes:
    member = _next(archive, name)
    content = archive.extractfile(member)
    if member.size > most or content is None:
        raise BundleError(f"{name} is larger than it may be")
    return content.read()


def verify_all(
    path: Path,
    trusted: str | None,
    fingerprint_wanted: str = "",
    seen: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Read a whole bundle, and return its manifest if every blob is right. Raises BundleError."""
    with opened(path, trusted, fingerprint_wanted) as bundle:
        for sha256, content in bundle.blobs():
            digest = hashlib.sha256()
            for piece in content:
                digest.update(piece)
            if digest.hexdigest() != sha256:
                raise BundleError(f"blob {sha256} is damaged")
            seen(bundle.manifest.blobs[sha256])
        return bundle.manifest


def trusted_key(root: Path) -> str | None:
    """Return the public key whose bundles this site imports."""
    try:
        return (root / TRUSTED).read_text()
    except FileNotFoundError:
        return None


def trust(root: Path, key: str) -> None:
    replace(root / TRUSTED, key.encode())
