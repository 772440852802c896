"""The appliance in a bundle: wheels or Debian packages of tproxy, and an OCI archive of it.

They are records of a kind of their own, which no part of the mirror answers for. So an import keeps them, and
nothing is served or installed; ``tproxy egress upgrade`` does that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from tproxy.egress.bundle.manifest import APPLIANCE, BundleError
from tproxy.egress.gather.engines import wheels
from tproxy.egress.gather.lists import Targets
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

# What tproxy is called among wheels, and among Debian packages.
WHEEL, DEB = "one-tproxy", "tproxy"

_CHUNK = 1 << 20

# A file's name becomes a path again at the upgrade.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~!%:-]*\.(whl|deb|tar)")


def take(store: Store, paths: Iterable[Path]) -> list[Record]:
    """Put these files, and those in these directories, into the store. Return their records.

    Raises BundleError for a file that is no wheel, Debian package or OCI archive, and when tproxy itself is
    not among them.
    """
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    if twice := {file.name for file in files if [each.name for each in files].count(file.name) > 1}:
        raise BundleError(f"two of the appliance's files are called {min(twice)}")
    found = [_record(store, file) for file in files]
    if found and not any(is_tproxy(record) for record in found):
        raise BundleError(
            f"no wheel {WHEEL}, Debian package {DEB} or OCI archive is among the appliance's files"
        )
    return found


def missing(store: Store, records: Iterable[Record], targets: Targets) -> list[str]:
    """Return what the wheels among these lack, as pip says it, a line each. apt decides at the upgrade."""
    found = [record for record in records if form(record) == "whl"]
    with tempfile.TemporaryDirectory(dir=store.root) as folder:
        for record in found:
            os.link(store.blobs.path(record.sha256), Path(folder, record.file))
        names = [f"{WHEEL}[egress]=={record.version}" for record in found if is_tproxy(record)]
        return [f"appliance: {why}" for name in names for why in wheels(Path(folder), name, targets)]


def is_tproxy(record: Record) -> bool:
    """Tell whether a file of the appliance is tproxy itself, and not something that it needs."""
    return record.name == {"whl": WHEEL, "deb": DEB}.get(form(record), record.name)


def form(record: Record) -> str:
    """Return "whl", "deb" or "tar". Raises BundleError for a name that cannot be a file's here."""
    found = _FILE.fullmatch(record.file)
    if found is None:
        raise BundleError(f"{record.file!a} is no name of a wheel, a Debian package or an OCI archive")
    return found[1]


def _record(store: Store, path: Path) -> Record:
    found = _FILE.fullmatch(path.name)
    if found is None:
        raise BundleError(f"{path} is no wheel (.whl), Debian package (.deb) or OCI archive (.tar)")
    try:
        name, version = {"whl": _wheel, "deb": _deb, "tar": _archive}[found[1]](path)
        size = path.stat().st_size
        with path.open("rb") as source, store.blobs.writer(size=size) as blob:
            shutil.copyfileobj(source, blob, _CHUNK)
            sha256 = blob.check()
            if store.blobs.find(sha256) is None:
                blob.commit()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    return Record(APPLIANCE, name, path.name, sha256, size, version)


def _wheel(path: Path) -> tuple[str, str]:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise BundleError(f"{path} is no wheel: {error}") from error
    return name, str(version)


def _deb(path: Path) -> tuple[str, str]:
    command = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name, _, version = done.stdout.partition(" ")
    if done.returncode or not version:
        raise BundleError(f"{path} is no Debian package: {done.stderr.strip()}")
    return name, version


def _archive(path: Path) -> tuple[str, str]:
    """Return name and tag of an image, as its index names it (OCI image layout, annotations)."""
    try:
        with tarfile.open(path) as archive:
            layout, index = (archive.extractfile(name) for name in ("oci-layout", "index.json"))
            assert layout is not None
            assert index is not None
            (manifest,) = json.load(index)["manifests"]
    except (tarfile.TarError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise BundleError(f"{path} is no OCI archive of one image: {error}") from error
    reference = str(manifest.get("annotations", {}).get("org.opencontainers.image.ref.name", ""))
    return path.name.removesuffix(".tar"), reference.rpartition(":")[2]
