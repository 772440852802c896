"""Index pages of Python projects, read and written (PEP 503, 629, 658, 691, 700, 714). Pure."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion

JSON = "application/vnd.pypi.simple.v1+json"
HTML = "application/vnd.pypi.simple.v1+html"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class File:
    """A file of a project as an index lists it. ``metadata`` is the SHA-256 of FILE.metadata, or ""."""

    filename: str
    url: str
    version: str
    sha256: str = ""
    requires_python: str = ""
    metadata: str = ""
    has_metadata: bool = False
    yanked: bool | str = False
    size: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def is_project(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and len(name) < 200


def project_and_version(filename: str) -> tuple[str, str] | None:
    """Return normalized project and version of a wheel's or source archive's name; None for other names."""
    try:
        if filename.endswith(".whl"):
            name, version = parse_wheel_filename(filename)[:2]
        else:
            name, version = parse_sdist_filename(filename)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None
    return canonicalize_name(name), str(version)


def parse(body: bytes, base: str, project: str) -> list[File]:
    """Return the files that an index page lists, with absolute addresses. Raises ValueError.

    Files whose names tell no version, or name another project, are left out: nobody can judge them.
    """
    if body.lstrip()[:1] == b"{":
        found = json.loads(body)
        links = [dict(each) for each in found.get("files", []) if isinstance(each, dict)]
    else:
        reader = _Links()
        reader.feed(body.decode("utf-8", "replace"))
        links = reader.links
    files = []
    for link in links:
        filename, url = str(link.get("filename", "")), urljoin(base, str(link.get("url", "")))
        known = project_and_version(filename)
        if known is None or known[0] != project or "/" in filename:
            continue
        hashes = link.get("hashes")
        sha256 = hashes.get("sha256", "") if isinstance(hashes, dict) else ""
        metadata = link.get("core-metadata", link.get("dist-info-metadata", False))
        size = link.get("size")
        files.append(
            File(
                filename=filename,
                url=urldefrag(url).url,
                version=known[1],
                sha256=sha256 if _SHA256.fullmatch(str(sha256)) else "",
                requires_python=str(link.get("requires-python") or ""),
                metadata=str(metadata.get("sha256", "")) if isinstance(metadata, dict) else "",
                has_metadata=bool(metadata),
                yanked=link.get("yanked", False),
                size=size if isinstance(size, int) else None,
            )
        )
    return files


class _Links(HTMLParser):
    """Collects the links of a PEP 503 page as PEP 691 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag != "a" or not found.get("href"):
            return
        url, fragment = urldefrag(found["href"] or "")
        hashes = dict([fragment.split("=", 1)]) if "=" in fragment else {}
        metadata = found.get("data-core-metadata", found.get("data-dist-info-metadata"))
        parsed = dict([metadata.split("=", 1)]) if metadata and "=" in metadata else metadata == "true"
        self.links.append(
            {
                "filename": unquote(url.rstrip("/").rpartition("/")[2]),
                "url": url,
                "hashes": hashes,
                "requires-python": found.get("data-requires-python"),
                "core-metadata": parsed,
                "yanked": (found["data-yanked"] or True) if "data-yanked" in found else False,
            }
        )


def as_json(project: str, files: Iterable[File], sites: Sequence[str] = ()) -> bytes:
    """Return the page in JSON. Addresses of files are relative to the page, or at one of ``sites``."""
    listed = []
    versions = set()
    for file in files:
        versions.add(file.version)
        entry: dict[str, Any] = {
            "filename": file.filename,
            "url": _link(project, file, sites),
            "hashes": {"sha256": file.sha256} if file.sha256 else {},
            "yanked": file.yanked,
        }
        if file.requires_python:
            entry["requires-python"] = file.requires_python
        if file.has_metadata:
            entry["core-metadata"] = {"sha256": file.metadata} if file.metadata else True
        if file.size is not None:
            entry["size"] = file.size
        listed.append(entry)
    # From 1.1 on each file must have a size, which not every upstream tells.
    version = "1.1" if all("size" in entry for entry in listed) else "1.0"
    page: dict[str, Any] = {"meta": {"api-version": version}, "name": project, "files": listed}
    if version == "1.1":
        page["versions"] = sorted(versions)
    return json.dumps(page).encode()


def as_html(project: str, files: Iterable[File], sites: Sequence[str] = ()) -> bytes:
    """Return the page in HTML. Addresses of files are as in ``as_json``."""
    lines = [
        '<!DOCTYPE html><html><head><meta name="pypi:repository-version" content="1.0">',
        f"<title>{html.escape(project)}</title></head><body>",
    ]
    for file in files:
        attributes = [f'href="{html.escape(_link(project, file, sites) + _fragment(file))}"']
        if file.requires_python:
            attributes.append(f'data-requires-python="{html.escape(file.requires_python)}"')
        if file.has_metadata:
            metadata = f"sha256={file.metadata}" if file.metadata else "true"
            attributes += [f'data-core-metadata="{metadata}"', f'data-dist-info-metadata="{metadata}"']
        if file.yanked is not False:
            reason = file.yanked if isinstance(file.yanked, str) else ""
            attributes.append(f'data-yanked="{html.escape(reason)}"')
        lines.append(f"<a {' '.join(attributes)}>{html.escape(file.filename)}</a><br>")
    return "\n".join([*lines, "</body></html>\n"]).encode()


def _link(project: str, file: File, sites: Sequence[str]) -> str:
    if not sites:
        return f"../../files/{quote(project)}/{quote(file.filename)}"
    if any(file.url.startswith(site) for site in sites):
        return file.url
    return f"{sites[0]}packages/{quote(file.filename)}"


def _fragment(file: File) -> str:
    return f"#sha256={file.sha256}" if file.sha256 else ""


def projects_as_json(projects: Iterable[str]) -> bytes:
    names = [{"name": name} for name in projects]
    return json.dumps({"meta": {"api-version": "1.0"}, "projects": names}).encode()


def projects_as_html(projects: Iterable[str]) -> bytes:
    links = "\n".join(f'<a href="{quote(name)}/">{html.escape(name)}</a><br>' for name in projects)
    return (
        f"<!DOCTYPE html><html><head><title>Projects</title></head><body>\n{links}\n</body></html>\n".encode()
    )
