"""Sealed Debian suites: aptly makes the indexes of the packages that a bundle brought; this site's key signs.

aptly works in a directory that is removed afterwards. What it wrote below dists/ goes into the store, and
packages are served from their blobs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tproxy.egress.mirror import deb_indexes
from tproxy.egress.mirror.site_key import SiteKey
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store
from tproxy.errors import TproxyError


def build(store: Store, records: Iterable[Record], key: SiteKey) -> list[Record]:
    """Return the records of signed suites for packages, whose blobs are in the store. Raises TproxyError."""
    suites: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record.kind == "deb":
            for suite in record.meta.get("suites") or ():
                suites.setdefault((record.name, str(suite)), {})[record.sha256] = record
    found: list[Record] = []
    if suites:
        key.create()
    for (repository, suite), packages in sorted(suites.items()):
        found += _suite(store, repository, suite, list(packages.values()), key)
    return found


def _suite(store: Store, repository: str, suite: str, packages: list[Record], key: SiteKey) -> list[Record]:
    with tempfile.TemporaryDirectory(dir=store.root, prefix="aptly.") as folder:
        root = Path(folder)
        (root / "aptly.conf").write_text(json.dumps({"rootDir": folder, "skipContentsPublishing": True}))
        for component in sorted({_component(record) for record in packages}):
            debs = root / "debs" / component
            debs.mkdir(parents=True)
            for record in packages:
                if _component(record) == component:
                    # A link is enough: aptly reads the file, and copies it where it is thrown away.
                    os.link(store.blobs.path(record.sha256), debs / record.file.rpartition("/")[2])
            _aptly(root, "repo", "create", f"-distribution={suite}", f"-component={component}", component)
            _aptly(root, "repo", "add", component, str(debs))
        components = sorted(path.name for path in (root / "debs").iterdir())
        # aptly wants one architecture besides "all".
        architectures = {record.file.removesuffix(".deb").rpartition("_")[2] for record in packages} | {"all"}
        if architectures == {"all"}:
            architectures.add("amd64")
        options = ["-skip-signing", "-acquire-by-hash", f"-component={','.join(components)}"]
        options += [f"-architectures={','.join(sorted(architectures))}"]
        options += [f"-distribution={suite}", "-origin=tproxy"]
        _aptly(root, "publish", "repo", *options, *components)
        return _take(store, root / "public", repository, suite, packages, key)


def _take(
    store: Store, public: Path, repository: str, suite: str, packages: list[Record], key: SiteKey
) -> list[Record]:
    """Put what aptly wrote into the store, signed, and return the records."""
    found = []
    by_hash = {record.sha256: record for record in packages}
    base = public / "dists" / suite
    release = (base / "Release").read_bytes()
    written = {
        path.relative_to(base).as_posix(): path.read_bytes()
        for path in base.rglob("*")
        if path.is_file() and path.parent.name not in ("MD5Sum", "SHA1", "SHA512")
    }
    written |= {"InRelease": key.clear_sign(release), "Release.gpg": key.detached(release)}
    for path, body in written.items():
        sha256 = store.blobs.put(body)
        found.append(Record("dists", f"{repository} {suite}", path, sha256, len(body), suite))
        if path.endswith("/Packages"):
            for each in deb_indexes.packages(body.decode()):
                before = by_hash[each.sha256]
                found.append(
                    Record(
                        "deb",
                        repository,
                        each.path,
                        each.sha256,
                        each.size,
                        each.version,
                        before.media,
                        before.origin,
                        {"suites": [suite]},
                    )
                )
    return found


def _component(record: Record) -> str:
    """Return "main" from pool/main/c/curl/…; repositories without that have one component."""
    parts = record.file.split("/")
    return parts[1] if parts[0] == "pool" and len(parts) > 3 else "main"


def _aptly(root: Path, *arguments: str) -> None:
    command = ["aptly", f"-config={root / 'aptly.conf'}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    except FileNotFoundError:
        raise TproxyError("aptly is not installed: apt install aptly") from None
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise TproxyError(f"aptly {arguments[0]}: {lines[-1] if lines else 'failed without a word'}")
