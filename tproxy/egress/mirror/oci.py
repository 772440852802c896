"""The mirror of container registries: the read path of the OCI distribution specification.

The registry follows from ``?ns=`` (containerd), from the first part of the name (podman, skopeo), or from the
host by whose name the mirror was asked. Manifests and blobs are named by their hash, so they never expire;
only tags are asked for again. Nothing is kept by a signed address that a registry redirects to.

A blob may be fetched by whoever may fetch an image that holds it: manifests name their parts, and each record
of a manifest lists them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial

from tproxy.egress.mirror.answers import Answer, Blob, Body, Denied, Request
from tproxy.egress.mirror.library import Library
from tproxy.egress.mirror.settings import HUB, HUB_HOSTS
from tproxy.egress.mirror.upstream import NotThere, UpstreamError
from tproxy.egress.model import Artifact
from tproxy.egress.store.records import Record, StoreError

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
BLOB = "application/octet-stream"
LARGEST_MANIFEST = 4 << 20  # bytes, as the specification recommends

_NAME = re.compile(r"[a-z0-9]+(?:[._/:-]+[a-z0-9]+)*")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PATH = re.compile(r"/v2/(.+)/(manifests|blobs|tags|referrers)/([^/]+)")

_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


class OCI:
    """Answers what clients ask of a registry."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def answer(self, request: Request) -> Answer | None:
        """Return the answer, or None for a path that no registry has. Raises UpstreamError."""
        if request.path in ("/v2/", "/v2"):
            return Body(b"{}", "application/json", headers=_VERSION)
        found = _PATH.fullmatch(request.path)
        if found is None:
            return None
        where = self._where(request, found[1])
        if where is None or not _NAME.fullmatch(where[1]):
            return None
        image, part, reference = f"{where[0]}/{where[1]}", found[2], found[3]
        if part == "manifests":
            return await self._manifest(request, image, reference)
        if part == "blobs" and (digest := _DIGEST.fullmatch(reference)):
            return await self._blob(request, image, digest[1])
        if part == "tags" and reference == "list":
            return await self._tags(request, image)
        return None

    def _where(self, request: Request, name: str) -> tuple[str, str] | None:
        """Return registry and repository; None for a registry that is not configured."""
        known = self._library.settings.oci
        registry = self._library.settings.registry_of_host(request.query.get("ns", "")) or request.name
        first, _, rest = name.partition("/")
        if (
            not request.query.get("ns")
            and not request.name
            and rest
            and (first in known or first in HUB_HOSTS)
        ):
            registry, name = (HUB if first in HUB_HOSTS else first), rest
        if not registry:
            return None
        if registry == HUB and "/" not in name:
            name = f"library/{name}"
        return registry, name

    def _url(self, image: str, rest: str) -> str:
        registry, _, repository = image.partition("/")
        return f"{self._library.settings.oci[registry]}v2/{repository}/{rest}"

    async def _manifest(self, request: Request, image: str, reference: str) -> Answer:
        digest = _DIGEST.fullmatch(reference)
        if digest is None and not _TAG.fullmatch(reference):
            return self._library.missing(request, Artifact("oci", image))
        asked = Artifact("oci", image, reference, "manifests", sha256=digest[1] if digest else "")
        denied = self._library.denied(request, asked)
        if digest is not None:
            if denied and (denied := self._denied_by_all(request, image, digest[1], denied)):
                return denied
            record = await self.manifest(image, digest[1])
            return self._send(asked, record) if record else self._library.missing(request, asked)
        # A tag may lead to an image that is pinned by its digest.
        if denied and not self._pinned(request, image):
            return denied
        record = await self.tag(image, reference)
        if record is None:
            return self._library.missing(request, asked)
        if tag := self._library.store.find("oci", image, reference):
            self._library.touched(tag)
        tagged = Artifact("oci", image, reference, "manifests", sha256=record.sha256)
        return self._library.denied(request, tagged) or self._send(tagged, record)

    def _pinned(self, request: Request, image: str) -> bool:
        """Tell whether the policy allows this caller any image of the repository."""
        return self._library.denied(request, Artifact("oci", image, "", "blobs")) is None

    def _send(self, artifact: Artifact, record: Record) -> Blob:
        self._library.touched(record)
        digest = f"sha256:{record.sha256}"
        headers = {**_VERSION, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return Blob(artifact, record, record.media, headers)

    async def manifest(self, image: str, sha256: str) -> Record | None:
        """Return the record of a manifest, which is fetched if need be. None if there is none."""
        if found := self._library.here("oci", image, f"sha256:{sha256}"):
            return found
        upstreams = self._library.upstreams
        if upstreams is None:
            return None
        try:
            return await upstreams.flights.share(
                ("manifest", image, sha256), lambda: self._fetch(image, f"sha256:{sha256}")
            )
        except NotThere:
            return None

    async def tag(self, image: str, tag: str) -> Record | None:
        """Return the record of the manifest that a tag names now, as far as upstream can say."""
        upstreams = self._library.upstreams
        kept = self._library.store.find("oci", image, tag)
        here = self._library.here("oci", image, f"sha256:{kept.sha256}") if kept else None
        if upstreams is None:
            return here
        key = f"tag {image}:{tag}"
        try:
            digest = await upstreams.document("", key=key, read=partial(self._read_tag, image, tag))
        except NotThere:
            return None
        except UpstreamError:
            if here is None:
                raise
            return here
        return await self.manifest(image, digest.decode())

    async def _read_tag(self, image: str, tag: str) -> bytes:
        """Fetch the manifest that a tag names, keep both, and return its SHA-256."""
        found = await self._fetch(image, tag)
        self._library.store.add(Record("oci", image, tag, found.sha256, found.size, tag, found.media))
        return found.sha256.encode()

    async def _fetch(self, image: str, reference: str) -> Record:
        """Fetch a manifest, check its hash, and keep it with what it names."""
        upstreams, store = self._library.upstreams, self._library.store
        assert upstreams is not None
        url = self._url(image, f"manifests/{reference}")
        async with upstreams.get(url, {"Accept": ", ".join(MANIFESTS)}, scope=scope_of(image)) as answer:
            body = await answer.content.read(LARGEST_MANIFEST + 1)
            while not answer.content.at_eof() and len(body) <= LARGEST_MANIFEST:
                body += await answer.content.read(LARGEST_MANIFEST + 1)
            media = answer.content_type
        if len(body) > LARGEST_MANIFEST:
            raise UpstreamError(f"the manifest {reference} of {image} is too large")
        expected = reference.removeprefix("sha256:") if reference.startswith("sha256:") else None
        try:
            sha256 = store.blobs.put(body, expected)
            parts = parts_of(body)
        except (StoreError, ValueError) as error:
            raise UpstreamError(f"the manifest {reference} of {image}: {error}") from error
        meta = {"parts": parts}
        record = Record(
            "oci", image, f"sha256:{sha256}", sha256, len(body), media=media, origin=url, meta=meta
        )
        store.add(record)
        return record

    async def _blob(self, request: Request, image: str, sha256: str) -> Answer:
        artifact = Artifact("oci", image, "", "blobs", sha256=sha256)
        denied = self._library.denied(request, artifact)
        if denied or self._library.denied(request, Artifact("oci", image, "", "tags")):
            # Only some images of the repository are allowed, or none.
            refusal = denied or Denied(artifact, "", "no image that is allowed holds this blob")
            if denied := self._denied_by_all(request, image, sha256, refusal):
                return denied
        return await self._library.file(
            request,
            artifact,
            ("oci", image, f"sha256:{sha256}"),
            BLOB,
            url=self._url(image, f"blobs/sha256:{sha256}"),
            expected=sha256,
            headers={**_VERSION, "Docker-Content-Digest": f"sha256:{sha256}", "ETag": f'"sha256:{sha256}"'},
            scope=scope_of(image),
        )

    def _denied_by_all(self, request: Request, image: str, sha256: str, refusal: Denied) -> Denied | None:
        """Return None if an allowed manifest holds this blob or manifest, at any depth; else ``refusal``."""
        seen, waiting = set(), [sha256]
        while waiting:
            for holder in self._holders(image, waiting.pop()):
                if holder in seen:
                    continue
                seen.add(holder)
                pinned = Artifact("oci", image, f"sha256:{holder}", "manifests", sha256=holder)
                if self._library.denied(request, pinned) is None:
                    return None
                waiting.append(holder)
        return refusal

    def _holders(self, image: str, sha256: str) -> Iterator[str]:
        for record in self._library.store.named("oci", image).values():
            if record.file.startswith("sha256:") and sha256 in record.meta.get("parts", ()):
                yield record.sha256

    async def _tags(self, request: Request, image: str) -> Answer:
        artifact = Artifact("oci", image, "", "tags")
        if denied := self._library.denied(request, artifact):
            return denied
        records = self._library.store.named("oci", image)
        tags = sorted(file for file in records if not file.startswith("sha256:"))
        if self._library.upstreams is not None:
            try:
                listed = json.loads(
                    await self._library.upstreams.document(
                        self._url(image, "tags/list"), scope=scope_of(image)
                    )
                )
                tags = sorted({*tags, *map(str, listed.get("tags") or ())})
            except (UpstreamError, ValueError, AttributeError):
                if not tags:
                    raise
        if not tags:
            return self._library.missing(request, artifact)
        body = json.dumps({"name": image.partition("/")[2], "tags": tags}).encode()
        return Body(body, "application/json", headers=_VERSION)


def scope_of(image: str) -> str:
    """Return what a token is asked for."""
    return f"repository:{image.partition('/')[2]}:pull"


def parts_of(manifest: bytes) -> list[str]:
    """Return the SHA-256 of all manifests and blobs that a manifest names. Raises ValueError."""
    found = json.loads(manifest)
    if not isinstance(found, dict):
        raise ValueError("a manifest is a JSON object")
    named = [found.get("config"), *_list(found.get("layers")), *_list(found.get("manifests"))]
    parts = []
    for each in named:
        match = _DIGEST.fullmatch(str(each.get("digest", ""))) if isinstance(each, dict) else None
        if match:
            parts.append(match[1])
    return parts


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []
