"""Debian's docker-registry as an upstream, with images that a test makes itself and skopeo pushes.

A site of the test stands before it: it counts, it can misbehave, and it may ask for tokens.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.egress.upstream import Reply, Site
from tests.netns.waiting import eventually

# What `.ci/setup egress` unpacks: where it is installed, it runs as services.
CONTAINERS = Path(__file__).parents[2] / "build/containers"
PROGRAM = (
    shutil.which("docker-registry", path=f"{CONTAINERS}/usr/bin:{os.environ['PATH']}") or "docker-registry"
)

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

# Everything is in memory, and goes with the process.
CONFIG: dict[str, Any] = {
    "version": "0.1",
    "log": {"level": "info"},
    "storage": {"inmemory": {}},
    "http": {"addr": "127.0.0.1:0"},
}

_PASSED = ("Accept", "Range", "If-None-Match")
_HOP = ("connection", "content-length", "date", "transfer-encoding")


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Layout:
    """An image of one layer for each platform, as a directory in the OCI layout."""

    def __init__(self, folder: Path, seed: str, size: int, platforms: tuple[str, ...]) -> None:
        self.folder, self.layers, self.manifests = folder, list[bytes](), list[bytes]()
        (folder / "blobs/sha256").mkdir(parents=True)
        entries = []
        for platform in platforms:
            layer = _layer(hashlib.shake_256(f"{seed}{platform}".encode()).digest(size))
            rootfs = {"type": "layers", "diff_ids": [digest_of(gzip.decompress(layer))]}
            config = {"architecture": platform, "os": "linux", "config": {}, "rootfs": rootfs}
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._put("application/vnd.oci.image.config.v1+json", _json(config)),
                "layers": [self._put("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
            }
            self.layers.append(layer)
            self.manifests.append(_json(manifest))
            entry = self._put(MANIFEST, self.manifests[-1])
            entries.append({**entry, "platform": {"architecture": platform, "os": "linux"}})
        self.index = _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        top = {"schemaVersion": 2, "manifests": [self._put(INDEX, self.index)]}
        (folder / "index.json").write_bytes(_json(top))

    def _put(self, media: str, content: bytes) -> dict[str, object]:
        (self.folder / "blobs/sha256" / digest_of(content)[7:]).write_bytes(content)
        return {"mediaType": media, "digest": digest_of(content), "size": len(content)}

    def push(self, to: str) -> list[str]:
        """Return the command that pushes it to a registry without a known certificate."""
        return ["skopeo", "copy", "--all", "--quiet", "--dest-tls-verify=false", f"oci:{self.folder}", to]


class Registry:
    """A registry on a site. With ``token``, it answers only to who has asked its token service."""

    def __init__(self, site: Site, token: str = "") -> None:
        self.site, self.token = site, token
        folder = tempfile.TemporaryDirectory()
        self._folder, self._added = Path(folder.name), 0
        (self._folder / "config.json").write_text(json.dumps(CONFIG))
        command = [PROGRAM, "serve", str(self._folder / "config.json")]
        self._log = self._folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        site.at_end += [self._end, folder.cleanup]
        self._port = self._listens()
        site.answer = self._answer

    def add(self, name: str, tag: str, size: int = 1000, platforms: tuple[str, ...] = ("amd64",)) -> Layout:
        """Push an image, and return it."""
        self._added += 1
        made = Layout(self._folder / str(self._added), f"{name}{tag}", size, platforms)
        command = made.push(f"docker://127.0.0.1:{self._port}/{name}:{tag}")
        subprocess.run(command, check=True, capture_output=True)
        return made

    def _listens(self) -> int:
        """Return the port, which the log names."""
        for _ in eventually():
            assert self._process.poll() is None, self._log.read_text()
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", self._log.read_text()):
                return int(found[1])
        raise AssertionError

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answer(self, path: str, headers: Message) -> Reply | None:
        parts = urlsplit(path)
        if parts.path == "/token":
            scope = parse_qs(parts.query).get("scope", [""])[0]
            return Reply(_json({"token": f"{self.token} {scope}", "expires_in": 300}))
        if parts.path.startswith("/v2/") and self.token:
            name = parts.path.removeprefix("/v2/").rsplit("/", 2)[0]
            if headers.get("Authorization") != f"Bearer {self.token} repository:{name}:pull":
                challenge = f'Bearer realm="{self.site.url}token",service="registry"'
                return Reply(status=401, headers={"WWW-Authenticate": challenge})
        return None if parts.path in self.site.pages else self._ask(path, headers)

    def _ask(self, path: str, headers: Message) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        passed = {name: text for name in _PASSED if (text := headers.get(name))}
        try:
            connection.request("GET", path, headers=passed)
            with connection.getresponse() as answer:
                kept = {name: text for name, text in answer.getheaders() if name.lower() not in _HOP}
                return Reply(answer.read(), answer.status, kept)
        except OSError:  # the test has ended
            return Reply(status=502)
        finally:
            connection.close()


def _layer(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("data")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _json(found: object) -> bytes:
    return json.dumps(found).encode()
