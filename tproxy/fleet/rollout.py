"""Issues documents in stages, and waits for the receipts of each; stops at the first host with an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from tproxy.errors import TproxyError
from tproxy.fleet import document, issuing, receipts
from tproxy.fleet.backoff import Backoff
from tproxy.fleet.issuing import Change, Standing
from tproxy.fleet.keys import PublicKey, SecretKey
from tproxy.fleet.receipts import Receipt
from tproxy.fleet.stores.base import Denied, Store, StoreError

# Called with a host that is done, and how many of how many are.
Told = Callable[[str, int, int], None]


class Stopped(TproxyError):
    """A host reported an error, or nothing in time. ``done`` are the hosts that are in step, by then."""

    def __init__(self, why: str, done: Sequence[str]) -> None:
        super().__init__(why)
        self.done = done


async def standings(
    store: Store, trusted: Sequence[PublicKey], hosts: Sequence[str] = ()
) -> dict[str, Standing]:
    """Return what is known of these hosts, and of all that the store has. Raises StoreError."""
    texts = await store.documents()
    found, _ = await store.receipts()
    said = {each.host: receipt for each in found if (receipt := receipt_of(each.host, each.text))}
    names = dict.fromkeys([*hosts, *texts, *said])
    return {
        host: issuing.standing(texts[host].text if host in texts else None, said.get(host), trusted)
        for host in names
    }


async def run(
    store: Store,
    stages: Sequence[Sequence[Change]],
    key: SecretKey,
    message: str,
    *,
    pause: float,
    patience: float,
    told: Told,
) -> list[str]:
    """Issue the documents stage by stage; return the hosts that have theirs in force.

    ``pause`` is seconds between two stages, ``patience`` seconds for the receipts of one. Raises Stopped, and
    StoreError when the store fails; what was issued by then stays.
    """
    seen = _Seen(store)
    watching = asyncio.ensure_future(seen.watch())
    done: list[str] = []
    total = sum(map(len, stages))
    try:
        await seen.ready()
        for number, stage in enumerate(stages):
            if number:
                await asyncio.sleep(pause)
                seen.require_no_fault(done)
            made = int(time.time())
            texts = {each.host: issuing.sealed(each, made, message, key) for each in stage}
            sums = {host: document.sum_of(text) for host, text in texts.items()}
            seen.expect(sums)
            await store.put_documents(texts, {each.host: each.serial for each in stage})
            end = time.monotonic() + patience
            for _ in stage:
                host, fault = await seen.next(end)
                if not host:
                    late = ", ".join(sorted(seen.missing)[:5])
                    raise Stopped(f"no receipt within {patience:g} s from {late}", done)
                if fault:
                    raise Stopped(f"{host}: {fault}", done)
                done.append(host)
                told(host, len(done), total)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return done


async def follow_receipts(store: Store) -> AsyncGenerator[Receipt, None]:
    """Yield all receipts, and then each new one, for ever. Raises Denied."""
    backoff = Backoff()
    while True:
        try:
            found, revision = await store.receipts()
            backoff.reset()
            for each in found:
                if receipt := receipt_of(each.host, each.text):
                    yield receipt
            async for each in store.watch_receipts(revision):
                if receipt := receipt_of(each.host, each.text):
                    yield receipt
        except Denied:
            raise
        except StoreError:
            await asyncio.sleep(backoff.next())


def receipt_of(host: str, text: str) -> Receipt | None:
    """The receipt of a host; None for one that another host would have written, or nobody of ours."""
    found = receipts.read(text)
    return found if found is not None and found.host == host else None


class _Seen:
    """Waits for receipts about documents of certain sums."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._expected: dict[str, str] = {}
        self._known: dict[str, Receipt] = {}
        self._told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.missing: set[str] = set()

    async def watch(self) -> None:
        try:
            # A first list, whose failure is the caller's.
            await self._store.receipts()
            self._started.set_result(None)
            async for receipt in follow_receipts(self._store):
                self._known[receipt.host] = receipt
                self._judge(receipt.host)
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise

    async def ready(self) -> None:
        await self._started

    def expect(self, sums: Mapping[str, str]) -> None:
        self._expected |= sums
        self.missing |= sums.keys()
        for host in sums:
            self._judge(host)

    async def next(self, end: float) -> tuple[str, str]:
        """Return the next host that is done, and its fault or ""; no host when the time is over."""
        try:
            return await asyncio.wait_for(self._told.get(), max(end - time.monotonic(), 0))
        except asyncio.TimeoutError:
            return "", ""

    def require_no_fault(self, done: Sequence[str]) -> None:
        """Raise Stopped when a host that was in step reports an error by now."""
        for host in done:
            found = self._known.get(host)
            if found is not None and found.sum == self._expected[host] and found.fault:
                raise Stopped(f"{host}: {found.fault}", done)

    def _judge(self, host: str) -> None:
        found = self._known.get(host)
        if host in self.missing and found is not None and found.sum == self._expected[host]:
            self.missing.discard(host)
            self._told.put_nowait((host, found.fault))
