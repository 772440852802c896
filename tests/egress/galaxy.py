"""A Galaxy server on a site of a test's own, with collections built by the real ansible-galaxy."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from email.message import Message
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.egress.upstream import Reply, Site

ANSIBLE_GALAXY = str(Path(sys.executable).with_name("ansible-galaxy"))


def build(folder: Path, name: str, version: str, dependencies: dict[str, str]) -> bytes:
    """Build a collection, and return its archive."""
    namespace, _, short = name.partition(".")
    source = folder / f"{name}-{version}"
    source.mkdir(parents=True)
    galaxy = {
        "namespace": namespace,
        "name": short,
        "version": version,
        "readme": "README.md",
        "authors": ["nobody"],
        "dependencies": dependencies,
    }
    (source / "galaxy.yml").write_text(json.dumps(galaxy))
    (source / "README.md").write_text("A collection of a test.\n")
    (source / "meta").mkdir()
    (source / "meta" / "runtime.yml").write_text("requires_ansible: '>=2.9'\n")
    command = [ANSIBLE_GALAXY, "collection", "build", "--output-path", str(folder), str(source)]
    environment = {"ANSIBLE_HOME": str(folder / "home"), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return (folder / f"{namespace}-{short}-{version}.tar.gz").read_bytes()


def role(name: str) -> bytes:
    """Return the archive of a role, as a forge makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, text in {
            "meta/main.yml": f"galaxy_info: {{role_name: {name}, author: nobody}}\ndependencies: []\n",
            "tasks/main.yml": "[]\n",
        }.items():
            info = tarfile.TarInfo(f"{name}-main/{path}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


class GalaxySite:
    """The API of versions 3 and 1, over what was added."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.collections: dict[str, dict[str, tuple[bytes, dict[str, str]]]] = {}
        self.roles: list[tuple[str, str]] = []
        site.answer = self._answer

    def add(self, folder: Path, name: str, version: str, **dependencies: str) -> bytes:
        needed = {each.replace("__", "."): text for each, text in dependencies.items()}
        archive = build(folder, name, version, needed)
        self.collections.setdefault(name, {})[version] = (archive, needed)
        self.site.put(f"/artifacts/{name.replace('.', '-')}-{version}.tar.gz", archive)
        return archive

    def add_role(self, owner: str, name: str, version: str) -> bytes:
        archive = role(name)
        self.roles.append((owner, name))
        self.site.put(f"/roles/{owner}/{name}/{version}.tar.gz", archive)
        return archive

    def _answer(self, path: str, headers: Message) -> Reply | None:
        parts = urlsplit(path)
        steps = parts.path.strip("/").split("/")
        if steps[:3] == ["api", "v3", "collections"] and len(steps) >= 5:
            return self._collection(f"{steps[3]}.{steps[4]}", steps[5:], parse_qs(parts.query))
        if steps[:3] == ["api", "v1", "roles"]:
            return self._role(steps[3:], parse_qs(parts.query))
        return None

    def _collection(self, name: str, rest: list[str], query: dict[str, list[str]]) -> Reply | None:
        known = self.collections.get(name)
        if known is None or not rest:
            return None
        base = f"/api/v3/collections/{name.replace('.', '/')}/versions/"
        if len(rest) == 1:
            # One version on each page, so that clients have to follow the links.
            offset = int(query.get("offset", ["0"])[0])
            versions = list(known)
            following = f"{base}?limit=1&offset={offset + 1}" if offset + 1 < len(versions) else None
            return _json(
                {
                    "meta": {"count": len(versions)},
                    "links": {"next": following},
                    "data": [{"version": versions[offset], "href": f"{base}{versions[offset]}/"}],
                }
            )
        if rest[1] not in known:
            return None
        archive, dependencies = known[rest[1]]
        namespace, _, short = name.partition(".")
        filename = f"{namespace}-{short}-{rest[1]}.tar.gz"
        return _json(
            {
                "version": rest[1],
                "namespace": {"name": namespace},
                "collection": {"name": short},
                "artifact": {
                    "filename": filename,
                    "sha256": hashlib.sha256(archive).hexdigest(),
                    "size": len(archive),
                },
                "metadata": {"dependencies": dependencies},
                "download_url": f"{self.site.url}artifacts/{filename}",
            }
        )

    def _role(self, rest: list[str], query: dict[str, list[str]]) -> Reply | None:
        if not rest:
            wanted = (query.get("owner__username", [""])[0], query.get("name", [""])[0])
            found = [
                {"id": number, "name": name, "github_user": owner, "github_repo": name}
                for number, (owner, name) in enumerate(self.roles, 1)
                if (owner, name) == wanted
            ]
            return _json({"count": len(found), "results": found})
        owner, name = self.roles[int(rest[0]) - 1]
        start = f"/roles/{owner}/{name}/"
        versions = [
            {"name": path[len(start) :].removesuffix(".tar.gz"), "download_url": self.site.url + path[1:]}
            for path in self.site.pages
            if path.startswith(start)
        ]
        return _json({"count": len(versions), "results": versions})


def _json(found: object) -> Reply:
    return Reply(json.dumps(found).encode(), headers={"Content-Type": "application/json"})
