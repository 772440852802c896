"""The indexes of a Debian repository, read: Release and Packages files (deb822). Pure."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Iterator, Mapping

from tproxy.egress.store.records import Listed

_SUM = re.compile(r" ([0-9a-f]{64}) +(\d+) (\S+)")

# Names that one index has, compressed and not.
ENDINGS = {"": lambda data: data, ".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}


def sums(release: str) -> dict[str, tuple[str, int]]:
    """Return SHA-256 and size of each index that a Release or InRelease file names, by its path."""
    found, inside = {}, False
    for line in release.splitlines():
        if line.startswith("SHA256:"):
            inside = True
        elif not line.startswith(" "):
            inside = False
        elif inside and (match := _SUM.fullmatch(line)):
            found[match[3]] = (match[1], int(match[2]))
    return found


def field(release: str, name: str) -> str:
    """Return a field of a Release file; "" if it is not there."""
    match = re.search(rf"^{name}: *(.*)$", release, re.MULTILINE)
    return match[1].strip() if match else ""


def packages(text: str) -> Iterator[Listed]:
    """Yield the packages that a Packages file lists with a SHA-256."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith(" "):
                fields[name] = value.strip()
        if fields.get("Filename") and fields.get("SHA256") and fields.get("Size", "").isdecimal():
            yield listed(fields)


def listed(fields: Mapping[str, str]) -> Listed:
    return Listed(
        fields["Filename"].removeprefix("./"),
        fields["SHA256"],
        int(fields["Size"]),
        fields.get("Package", ""),
        fields.get("Version", ""),
        fields.get("Architecture", ""),
    )


def unpacked(name: str, data: bytes) -> bytes:
    """Return an index as it is without compression. Raises ValueError for what cannot be read."""
    ending = next((each for each in ENDINGS if each and name.endswith(each)), "")
    try:
        return bytes(ENDINGS[ending](data))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{name} cannot be unpacked: {error}") from error
