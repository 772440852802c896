"""The mirror of Debian repositories. Upstream's signed files are passed on as they are.

Theory of operation. An InRelease file names the hashes of all indexes of its suite. So that a client never
gets an InRelease of today with indexes of yesterday, they change together: a new InRelease counts only when
every index that was in use has been fetched in the version that it names; until then, and while upstream is
down, the old set is served. Indexes are looked up by their hash, also by the old one: a client that began
with the old set can end with it. Packages are fetched by the hash in an index, and never change.

In sealed mode the suites are those that the active bundle brought, signed by this site's key (``suites``).
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from functools import partial
from urllib.parse import quote

from tproxy.egress.mirror import deb_indexes
from tproxy.egress.mirror.answers import Answer, Blob, Request
from tproxy.egress.mirror.library import Library
from tproxy.egress.mirror.upstream import NotThere, UpstreamError
from tproxy.egress.model import Artifact
from tproxy.egress.store.records import Listed, Record, StoreError

PACKAGE = "application/vnd.debian.binary-package"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"

LARGEST_INDEX = 256 << 20  # bytes; Debian's largest has some 10 MB compressed

_BY_HASH = re.compile(r"(.*/)?by-hash/SHA256/([0-9a-f]{64})")
_OTHER_HASH = re.compile(r"(?:.*/)?by-hash/(?:MD5Sum|SHA1|SHA512)/")
_PACKAGES = re.compile(r"[\w-]+/binary-[\w-]+/Packages(\.gz|\.xz|\.bz2)?")
_FILE = re.compile(r"([a-z0-9][a-z0-9.+-]+)_([^_/]+)_([a-z0-9-]+)\.u?deb")

SIGNED = ("InRelease", "Release", "Release.gpg")


class Deb:
    """Answers what apt asks."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def answer(self, request: Request) -> Answer | None:
        """Return the answer, or None for a path that no repository has. Raises UpstreamError."""
        if not request.name:
            return None
        parts = request.path[1:].split("/")
        if parts[0] == "dists" and len(parts) > 2:
            # "bookworm/updates" is what security suites were called up to buster.
            length = 3 if parts[2] == "updates" and len(parts) > 3 else 2
            return await self._index(request, "/".join(parts[1:length]), "/".join(parts[length:]))
        found = _FILE.fullmatch(parts[-1])
        if found and len(parts) > 1:
            return await self._package(request, "/".join(parts), found[1], found[2])
        return None

    # Indexes

    async def _index(self, request: Request, suite: str, path: str) -> Answer | None:
        artifact = Artifact("deb", "", suite, path.rpartition("/")[2])
        if denied := self._library.denied(request, artifact):
            return denied
        name = f"{request.name} {suite}"
        if self._library.upstreams is None:
            return self._sealed_index(request, artifact, name, path)
        if _OTHER_HASH.match(path):
            return self._library.missing(request, artifact)
        release = await self._release(request.name, suite)
        if path in SIGNED:
            found = self._library.here("dists", name, path)
            return self._blob(artifact, found) if found else self._library.missing(request, artifact)
        if by_hash := _BY_HASH.fullmatch(path):
            # An old hash is good too, while its file is here.
            kept = self._library.here("dists", name, path)
            if kept:
                return self._blob(artifact, kept)
            named = next((each for each, (sha256, _) in release.items() if sha256 == by_hash[2]), None)
            if named is None:
                return self._library.missing(request, artifact)
            return await self._set_member(request, artifact, suite, named, release)
        if path not in release:
            return self._library.missing(request, artifact)
        return await self._set_member(request, artifact, suite, path, release)

    def _sealed_index(self, request: Request, artifact: Artifact, name: str, path: str) -> Answer:
        found = self._library.here("dists", name, path)
        return self._blob(artifact, found) if found else self._library.missing(request, artifact)

    async def _set_member(
        self,
        request: Request,
        artifact: Artifact,
        suite: str,
        path: str,
        release: dict[str, tuple[str, int]],
    ) -> Answer:
        try:
            record = await self._member(request.name, suite, path, release)
        except NotThere:
            return self._library.missing(request, artifact)
        return self._blob(artifact, record)

    def _blob(self, artifact: Artifact, record: Record) -> Blob:
        media = TEXT if record.file in SIGNED else BINARY
        # Between us and the client nothing may keep the head of a set longer than we do.
        headers = {"Cache-Control": "max-age=0, must-revalidate"} if record.file in SIGNED else {}
        return Blob(artifact, record, media, headers)

    async def _release(self, repository: str, suite: str) -> dict[str, tuple[str, int]]:
        """Return the hashes of the current set, by path. It is asked for again when it is old."""
        assert self._library.upstreams is not None
        key = f"set {repository} {suite}"
        found = await self._library.upstreams.document(
            "", key=key, read=partial(self._read_set, repository, suite)
        )
        return {path: (each[0], each[1]) for path, each in json.loads(found).items()}

    async def _read_set(self, repository: str, suite: str) -> bytes:
        """Return a new set. What is not there of one, while there is an old one, is not there yet."""
        before = self._library.store.document(f"set {repository} {suite}") is not None
        try:
            return await self._fetch_set(repository, suite, before)
        except NotThere as error:
            if before:
                raise UpstreamError(f"{repository} is in the middle of a change: {error}") from error
            raise

    async def _fetch_set(self, repository: str, suite: str, before: bool) -> bytes:
        """Fetch the signed files of a suite, then the indexes in use: all of them are the current set."""
        store = self._library.store
        name, heads = f"{repository} {suite}", {}
        for file in SIGNED:
            try:
                heads[file] = await self._read(f"{self._url(repository)}dists/{suite}/{file}")
            except NotThere:
                continue
        if "InRelease" not in heads and "Release" not in heads:
            raise NotThere(f"{repository} has no suite {suite}")
        signed = heads.get("InRelease", heads.get("Release", b""))
        release = deb_indexes.sums(signed.decode(errors="replace"))
        used = {path for path in store.named("dists", name) if path in release} if before else set()
        for path in sorted(used):
            await self._member(repository, suite, path, release)
        for file, body in heads.items():
            store.add(
                Record(
                    "dists", name, file, store.blobs.put(body), len(body), suite, origin=self._url(repository)
                )
            )
        return json.dumps(release).encode()

    async def _member(
        self, repository: str, suite: str, path: str, release: dict[str, tuple[str, int]]
    ) -> Record:
        """Return the record of an index in the version that a set names. Raises UpstreamError."""
        assert self._library.upstreams is not None
        sha256, size = release[path]
        name = f"{repository} {suite}"
        # By its hash it is there also when the path has the index of another set already.
        for known in (path, _by_hash(path, sha256)):
            if found := self._library.here("dists", name, known, sha256):
                return found
        return await self._library.upstreams.flights.share(
            ("index", name, sha256), lambda: self._fetch_member(repository, suite, path, sha256, size)
        )

    async def _fetch_member(self, repository: str, suite: str, path: str, sha256: str, size: int) -> Record:
        store, name = self._library.store, f"{repository} {suite}"
        by_hash = _by_hash(path, sha256)
        base = f"{self._url(repository)}dists/{suite}/"
        try:
            body = await self._read(f"{base}{by_hash}", size)
        except NotThere:
            body = await self._read(f"{base}{path}", size)
        try:
            store.blobs.put(body, sha256)
        except StoreError as error:
            raise UpstreamError(f"{base}{path} is not what its Release file says: {error}") from error
        record = Record("dists", name, path, sha256, len(body), suite, origin=base + path)
        if _PACKAGES.fullmatch(path):
            try:
                found = await asyncio.to_thread(_listed, path, body)
            except ValueError as error:
                raise UpstreamError(f"{base}{path}: {error}") from error
            store.list_packages(repository, suite, _plain(path), found)
        store.add(record)
        store.add(Record("dists", name, by_hash, sha256, len(body), suite, origin=base + by_hash))
        return record

    async def _read(self, url: str, largest: int = LARGEST_INDEX) -> bytes:
        assert self._library.upstreams is not None
        parts, size = [], 0
        async with self._library.upstreams.get(url) as answer:
            async for part in answer.content.iter_chunked(1 << 16):
                size += len(part)
                if size > largest:
                    raise UpstreamError(f"{url} is larger than it may be")
                parts.append(part)
        return b"".join(parts)

    def _url(self, repository: str) -> str:
        return self._library.settings.repositories[repository]

    # Packages

    async def _package(self, request: Request, path: str, package: str, version: str) -> Answer:
        listed = self._library.store.listed(request.name, path)
        suites = {suite for suite, _ in listed}
        known = listed[0][1] if listed else None
        artifact = Artifact("deb", package, version, path.rpartition("/")[2])
        record = self._library.store.find("deb", request.name, path)
        if known is not None:
            artifact = Artifact("deb", package, known.version, artifact.filename, sha256=known.sha256)
        elif record is not None:
            artifact = Artifact("deb", package, record.version, artifact.filename, sha256=record.sha256)
            suites = set(record.meta.get("suites", ()))
        if denied := self._library.denied(request, artifact, suites):
            return denied
        if known is None and record is None:
            # No index that we know lists it, so nothing says what it must be; the file's name has no epoch.
            return self._library.missing(request, replace(artifact, version=""))
        return await self._library.file(
            request,
            artifact,
            ("deb", request.name, path),
            PACKAGE,
            url="" if self._library.upstreams is None else self._url(request.name) + quote(path, safe="/+~"),
            expected=artifact.sha256,
            meta={"suites": sorted(suites)},
        )


def _listed(path: str, body: bytes) -> list[Listed]:
    return list(deb_indexes.packages(deb_indexes.unpacked(path, body).decode(errors="replace")))


def _by_hash(path: str, sha256: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}by-hash/SHA256/{sha256}"


def _plain(path: str) -> str:
    """Return an index's path without the ending of its compression."""
    return re.sub(r"\.(gz|xz|bz2)$", "", path)
