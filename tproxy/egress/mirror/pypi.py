"""The mirror of a Python index: ``/simple/NAME/``, ``/files/NAME/FILE``, and official addresses of files."""

from __future__ import annotations

from urllib.parse import quote

from packaging.utils import canonicalize_name
from packaging.version import Version

from tproxy.egress.mirror import index_pages
from tproxy.egress.mirror.answers import Answer, Body, Request
from tproxy.egress.mirror.index_pages import File
from tproxy.egress.mirror.library import Library, Recent
from tproxy.egress.mirror.upstream import NotThere, UpstreamError
from tproxy.egress.model import Artifact

# An HTML page is what an index that knows no JSON has.
ACCEPT = f"{index_pages.JSON}, {index_pages.HTML};q=0.2, text/html;q=0.1"

MEDIA = "application/octet-stream"
METADATA = ".metadata"  # PEP 658: beside each wheel


class PyPI:
    """Answers what clients ask of a Python index."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._recent = Recent()

    async def answer(self, request: Request) -> Answer | None:
        """Return the answer, or None for a path that no index has. Raises UpstreamError."""
        parts = request.path.split("/")[1:]
        if parts[0] == "simple" and len(parts) == 2 and not parts[1]:
            return self._projects(request)
        if parts[0] == "simple" and len(parts) in (2, 3) and index_pages.is_project(parts[1]):
            name = canonicalize_name(parts[1])
            if parts[1:] != [name, ""]:
                steps = "../" if len(parts) == 3 else ""
                return Body(b"", "text/plain", 301, {"Location": f"{steps}{name}/"})
            return await self._page(request, name)
        if parts[0] == "files" and len(parts) == 3 and index_pages.is_project(parts[1]):
            return await self._file(request, canonicalize_name(parts[1]), parts[2])
        if parts[0] == "packages" or request.official:
            # An address at files.pythonhosted.org, as index pages and lock files have it.
            known = index_pages.project_and_version(parts[-1].removesuffix(METADATA))
            return await self._file(request, known[0], parts[-1]) if known else None
        return None

    def _projects(self, request: Request) -> Body:
        names = sorted({record.name for record in self._library.store.all() if record.kind == "pypi"})
        if _wants_json(request):
            return Body(index_pages.projects_as_json(names), index_pages.JSON)
        return Body(index_pages.projects_as_html(names), "text/html; charset=utf-8")

    async def _page(self, request: Request, name: str) -> Answer:
        artifact = Artifact("pypi", name)
        if denied := self._library.denied(request, artifact):
            return denied
        as_json = _wants_json(request)
        caller = request.caller
        key = (name, as_json, request.official, caller.hypervisor, caller.network, caller.network_id)
        if kept := self._recent.find(key):
            assert isinstance(kept, Body)
            return kept
        files = await self.files(name)
        if not files:
            return self._library.missing(request, artifact)
        allowed = [
            file
            for file in files
            if self._library.verdict(
                caller, _artifact(name, file.version, file.filename, file.sha256)
            ).allowed
        ]
        write = index_pages.as_json if as_json else index_pages.as_html
        media = index_pages.JSON if as_json else "text/html; charset=utf-8"
        sites = self._library.settings.pypi_files if request.official else ()
        body = Body(write(name, allowed, sites), media)
        self._recent.keep(key, body)
        return body

    async def files(self, name: str) -> list[File]:
        """Return the files of a project: what upstream lists, or else what the store has.

        Raises UpstreamError when upstream does not answer, and the store has nothing.
        """
        kept = self._kept(name)
        if self._library.upstreams is None:
            return kept
        url = f"{self._library.settings.pypi}{quote(name)}/"
        try:
            body = await self._library.upstreams.document(url, {"Accept": ACCEPT})
            listed = index_pages.parse(body, url, name)
        except NotThere:
            return kept
        except UpstreamError:
            if kept:
                return kept
            raise
        except ValueError as error:
            raise UpstreamError(f"the index of {name} cannot be read: {error}") from error
        names = {file.filename for file in listed}
        return [*listed, *(file for file in kept if file.filename not in names)]

    def _kept(self, name: str) -> list[File]:
        records = self._library.store.named("pypi", name)
        files = []
        for filename, record in records.items():
            if filename.endswith(METADATA):
                continue
            metadata = records.get(filename + METADATA)
            files.append(
                File(
                    filename=filename,
                    url=record.origin,
                    version=record.version,
                    sha256=record.sha256,
                    requires_python=str(record.meta.get("requires_python", "")),
                    metadata=metadata.sha256 if metadata else "",
                    has_metadata=metadata is not None,
                    yanked=record.meta.get("yanked", False),
                    size=record.size,
                )
            )
        return sorted(files, key=lambda file: (Version(file.version), file.filename))

    async def _file(self, request: Request, name: str, filename: str) -> Answer | None:
        wheel = filename.removesuffix(METADATA)
        known = index_pages.project_and_version(wheel)
        if known is None or known[0] != name:
            return None
        artifact = _artifact(name, known[1], filename)
        key = ("pypi", name, filename)
        media = "text/plain; charset=utf-8" if filename != wheel else MEDIA
        if denied := self._library.denied(request, artifact):
            return denied
        if found := self._library.here(*key):
            # Immutable: no index is asked about what is here.
            return await self._library.file(request, artifact, key, media, expected=found.sha256)
        listed = None
        if self._library.upstreams is not None:
            listed = next((file for file in await self.files(name) if file.filename == wheel), None)
            if listed is None or (filename != wheel and not listed.has_metadata):
                return self._library.missing(request, artifact)
        url = expected = ""
        if listed is not None:
            url = listed.url + (METADATA if filename != wheel else "")
            expected = listed.metadata if filename != wheel else listed.sha256
        meta = {}
        if listed is not None and filename == wheel:
            meta = {"requires_python": listed.requires_python, "yanked": listed.yanked}
        return await self._library.file(
            request, artifact, key, media, url=url, expected=expected or None, meta=meta
        )


def _artifact(name: str, version: str, filename: str, sha256: str = "") -> Artifact:
    return Artifact("pypi", name, version, filename, sha256=sha256)


def _wants_json(request: Request) -> bool:
    return "application/vnd.pypi.simple.v1+json" in request.accept or "simple.latest+json" in request.accept
