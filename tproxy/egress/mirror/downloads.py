"""Large files on their way into the store, which clients may read while they grow.

Theory of operation. One task fetches a file; any number of clients follow it. The bytes go to a partial blob,
and each client gets them as they arrive, except for the last ones: these wait until the hash was found right.
So nobody ever has a whole file with a wrong hash, and a client is not left without bytes while a large file
is fetched. When upstream breaks off, the fetch goes on at that byte, if upstream can do that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp

from tproxy.egress.mirror.upstream import TRIES, UpstreamError, Upstreams
from tproxy.egress.store.blobs import Writer
from tproxy.egress.store.records import Damaged
from tproxy.egress.store.store import Store

PIECE = 1 << 18  # bytes of one read; the store hashes and writes each, some 0.2 ms
HELD_BACK = 1 << 14  # bytes that clients do not get before the hash was checked

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Download:
    """One file that is being fetched."""

    def __init__(
        self, upstreams: Upstreams, store: Store, url: str, expected: str | None, scope: str
    ) -> None:
        self._upstreams, self._store = upstreams, store
        self._url, self._expected, self._scope = url, expected, scope
        self._changed = asyncio.Condition()
        self.size: int | None = None  # as upstream says it
        self.media = ""
        self.sha256 = ""  # once the blob is in the store
        self.arrived = 0
        self.path: Path | None = None  # of the partial blob
        self.error: Exception | None = None
        self.started = self.ended = False

    async def run(self, stored: Callable[[Download], None]) -> None:
        """Fetch the file, and call ``stored`` when it is in the store."""
        try:
            await self._fetch()
            stored(self)
        except Exception as error:
            self.error = error
        finally:
            self.ended = True
            await self._tell()

    async def _fetch(self) -> None:
        writer = self._store.blobs.writer(self._expected)
        with writer:
            self.path = writer.path
            for tries in range(TRIES):
                headers = {"Range": f"bytes={writer.size}-"} if writer.size else {}
                try:
                    async with self._upstreams.get(self._url, headers, scope=self._scope) as answer:
                        self._begin(answer, writer)
                        async for piece in answer.content.iter_chunked(PIECE):
                            writer.write(piece)
                            self.arrived = writer.size
                            await self._tell()
                except UpstreamError:
                    # With no byte there is nothing to go on with; the request itself was tried again already.
                    if not writer.size or tries == TRIES - 1:
                        raise
                    continue
                if self.size is None or writer.size >= self.size:
                    break
            if self.size is not None and writer.size != self.size:
                raise UpstreamError(f"upstream sent {writer.size} bytes of {self.size}")
            # Hashed already; waiting for the disk must not keep other clients waiting.
            writer.check()
            await asyncio.get_running_loop().run_in_executor(None, writer.sync)
            self.sha256 = writer.commit()

    def _begin(self, answer: aiohttp.ClientResponse, writer: Writer) -> None:
        """Note what the answer's head says, and whether it goes on where the last one broke off."""
        if have := writer.size:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or match is None or int(match[1]) != have:
                raise Damaged("upstream broke off, and cannot go on where it was")
            return
        self.size, self.media = answer.content_length, answer.headers.get("Content-Type", "")
        writer.expect(self.size or 0)
        self.started = True

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def head(self) -> None:
        """Return when the size is known. Raises UpstreamError, NoRoom or Damaged when the fetch failed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.started or self.ended)
        self._raise()

    async def whole(self) -> None:
        """Return when the blob is in the store. Raises as ``head``."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended)
        self._raise()

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield the bytes from the first to the last, as they arrive. Raises as ``head``."""
        await self.head()
        path = self._store.blobs.path(self.sha256) if self.sha256 else self.path
        assert path is not None
        with path.open("rb") as file:  # the descriptor stays good when the blob is renamed
            sent = 0
            while True:
                async with self._changed:
                    while not self.ended and self.arrived - HELD_BACK <= sent:
                        await self._changed.wait()
                self._raise()
                end = self.arrived if self.ended else self.arrived - HELD_BACK
                while sent < end:
                    piece = file.read(min(PIECE, end - sent))
                    sent += len(piece)
                    yield piece
                if self.ended:
                    return

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


class Downloads:
    """The downloads that run, by what they are of."""

    def __init__(self, upstreams: Upstreams, store: Store) -> None:
        self._upstreams, self._store = upstreams, store
        self._running: dict[object, Download] = {}

    def start(
        self,
        key: object,
        url: str,
        expected: str | None,
        stored: Callable[[Download], None],
        scope: str = "",
    ) -> Download:
        """Return the download with this key, begun unless it runs. ``stored`` is called at its end."""
        found = self._running.get(key)
        if found is None:
            found = Download(self._upstreams, self._store, url, expected, scope)
            self._running[key] = found
            task = self._upstreams.flights.begin(("download", key), lambda: found.run(stored))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return found
