"""The mirror of Ansible Galaxy: collections by API version 3, roles by version 1.

Answers are made here from few facts about each version, so a store without upstream gives the same ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urljoin

from packaging.version import InvalidVersion, Version

from tproxy.egress.mirror.answers import Answer, Body, Request
from tproxy.egress.mirror.library import Library
from tproxy.egress.mirror.upstream import NotThere, UpstreamError
from tproxy.egress.model import Artifact
from tproxy.egress.purls import role as a_role
from tproxy.egress.store.records import Record

ARCHIVE = "application/gzip"
PAGES = 50  # of one listing at upstream; a collection with 100 versions on each is not known

_PART = "[a-zA-Z0-9_]+"
_INDEX = "(?:plugin/ansible/content/published/)?collections/(?:index/)?"
_COLLECTION = re.compile(rf"/api/v3/{_INDEX}({_PART})/({_PART})/(versions/)?(?:([0-9][\w.+-]*)/)?")
_ARTIFACT = re.compile(rf"/(?:.*/)?({_PART})-({_PART})-([0-9][\w.+-]*)\.tar\.gz")
_ROLE_VERSIONS = re.compile(r"/api/v1/roles/([0-9]+)/versions/?")
_ROLE_FILE = re.compile(r"/api/v1/roles/([\w-]+)\.([\w-]+)/([\w.+-]+)\.tar\.gz")

Json = dict[str, Any]


class Galaxy:
    """Answers what ansible-galaxy asks."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def answer(self, request: Request) -> Answer | None:
        """Return the answer, or None for a path that Galaxy does not have. Raises UpstreamError."""
        path = request.path
        if path in ("/api/", "/api"):
            return _json({"available_versions": {"v1": "v1/", "v3": "v3/"}, "current_version": "v3"})
        if found := _COLLECTION.fullmatch(path):
            return await self._collection(request, f"{found[1]}.{found[2]}", bool(found[3]), found[4] or "")
        if path.rstrip("/") == "/api/v1/roles":
            return await self._role(request)
        if found := _ROLE_VERSIONS.fullmatch(path):
            return await self._role_versions(request, found[1])
        if found := _ROLE_FILE.fullmatch(path):
            return await self._role_file(request, f"{found[1]}.{found[2]}", found[3])
        if found := _ARTIFACT.fullmatch(path):
            return await self._artifact(request, f"{found[1]}.{found[2]}", found[3])
        return None

    # Collections

    async def _collection(self, request: Request, name: str, versions: bool, version: str) -> Answer:
        artifact = Artifact("galaxy", name, version)
        if denied := self._library.denied(request, artifact):
            return denied
        if version:
            details = await self._details(name, version)
            if details is None:
                return self._library.missing(request, artifact)
            return _json(self._version_page(request, name, details))
        known = [
            each
            for each in await self._versions(name)
            if self._library.denied(request, Artifact("galaxy", name, each)) is None
        ]
        if not known:
            return self._library.missing(request, artifact)
        return _json(_versions_page(name, known) if versions else _collection_page(name, known))

    async def _versions(self, name: str) -> list[str]:
        """Return the versions of a collection, the newest first."""
        kept = {record.version for record in self._library.store.named("galaxy", name).values()}
        if self._library.upstreams is not None:
            try:
                kept |= set(await self._versions_upstream(name))
            except NotThere:
                pass
            except UpstreamError:
                if not kept:
                    raise
        return sorted(kept, key=_version, reverse=True)

    async def _versions_upstream(self, name: str) -> list[str]:
        assert self._library.upstreams is not None
        versions: list[str] = []
        url: str | None = self._url(name, "versions/?limit=100")
        for _ in range(PAGES):
            if url is None:
                break
            page = _object(await self._library.upstreams.document(url, {"Accept": "application/json"}))
            versions += [str(each["version"]) for each in page.get("data", []) if "version" in each]
            following = page.get("links", {}).get("next")
            url = urljoin(url, following) if following else None
        return versions

    def _url(self, name: str, rest: str = "") -> str:
        namespace, _, collection = name.partition(".")
        return f"{self._library.settings.galaxy}api/v3/collections/{namespace}/{collection}/{rest}"

    async def _details(self, name: str, version: str) -> Json | None:
        """Return file name, hash, size, dependencies and upstream's address of one version."""
        record = self._library.store.find("galaxy", name, _filename(name, version))
        if record is not None:
            return _details_of(record)
        if self._library.upstreams is None:
            return None
        url = self._url(name, f"versions/{version}/")
        try:
            page = _object(await self._library.upstreams.document(url, {"Accept": "application/json"}))
        except NotThere:
            return None
        artifact, metadata = page.get("artifact") or {}, page.get("metadata") or {}
        return {
            "version": version,
            "sha256": str(artifact.get("sha256", "")),
            "size": artifact.get("size", 0),
            "dependencies": metadata.get("dependencies") or {},
            "url": urljoin(url, str(page.get("download_url", ""))),
        }

    def _version_page(self, request: Request, name: str, details: Json) -> Json:
        namespace, _, collection = name.partition(".")
        version, filename = details["version"], _filename(name, details["version"])
        return {
            "version": version,
            "href": f"/api/v3/collections/{namespace}/{collection}/versions/{version}/",
            "namespace": {"name": namespace},
            "collection": {"name": collection},
            "name": collection,
            "artifact": {"filename": filename, "sha256": details["sha256"], "size": details["size"]},
            "metadata": {"dependencies": details["dependencies"]},
            "download_url": f"{self._base(request)}download/{filename}",
            "signatures": [],
        }

    def _base(self, request: Request) -> str:
        """Return the address by which this client reached us: download addresses have to be absolute."""
        return self._library.settings.galaxy if request.official else f"{request.base}/galaxy/"

    async def _artifact(self, request: Request, name: str, version: str) -> Answer:
        filename = _filename(name, version)
        artifact = Artifact("galaxy", name, version, filename)
        if denied := self._library.denied(request, artifact):
            return denied
        details = await self._details(name, version)
        if details is None:
            return self._library.missing(request, artifact)
        return await self._library.file(
            request,
            artifact,
            ("galaxy", name, filename),
            ARCHIVE,
            url=details["url"],
            expected=details["sha256"] or None,
            meta={"dependencies": details["dependencies"]},
        )

    # Roles

    async def _role(self, request: Request) -> Answer:
        owner, name = request.query.get("owner__username", ""), request.query.get("name", "")
        role = f"{owner}.{name}"
        if not re.fullmatch(r"[\w-]+\.[\w-]+", role):
            return _json({"count": 0, "results": []})
        artifact = a_role(role)
        if denied := self._library.denied(request, artifact):
            return denied
        versions = await self._role_known(role)
        if not versions:
            return self._library.missing(request, artifact)
        number = _role_number(role)
        self._library.store.keep_document(f"role number {number}", role.encode())
        entry = {
            "id": number,
            "name": name,
            "username": owner,
            "github_user": owner,
            "github_repo": name,
            "github_branch": "main",
            "summary_fields": {"versions": [{"name": each} for each in versions]},
        }
        return _json({"count": 1, "next": None, "previous": None, "results": [entry]})

    async def _role_versions(self, request: Request, number: str) -> Answer:
        kept = self._library.store.document(f"role number {number}")
        role = kept[2].decode() if kept else ""
        artifact = a_role(role)
        if not role:
            return self._library.missing(request, Artifact("galaxy", f"role {number}"))
        if denied := self._library.denied(request, artifact):
            return denied
        versions = await self._role_known(role)
        results = [
            {"name": each, "download_url": f"{self._base(request)}api/v1/roles/{role}/{each}.tar.gz"}
            for each in versions
        ]
        return _json({"count": len(results), "next": None, "previous": None, "results": results})

    async def _role_known(self, role: str) -> dict[str, str]:
        """Return the versions of a role, each with the address of its archive at upstream."""
        kept = {record.version: record.origin for record in self._library.store.named("role", role).values()}
        upstreams = self._library.upstreams
        if upstreams is None:
            return kept
        owner, _, name = role.partition(".")
        api = f"{self._library.settings.galaxy}api/v1/roles/"
        try:
            query = urlencode({"owner__username": owner, "name": name})
            found = _object(await upstreams.document(f"{api}?{query}")).get("results") or []
            if not found:
                return kept
            entry = found[0]
            listed = _object(await upstreams.document(f"{api}{int(entry['id'])}/versions/"))
            for each in listed.get("results") or ():
                version = str(each["name"])
                kept.setdefault(version, str(each.get("download_url") or _forge(entry, version)))
        except (NotThere, KeyError, TypeError, ValueError):
            pass
        except UpstreamError:
            if not kept:
                raise
        return kept

    async def _role_file(self, request: Request, role: str, version: str) -> Answer:
        artifact = a_role(role, version)
        if denied := self._library.denied(request, artifact):
            return denied
        key = ("role", role, f"{version}.tar.gz")
        if self._library.here(*key):
            return await self._library.file(request, artifact, key, ARCHIVE)
        url = (await self._role_known(role)).get(version, "")
        if not url:
            return self._library.missing(request, artifact)
        return await self._library.file(request, artifact, key, ARCHIVE, url=url)


