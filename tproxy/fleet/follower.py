"""A host that follows its store: fetches its document, applies it, and writes receipts.

Theory of operation. The last good document is applied first, without the store. Then four tasks run side by
side. One lists the document and watches it from the revision of that list; any error ends the watch, and
after a wait (``backoff``) it lists anew. It also lists anew now and then, because a watch whose connection
is dead is silent, as is one from a revision that a restored store has not reached yet. One looks for guests
when the kernel says that something changed. One waits for the time of the document to be over. One writes
the receipt when any of these changed something.

What a host does (``Host``) is apart from when it does it, so that a simulation can do the same for thousands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

from tproxy.errors import TproxyError
from tproxy.fleet import document, judging, receipts
from tproxy.fleet.backoff import Backoff, spread
from tproxy.fleet.document import Document, Refused
from tproxy.fleet.held import Held, State
from tproxy.fleet.judging import NO_LIMITS, Limits, Verdict
from tproxy.fleet.keys import PublicKey
from tproxy.fleet.presence import Guest
from tproxy.fleet.receipts import Effect, Offered
from tproxy.fleet.stores.base import Offer, Store, StoreError
from tproxy.log.lazy import logger

log = logger(__name__)


class Times(NamedTuple):
    """Seconds: between two lists of the document, between two receipts without news, to collect changes."""

    list_again: float = 60.0
    heartbeat: float = 300.0
    settle: float = 0.5


USUAL = Times()


class Host(Protocol):
    """What following does on a host. Each method can take long, and is called in a thread."""

    def apply(self, document: Document, expired: bool) -> Effect:
        """Apply the host's own file and its document, which is on disk by now."""

    def guests(self, before: Sequence[Guest]) -> list[Guest]:
        """Return the guests that are here."""

    def counters(self) -> Mapping[str, Any]:
        """Return counters of the host's routes and services."""


def one_thread() -> Callable[..., Any]:
    """Return what awaits a function in a thread: always the same one, as libnftables is for one at a time."""
    pool = ThreadPoolExecutor(1)

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *arguments))

    return run


