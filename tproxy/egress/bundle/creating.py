"""Writes a bundle from records whose blobs are in the store."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from tproxy.egress.bundle import manifest as manifests
from tproxy.egress.bundle.manifest import BLOBS, KEY, MANIFEST, SIGNATURE, BundleError, Manifest
from tproxy.egress.bundle.parts import Writer
from tproxy.egress.signing import KeyPair
from tproxy.egress.store.durable import replace
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store


def create(
    store: Store,
    records: Iterable[Record],
    target: Path,
    key: KeyPair,
    base: int | None = None,
    split: int | None = None,
    seen: Callable[[int], None] = lambda count: None,
) -> tuple[Manifest, list[Path]]:
    """Write a bundle, and return its manifest and files. ``base`` makes a delta against an earlier serial.

    ``seen`` hears of written bytes. Raises BundleError, and then no file has its name.
    """
    created = store.root / "created"
    created.mkdir(exist_ok=True)
    earlier = sorted(int(path.stem) for path in created.glob("*.json"))
    against = _created(created, base) if base is not None else None
    found = manifests.make(max([*earlier, store.serial() or 0]) + 1, records, against)
    if not found.records:
        raise BundleError("there is nothing to put into a bundle")
    content = found.as_bytes()
    key.create()
    signature = key.sign(content)
    with Writer(target, split) as file:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, SIGNATURE, signature.encode())
            _add(archive, KEY, key.public.read_bytes())
            _add(archive, MANIFEST, content)
            for sha256 in found.blobs:
                path = store.blobs.find(sha256)
                if path is None:
                    raise BundleError(f"blob {sha256} is not in the store any more: please try again")
                info = _info(BLOBS + sha256, path.stat().st_size)
                with path.open("rb") as blob:
                    archive.addfile(info, blob)
                seen(info.size)
        named = file.commit()
    # Kept so that a delta can be made against it.
    replace(created / f"{found.serial}.json", content)
    return found, named


def _created(directory: Path, serial: int) -> Any:
    path = directory / f"{serial}.json"
    if not path.exists():
        known = ", ".join(map(str, sorted(int(each.stem) for each in directory.glob("*.json"))))
        raise BundleError(
            f"bundle {serial} was not created here; created were {', '.join(map(str, known)) or 'none'}"
        )
    return json.loads(path.read_bytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    archive.addfile(_info(name, len(content)), BytesIO(content))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info
