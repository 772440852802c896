"""An index of wheels that a test makes itself."""

from __future__ import annotations

import hashlib
import html
import json

from tests.egress.upstream import Reply, Site
from tproxy.lab.egress.made import wheel


class Index:
    """An index on a site: /simple/ in JSON and HTML, and files beside it."""

    def __init__(self, site: Site, json_too: bool = True, with_metadata: bool = True) -> None:
        self.site, self.json_too, self.with_metadata = site, json_too, with_metadata
        self.projects: dict[str, list[tuple[str, str, bytes, bytes]]] = {}
        site.answer = self._page

    @property
    def url(self) -> str:
        return self.site.url + "simple/"

    def add(self, name: str, version: str, *requires: str, size: int = 0, tag: str = "py3-none-any") -> bytes:
        """Offer a wheel, and return it."""
        # The bytes cannot be compressed, so the wheel has that size.
        data = {f"{name}.bin": hashlib.shake_256(f"{name}{version}".encode()).digest(size)} if size else {}
        filename, content, metadata = wheel(name, version, requires, data, tag)
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