class Follower:
    """One host. ``name`` is what documents call it.

    ``run_in_thread`` awaits a function that can take long; None runs all of them in one thread.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        host: Host,
        held: Held,
        trusted: Callable[[], Sequence[PublicKey]],
        *,
        limits: Limits = NO_LIMITS,
        times: Times = USUAL,
        run_in_thread: Any = None,
    ) -> None:
        self._name, self._store, self._host, self._held = name, store, host, held
        self._trusted, self._limits, self._times = trusted, limits, times
        self._in_thread = run_in_thread or one_thread()
        self._document: Document | None = None
        self._offered = Offered()
        self._effect = Effect()
        self._guests: list[Guest] = []
        self._least = 0  # the newest serial that was here, should the document be lost
        self._store_problem = ""
        self._news = asyncio.Event()
        self._taken = asyncio.Event()  # another document is in force: its time can be over sooner
        self._seen = asyncio.Event()
        self._applying = asyncio.Lock()

    def look_for_guests(self) -> None:
        """Note that guests may have come or gone."""
        self._seen.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        await self.begin()
        tasks = [
            asyncio.ensure_future(each)
            for each in (self._follow(), self._watch_guests(), self._watch_time(), self._report())
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def once(self) -> Offered:
        """Take the document that the store has now, and write the receipt. Raises StoreError."""
        await self.begin()
        await self.take(await self._store.document(self._name))
        self._guests = await self._in_thread(self._host.guests, self._guests)
        await self._store.put_receipt(self._name, await self._receipt())
        return self._offered

    async def begin(self) -> None:
        """Apply the last good document, as after a boot."""
        state = await self._in_thread(self._held.state)
        self._least = state.serial
        self._guests = [*state.guests]
        try:
            self._document = self._held.document()
        except TproxyError as error:
            log.error("the last good document cannot be used: %s", error)
        if self._document is not None:
            await self._apply()

    async def take(self, offer: Offer) -> None:
        """Judge what the store offers; apply it if it is good."""
        offered, found = self._judged(offer)
        changed = (offered.verdict, offered.why) != (self._offered.verdict, self._offered.why)
        if offered.verdict is Verdict.SAME and self._offered.verdict is Verdict.ACCEPTED:
            offered = offered._replace(verdict=Verdict.ACCEPTED)
        if changed and offered.why:
            log.warning("document of revision %s: %s: %s", offer.revision, offered.verdict.value, offered.why)
        if found is not None and offered.verdict is Verdict.ACCEPTED:
            await self._in_thread(self._held.store, found)
            self._document = found
            log.info("document %s of revision %s is taken", found.serial, offer.revision)
            await self._note_state()
            await self._apply()
            self._taken.set()
        elif offered.verdict is Verdict.SAME and self._effect.state == receipts.FAILED:
            await self._apply()  # now and then, since what stood in the way may be gone
        news = offered != self._offered or offered.verdict is Verdict.ACCEPTED
        self._offered = offered
        if news:
            self._news.set()

    def _judged(self, offer: Offer) -> tuple[Offered, Document | None]:
        if offer.text is None:
            why = "the store has no document for this host: what is here stays" if self._document else ""
            return Offered(Verdict.MISSING, why, 0, offer.revision), None
        offered = Offered(Verdict.SAME, "", 0, offer.revision, document.sum_of(offer.text))
        if self._document is not None and offer.text == self._document.text:
            return offered._replace(serial=self._document.serial), None
        offered = offered._replace(verdict=Verdict.REFUSED)
        try:
            found = document.read(offer.text, self._trusted())
        except Refused as error:
            return offered._replace(why=str(error), errors=error.errors), None
        except TproxyError as error:  # the keys cannot be read
            return offered._replace(why=str(error)), None
        held = (self._document.serial, self._document.text) if self._document else (self._least, "")
        verdict, why = judging.judge(found, held, self._name, time.time())
        offered = offered._replace(verdict=verdict, why=why, serial=found.serial)
        if verdict is not Verdict.ACCEPTED:
            return offered, None
        if refusals := judging.refusals(found, self._limits):
            more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
            return (
                offered._replace(
                    verdict=Verdict.REFUSED,
                    why=f"{refusals[0].kind}: {refusals[0].text}{more}",
                    refusals=tuple(refusals),
                    errors=tuple(judging.errors_of(refusals, found)),
                ),
                None,
            )
        return offered, found

    async def _apply(self) -> None:
        async with self._applying:
            assert self._document is not None
            expired = 0 < self._document.not_after <= time.time()
            self._effect = await self._in_thread(self._host.apply, self._document, expired)
        for each in self._effect.problems:
            log.warning("%s", each)

    async def _follow(self) -> None:
        backoff = Backoff()
        while True:
            try:
                offer = await self._store.document(self._name)
                self._note("")
                await self.take(offer)
                backoff.reset()
                await self._watch(offer.revision)
            except (TproxyError, OSError) as error:
                self._note(str(error))
                await asyncio.sleep(backoff.next())

    async def _watch(self, revision: int) -> None:
        """Take what comes after this revision, until it is time to list again."""
        loop = asyncio.get_running_loop()
        end = loop.time() + spread(self._times.list_again)
        offers = self._store.watch_document(self._name, revision)
        coming: asyncio.Future[Offer] | None = None
        try:
            while (left := end - loop.time()) > 0:
                coming = asyncio.ensure_future(anext(offers))
                if not (await asyncio.wait({coming}, timeout=left))[0]:
                    return
                await self.take(coming.result())
        finally:  # before the next watch there is none
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await offers.aclose()

    def _note(self, problem: str) -> None:
        if problem and not self._store_problem:
            log.warning("the store cannot be followed, and everything goes on as it is: %s", problem)
        if self._store_problem and not problem:
            log.info("the store is followed again")
        self._store_problem = problem

    async def _watch_time(self) -> None:
        while True:
            self._taken.clear()
            end = self._document.not_after if self._document is not None else 0
            wait = None
            if end and self._effect.state != receipts.EXPIRED:
                # An hour at most: the clock of the wall can be set meanwhile.
                wait = min(max(end - time.time(), 0) + 0.1, 3600)
            try:
                await asyncio.wait_for(self._taken.wait(), wait)
            except asyncio.TimeoutError:
                if end and end <= time.time():
                    log.warning("the time of the document is over: its entries end")
                    await self._apply()
                    self._news.set()

    async def _watch_guests(self) -> None:
        while True:
            self._seen.clear()
            try:
                found = await self._in_thread(self._host.guests, self._guests)
            except (TproxyError, OSError) as error:
                log.warning("guests cannot be looked for: %s", error)
            else:
                if found != self._guests:
                    self._guests = found
                    self._news.set()
                    await self._note_state()
            await asyncio.sleep(self._times.settle)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._seen.wait(), spread(self._times.list_again))

    async def _report(self) -> None:
        backoff = Backoff()
        while True:
            self._news.clear()
            try:
                await self._store.put_receipt(self._name, await self._receipt())
                backoff.reset()
            except StoreError as error:
                if not self._store_problem:
                    log.warning("no receipt: %s", error)
                await asyncio.sleep(backoff.next())
                continue
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), spread(self._times.heartbeat))

    async def _note_state(self) -> None:
        serial = max(self._least, self._document.serial if self._document is not None else 0)
        try:
            await self._in_thread(self._held.note, State(serial, tuple(self._guests)))
        except TproxyError as error:
            log.warning("%s", error)

    async def _receipt(self) -> str:
        counters = await self._in_thread(self._host.counters)
        text = receipts.make(
            self._name,
            time.time(),
            self._document,
            self._offered,
            self._effect,
            self._guests,
            counters,
            self._store_problem,
        )
        await self._in_thread(self._held.keep_receipt, text)
        return text
