"""What a store does for hosts and operators, whatever it is.

Every method raises StoreError when the store cannot be reached, refuses, or answers nonsense. For a caller
that means: nothing is known, so nothing changes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NamedTuple, Protocol

from tproxy.errors import TproxyError


class StoreError(TproxyError):
    """The store does not do what it was asked for."""


class Denied(StoreError):
    """The store knows who asks, and refuses: waiting does not help."""


class Compacted(StoreError):
    """The store has forgotten the revision from which a watch was to begin: list anew."""


class Offer(NamedTuple):
    """What a store has for a host. ``text`` is None where it has no document. ``revision`` is the store's."""

    text: str | None
    revision: int


class Item(NamedTuple):
    """One receipt in the store."""

    host: str
    text: str
    revision: int


class Store(Protocol):
    """A store. ``url`` is for messages, and has no password."""

    url: str

    async def document(self, host: str) -> Offer:
        """Return the document of a host."""

    def watch_document(self, host: str, revision: int) -> AsyncGenerator[Offer, None]:
        """Yield each document of a host after this revision, until the iterator is closed.

        It ends by StoreError. Compacted says that changes since the revision are not known any more.
        """

    async def put_receipt(self, host: str, text: str) -> None:
        """Replace the receipt of a host."""

    async def documents(self) -> Mapping[str, Offer]:
        """Return all documents by host."""

    async def put_documents(self, texts: Mapping[str, str], serials: Mapping[str, int]) -> None:
        """Replace these documents, each as a whole, and keep each in the history under its serial."""

    async def history(self, host: str) -> Mapping[int, str]:
        """Return the documents that were issued for a host, by serial; old ones may be gone."""

    async def receipts(self) -> tuple[Sequence[Item], int]:
        """Return all receipts, and the revision of that list."""

    def watch_receipts(self, revision: int) -> AsyncGenerator[Item, None]:
        """Yield each receipt after this revision, as ``watch_document`` does."""

    async def close(self) -> None:
        """Give connections back."""


# Documents of a host that the history keeps.
MOST_HISTORY = 20
