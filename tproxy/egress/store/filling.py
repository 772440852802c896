"""Writes many blobs, one after the other, while earlier ones are being synced.

A sync waits for the disk, and several at once take hardly longer than one. Until ``close`` has returned, a
power cut may lose any of the blobs; none is ever there with a part of its content.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tproxy.egress.store.blobs import Blobs, Writer
from tproxy.egress.store.durable import sync_directory

# Files that are being synced at a time: each is an open file, and its bytes are memory that the kernel cannot
# use for others.
SYNCS = 8


class Filling:
    """Puts files into the store. ``close`` waits until all of them are durable."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._pool = ThreadPoolExecutor(SYNCS)
        self._syncing: deque[tuple[Writer, Future[None]]] = deque()
        self._changed: set[Path] = set()  # directories that have new names

    def add(self, content: Iterable[memoryview], sha256: str, size: int) -> None:
        """Write a blob. Raises Damaged when the content has another hash, and NoRoom."""
        writer = self._blobs.writer(sha256, size)
        try:
            for piece in content:
                writer.write(piece)
            writer.check()
        except BaseException:
            writer.close()
            raise
        self._syncing.append((writer, self._pool.submit(writer.sync)))
        if len(self._syncing) > SYNCS:
            self._take()

    def close(self) -> None:
        """Return when all blobs are durable and known. Raises NoRoom."""
        while self._syncing:
            self._take()
        for each in [self._pool.submit(sync_directory, path) for path in self._changed]:
            each.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Leave nothing of blobs that are not in their places yet."""
        self._pool.shutdown()
        for writer, _ in self._syncing:
            writer.close()
        self._syncing.clear()

    def _take(self) -> None:
        writer, synced = self._syncing.popleft()
        with writer:
            synced.result()
            self._changed.update(self._blobs.move(writer.path, writer.sha256))
