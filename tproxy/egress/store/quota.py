"""Decides what is evicted when the store has reached its quota. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

# What the store leaves free of its disk, which squid's cache (2 GB), the ledger and logs share: a tenth, but
# not more bytes than this.
LARGEST_RESERVE = 4 << 30


def room_of_disk(free: int, total: int) -> int:
    """Return how many bytes may be added on a disk of ``total`` bytes that has ``free`` ones."""
    return free - min(total // 10, LARGEST_RESERVE)


class Kept(NamedTuple):
    """A blob on the disk: bytes, and the second in which it was last used."""

    sha256: str
    size: int
    used: int


def victims(kept: Iterable[Kept], needed: int, quota: int, protected: Collection[str]) -> list[str] | None:
    """Return the blobs to remove so that ``needed`` more bytes fit, the longest unused first.

    Return None when not enough may be removed. ``protected`` blobs stay.
    """
    everything = list(kept)
    excess = sum(blob.size for blob in everything) + needed - quota
    chosen: list[str] = []
    for blob in sorted(everything, key=lambda blob: (blob.used, blob.sha256)):
        if excess <= 0:
            break
        if blob.sha256 not in protected:
            chosen.append(blob.sha256)
            excess -= blob.size
    return chosen if excess <= 0 else None
