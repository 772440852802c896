"""A store in etcd v3, from 3.4 on.

    PREFIX/documents/HOST   PREFIX/receipts/HOST   PREFIX/history/HOST/SERIAL

Each key is one value that is replaced as a whole, so a host may read one key and write another, and needs no
more. All documents of one call of ``put_documents`` are written in transactions of at most 60 hosts, because
etcd takes 128 changes in one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from tproxy.errors import quoted
from tproxy.fleet.stores.base import MOST_HISTORY, Denied, Item, Offer, StoreError
from tproxy.fleet.stores.etcd_client import Account, EtcdClient, Json, decode, encode

PREFIX = "/tproxy"

# Hosts in one transaction, each with two changes; transactions at once; keys in one answer.
_AT_ONCE, _PARALLEL, _PAGE = 60, 4, 1000


class EtcdStore:
    """The store in etcd; see ``base.Store``. ``url`` is ``etcd://HOST:PORT[,HOST:PORT][/PREFIX]``."""

    def __init__(self, url: str, account: Account | None = None, client: EtcdClient | None = None) -> None:
        endpoints, self.prefix = parse(url)
        self.url = url
        self.client = client or EtcdClient(endpoints, account or Account())

    async def document(self, host: str) -> Offer:
        said = await self.client.ask("/v3/kv/range", {"key": encode(self.document_key(host))})
        pairs = said.get("kvs") or [{}]
        revision = int(said["header"].get("revision", 0))
        return Offer(decode(pairs[0]["value"]) if pairs[0] else None, revision)

    async def watch_document(self, host: str, revision: int) -> AsyncGenerator[Offer, None]:
        async for event in self.client.watch(self.document_key(host), "", revision + 1):
            yield Offer(event.value, event.revision)

    async def put_receipt(self, host: str, text: str) -> None:
        body = {"key": encode(self.receipt_key(host)), "value": encode(text)}
        await self.client.ask("/v3/kv/put", body)

    async def documents(self) -> Mapping[str, Offer]:
        found, _ = await self._range(f"{self.prefix}/documents/")
        return {each.host: Offer(each.text, each.revision) for each in found}

    async def put_documents(self, texts: Mapping[str, str], serials: Mapping[str, int]) -> None:
        hosts = list(texts)
        room = asyncio.Semaphore(_PARALLEL)

        async def put(some: Sequence[str]) -> None:
            changes: list[Json] = []
            for host in some:
                value = encode(texts[host])
                kept = self._history_key(host, serials[host])
                changes += [
                    {"requestPut": {"key": encode(key), "value": value}}
                    for key in (self.document_key(host), kept)
                ]
            async with room:
                await self.client.ask("/v3/kv/txn", {"success": changes})

        await asyncio.gather(*(put(hosts[at : at + _AT_ONCE]) for at in range(0, len(hosts), _AT_ONCE)))
        for host in hosts:
            if serials[host] > MOST_HISTORY:
                await self._forget(host, serials[host] - MOST_HISTORY)

    async def history(self, host: str) -> Mapping[int, str]:
        found, _ = await self._range(f"{self.prefix}/history/{host}/")
        return {int(each.host): each.text for each in found if each.host.isdecimal()}

    async def receipts(self) -> tuple[Sequence[Item], int]:
        return await self._range(f"{self.prefix}/receipts/")

    async def watch_receipts(self, revision: int) -> AsyncGenerator[Item, None]:
        first = f"{self.prefix}/receipts/"
        async for event in self.client.watch(first, end_of(first), revision + 1):
            if event.value is not None:
                yield Item(event.key.removeprefix(first), event.value, event.revision)

    async def close(self) -> None:
        await self.client.close()

    def document_key(self, host: str) -> str:
        return f"{self.prefix}/documents/{host}"

    def receipt_key(self, host: str) -> str:
        return f"{self.prefix}/receipts/{host}"

    def _history_key(self, host: str, serial: int) -> str:
        return f"{self.prefix}/history/{host}/{serial:016}"

    async def _forget(self, host: str, serial: int) -> None:
        """Delete documents of the history up to this serial."""
        first, last = self._history_key(host, 0), self._history_key(host, serial + 1)
        try:
            await self.client.ask("/v3/kv/deleterange", {"key": encode(first), "range_end": encode(last)})
        except Denied:
            raise
        except StoreError:
            return  # the next one deletes them

    async def _range(self, prefix: str) -> tuple[list[Item], int]:
        """Return what is below a prefix, by the rest of the key, as of one revision."""
        found: list[Item] = []
        key, revision = prefix, 0
        while True:
            body: Json = {"key": encode(key), "range_end": encode(end_of(prefix)), "limit": str(_PAGE)}
            if revision:
                body["revision"] = str(revision)
            said = await self.client.ask("/v3/kv/range", body)
            revision = revision or int(said["header"].get("revision", 0))
            pairs = said.get("kvs", [])
            for pair in pairs:
                name = decode(pair["key"]).removeprefix(prefix)
                found.append(Item(name, decode(pair.get("value", "")), int(pair["mod_revision"])))
            if not said.get("more"):
                return found, revision
            key = decode(pairs[-1]["key"]) + "\0"


def parse(url: str) -> tuple[list[str], str]:
    """Return the endpoints and the prefix that a URL names. Raises StoreError."""
    scheme, _, rest = url.partition("://")
    hosts, _, prefix = rest.partition("/")
    if "@" in hosts:
        raise StoreError(f"{quoted(url)}: user and password belong into a file: --credentials FILE")
    secure = scheme in ("etcds", "https")
    listed = [f"http{'s' if secure else ''}://{each}" for each in hosts.split(",") if each]
    if not listed:
        raise StoreError(f"{quoted(url)}: it names no host")
    return listed, f"/{prefix.strip('/')}" if prefix.strip("/") else PREFIX


def end_of(prefix: str) -> str:
    """Return the key behind all keys that begin with a prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
