"""A store in a directory, such as one that is mounted from elsewhere, or kept by a tool for files.

    DIRECTORY/documents/HOST.yaml   DIRECTORY/receipts/HOST.json   DIRECTORY/history/HOST/SERIAL.yaml

Files are looked at every second, because notices of changes do not come from file systems of a network. Their
time of change, in nanoseconds, is the revision.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from tproxy.fleet.held import HeldProblem, write
from tproxy.fleet.stores.base import MOST_HISTORY, Item, Offer, StoreError

LOOK = 1.0  # seconds


class DirectoryStore:
    """The store in a directory; see ``base.Store``."""

    def __init__(self, directory: str) -> None:
        self.url = f"file://{directory}"
        self._root = Path(directory)

    async def document(self, host: str) -> Offer:
        return self._offer(self._document(host))

    async def watch_document(self, host: str, revision: int) -> AsyncGenerator[Offer, None]:
        last: Offer | None = None
        while True:
            found = self._offer(self._document(host))
            # A restored file can be older than the one before.
            if found.revision != revision and found != last:
                yield found
            last, revision = found, found.revision
            await asyncio.sleep(LOOK)

    async def put_receipt(self, host: str, text: str) -> None:
        self._write(self._root / "receipts" / f"{host}.json", text)

    async def documents(self) -> Mapping[str, Offer]:
        return {path.stem: self._offer(path) for path in self._listed("documents", "*.yaml")}

    async def put_documents(self, texts: Mapping[str, str], serials: Mapping[str, int]) -> None:
        for host, text in texts.items():
            self._write(self._root / "history" / host / f"{serials[host]}.yaml", text)
            self._write(self._document(host), text)
            old = sorted(self._serials(host), reverse=True)[MOST_HISTORY:]
            for serial in old:
                (self._root / "history" / host / f"{serial}.yaml").unlink(missing_ok=True)

    async def history(self, host: str) -> Mapping[int, str]:
        found = {}
        for serial in self._serials(host):
            text = self._offer(self._root / "history" / host / f"{serial}.yaml").text
            if text is not None:
                found[serial] = text
        return found

    async def receipts(self) -> tuple[Sequence[Item], int]:
        found = []
        for path in self._listed("receipts", "*.json"):
            offer = self._offer(path)
            if offer.text is not None:
                found.append(Item(path.stem, offer.text, offer.revision))
        return found, max((each.revision for each in found), default=0)

    async def watch_receipts(self, revision: int) -> AsyncGenerator[Item, None]:
        told: dict[str, int] = {}  # all are told again at first: hosts' clocks differ
        while True:
            found, _ = await self.receipts()
            for each in found:
                if told.get(each.host) != each.revision:
                    told[each.host] = each.revision
                    yield each
            await asyncio.sleep(LOOK / 4)

    async def close(self) -> None:
        pass

    def _document(self, host: str) -> Path:
        return self._root / "documents" / f"{host}.yaml"

    def _serials(self, host: str) -> list[int]:
        return [int(each.stem) for each in self._listed(f"history/{host}", "*.yaml") if each.stem.isdecimal()]

    def _listed(self, folder: str, pattern: str) -> list[Path]:
        self._require()
        try:
            return sorted(
                each for each in (self._root / folder).glob(pattern) if not each.name.startswith(".")
            )
        except OSError as error:
            raise StoreError(f"{self.url}/{folder}: {error.strerror}") from error

    def _offer(self, path: Path) -> Offer:
        self._require()
        try:
            with open(path) as file:
                return Offer(file.read(), os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:
            return Offer(None, 0)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise StoreError(f"{path}: {reason}") from error

    def _require(self) -> None:
        # A file system that is not mounted has no documents either, and that must not look like "missing".
        if not self._root.is_dir():
            raise StoreError(f"{self.url}: there is no such directory")

    def _write(self, path: Path, text: str) -> None:
        self._require()
        try:
            write(path, text, 0o644)
        except HeldProblem as error:
            raise StoreError(str(error)) from error
