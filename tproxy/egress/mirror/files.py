"""The mirror of plain files, which the policy names by address and SHA-256."""

from __future__ import annotations

from tproxy.egress.mirror.answers import Answer, Request
from tproxy.egress.mirror.library import Library
from tproxy.egress.model import Artifact

MEDIA = "application/octet-stream"


class Files:
    """Answers for addresses of plain files. The request's path is the address."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def answer(self, request: Request) -> Answer:
        """Return the file. Raises UpstreamError."""
        url = request.path
        record = self._library.store.find("file", url, "")
        expected = self._library.settings.files.get(url) or (record.sha256 if record else "")
        artifact = Artifact("file", filename=url.rpartition("/")[2], url=url, sha256=expected)
        # A rule names a file by its hash (files), or a URL (get).
        denied = self._library.denied(request, artifact)
        if denied and self._library.denied(request, Artifact("uri", url=url)):
            return denied
        if not expected:
            return self._library.missing(request, artifact)
        return await self._library.file(
            request, artifact, ("file", url, ""), MEDIA, url=url, expected=expected
        )