def _forge(entry: Mapping[str, Any], version: str) -> str:
    """Return the address of a role's archive where its entry names none, as ansible-galaxy makes it."""
    return f"https://github.com/{entry['github_user']}/{entry['github_repo']}/archive/{version}.tar.gz"


def _details_of(record: Record) -> Json:
    return {
        "version": record.version,
        "sha256": record.sha256,
        "size": record.size,
        "dependencies": record.meta.get("dependencies", {}),
        "url": record.origin,
    }


def _filename(name: str, version: str) -> str:
    return f"{name.replace('.', '-')}-{version}.tar.gz"


def _version(text: str) -> tuple[bool, Version]:
    try:
        return True, Version(text)
    except InvalidVersion:
        return False, Version("0")


def _role_number(role: str) -> int:
    """Return a number for a role, since clients ask for its versions by number."""
    return int(hashlib.sha256(role.encode()).hexdigest()[:13], 16)


def _collection_page(name: str, versions: list[str]) -> Json:
    namespace, _, collection = name.partition(".")
    here = f"/api/v3/collections/{namespace}/{collection}/"
    return {
        "href": here,
        "namespace": namespace,
        "name": collection,
        "deprecated": False,
        "versions_url": f"{here}versions/",
        "highest_version": {"href": f"{here}versions/{versions[0]}/", "version": versions[0]},
    }


def _versions_page(name: str, versions: list[str]) -> Json:
    namespace, _, collection = name.partition(".")
    here = f"/api/v3/collections/{namespace}/{collection}/versions/"
    data = [{"version": each, "href": f"{here}{each}/"} for each in versions]
    return {
        "meta": {"count": len(data)},
        "links": {"first": None, "previous": None, "next": None, "last": None},
        "data": data,
    }


def _object(body: bytes) -> Json:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise UpstreamError(f"Galaxy sent no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UpstreamError("Galaxy sent JSON that is no object")
    return found


def _json(found: Json) -> Body:
    return Body(json.dumps(found).encode(), "application/json")
