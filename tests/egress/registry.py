"""Images, and a registry with tokens, that a test makes itself on a site of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from email.message import Message
from urllib.parse import parse_qs, urlsplit

from tests.egress.upstream import Reply, Site

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry:
    """A registry on a site. With ``token``, it answers only to who has asked its token service."""

    def __init__(self, site: Site, token: str = "") -> None:
        self.site, self.token = site, token
        self.tags: dict[str, dict[str, str]] = {}
        site.answer = self._answer

    def add(self, name: str, tag: str, size: int = 1000, platforms: tuple[str, ...] = ("amd64",)) -> str:
        """Offer an image of one layer for each platform, and return the digest of its tag."""
        entries = []
        for platform in platforms:
            content = hashlib.shake_256(f"{name}{tag}{platform}".encode()).digest(size)
            layer = _layer(content)
            config = json.dumps(
                {
                    "architecture": platform,
                    "os": "linux",
                    "config": {},
                    "rootfs": {"type": "layers", "diff_ids": [digest_of(gzip.decompress(layer))]},
                }
            ).encode()
            manifest = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": _entry("application/vnd.oci.image.config.v1+json", config),
                    "layers": [_entry("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
                }
            ).encode()
            for blob in (config, layer):
                self.site.put(f"/v2/{name}/blobs/{digest_of(blob)}", blob)
            self._put_manifest(name, manifest, MANIFEST)
            entries.append(
                {**_entry(MANIFEST, manifest), "platform": {"architecture": platform, "os": "linux"}}
            )
        top = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        self._put_manifest(name, top, INDEX)
        self.site.pages[f"/v2/{name}/manifests/{tag}"] = self.site.pages[
            f"/v2/{name}/manifests/{digest_of(top)}"
        ]
        self.tags.setdefault(name, {})[tag] = digest_of(top)
        tags = json.dumps({"name": name, "tags": sorted(self.tags[name])}).encode()
        self.site.put(f"/v2/{name}/tags/list", tags)
        return digest_of(top)

    def _put_manifest(self, name: str, manifest: bytes, media: str) -> None:
        self.site.pages[f"/v2/{name}/manifests/{digest_of(manifest)}"] = Reply(
            manifest, headers={"Content-Type": media, "Docker-Content-Digest": digest_of(manifest)}
        )

    def _answer(self, path: str, headers: Message) -> Reply | None:
        parts = urlsplit(path)
        if parts.path == "/token":
            scope = parse_qs(parts.query).get("scope", [""])[0]
            return Reply(json.dumps({"token": f"{self.token} {scope}", "expires_in": 300}).encode())
        if parts.path.startswith("/v2/") and self.token:
            name = parts.path.removeprefix("/v2/").rsplit("/", 2)[0]
            if headers.get("Authorization") != f"Bearer {self.token} repository:{name}:pull":
                challenge = f'Bearer realm="{self.site.url}token",service="registry"'
                return Reply(status=401, headers={"WWW-Authenticate": challenge})
        return None


def _layer(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("data")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _entry(media: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media, "digest": digest_of(content), "size": len(content)}
