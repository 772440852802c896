"""Wheels, and an index of them, that a test makes itself."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import zipfile

from tests.egress.upstream import Reply, Site


def wheel(name: str, version: str, requires: tuple[str, ...] = (), size: int = 0) -> tuple[str, bytes, bytes]:
    """Return (file name, wheel, its METADATA). ``size`` bytes that cannot be compressed make it larger."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = "\n".join(
        ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Requires-Python: >=3.8"]
        + [f"Requires-Dist: {each}" for each in requires]
        + ["", ""]
    ).encode()
    files = {
        f"{module}.py": f"VERSION = {version!r}\n".encode(),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if size:
        seed = hashlib.sha256(f"{name}{version}".encode()).digest()
        files[f"{module}_data.bin"] = b"".join(
            hashlib.sha256(seed + number.to_bytes(8, "big")).digest() for number in range(size // 32)
        )
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},"
        f"{len(content)}\n"
        for path, content in files.items()
    )
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return f"{module}-{version}-py3-none-any.whl", buffer.getvalue(), metadata


class Index:
    """An index on a site: /simple/ in JSON and HTML, and files beside it."""

    def __init__(self, site: Site, json_too: bool = True, with_metadata: bool = True) -> None:
        self.site, self.json_too, self.with_metadata = site, json_too, with_metadata
        self.projects: dict[str, list[tuple[str, str, bytes, bytes]]] = {}
        site.answer = self._page

    @property
    def url(self) -> str:
        return self.site.url + "simple/"

    def add(self, name: str, version: str, *requires: str, size: int = 0) -> bytes:
        """Offer a wheel, and return it."""
        filename, content, metadata = wheel(name, version, requires, size)
        self.projects.setdefault(name, []).append((filename, version, content, metadata))
        self.site.put(f"/packages/{filename}", content)
        self.site.put(f"/packages/{filename}.metadata", metadata)
        return content

    def _page(self, path: str, headers: object) -> Reply | None:
        parts = path.split("/")
        if parts[1] != "simple" or len(parts) != 4 or parts[2] not in self.projects:
            return None
        files = self.projects[parts[2]]
        if not self.json_too:
            return Reply(self._html(files), headers={"Content-Type": "text/html"})
        listed = [
            {
                "filename": filename,
                "url": f"../../packages/{filename}",
                "hashes": {"sha256": hashlib.sha256(content).hexdigest()},
                "requires-python": ">=3.8",
                "size": len(content),
                **self._metadata(metadata),
            }
            for filename, _, content, metadata in files
        ]
        page = {"meta": {"api-version": "1.0"}, "name": parts[2], "files": listed}
        body = json.dumps(page).encode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        return Reply(body, headers={"Content-Type": "application/vnd.pypi.simple.v1+json", "ETag": etag})

    def _metadata(self, metadata: bytes) -> dict[str, object]:
        if not self.with_metadata:
            return {}
        return {"core-metadata": {"sha256": hashlib.sha256(metadata).hexdigest()}}

    def _html(self, files: list[tuple[str, str, bytes, bytes]]) -> bytes:
        links = [
            f'<a href="../../packages/{filename}#sha256={hashlib.sha256(content).hexdigest()}" '
            f'data-requires-python="{html.escape(">=3.8")}">{filename}</a>'
            for filename, _, content, _ in files
        ]
        return f"<!DOCTYPE html><html><body>{'<br>'.join(links)}</body></html>".encode()
