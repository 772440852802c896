"""The metadata of wheels, for clients that ask for FILE.metadata instead of the whole wheel (PEP 658)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable

from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

LARGEST = 8 << 20  # bytes of a METADATA file, which holds the project's description; most have some 10 KB

_NAME = re.compile(r"[^/]+\.dist-info/METADATA")


def beside(store: Store, records: Iterable[Record]) -> list[Record]:
    """Return records of the metadata of wheels that have none yet, and store their content."""
    ordered = list(records)
    have = {record.key for record in ordered}
    found = []
    for wheel in ordered:
        file = f"{wheel.file}.metadata"
        if wheel.kind != "pypi" or not wheel.file.endswith(".whl") or ("pypi", wheel.name, file) in have:
            continue
        content = _read(store, wheel)
        if content is not None:
            sha256 = store.blobs.put(content)
            record = Record("pypi", wheel.name, file, sha256, len(content), wheel.version, "text/plain")
            store.add(record)
            found.append(record)
    return found


def _read(store: Store, wheel: Record) -> bytes | None:
    path = store.blobs.find(wheel.sha256)
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if _NAME.fullmatch(info.filename)]
            if len(names) != 1 or names[0].file_size > LARGEST:
                return None
            return archive.read(names[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return None  # no client needs it
