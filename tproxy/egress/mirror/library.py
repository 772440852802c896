"""What the parts of the mirror share: settings, store, upstreams, and how one file is found or fetched."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tproxy.egress.gather.lists import can_be_wanted, want_of
from tproxy.egress.mirror.answers import Answer, Blob, Denied, Growing, Missing, Request
from tproxy.egress.mirror.downloads import Download, Downloads
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.mirror.upstream import NotThere, Upstreams
from tproxy.egress.model import Artifact, Caller, Verdict
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

# A caller, what it wants, and the suites that list it, for a Debian package whose suites are known.
Judge = Callable[[Caller, Artifact, "Collection[str] | None"], Verdict]


class Library:
    """The store, with upstreams behind it unless the mirror is sealed."""

    def __init__(self, settings: Settings, store: Store, judge: Judge, upstreams: Upstreams | None) -> None:
        self.settings, self.store, self._judge, self.upstreams = settings, store, judge, upstreams
        # Hears of each record that is part of an answer: so a bundle learns what belongs to it.
        self.touched: Callable[[Record], None] = lambda record: None
        self._downloads = Downloads(upstreams, store) if upstreams else None

    def verdict(self, caller: Caller, artifact: Artifact, suites: Collection[str] | None = None) -> Verdict:
        return self._judge(caller, artifact, suites)

    def denied(
        self, request: Request, artifact: Artifact, suites: Collection[str] | None = None
    ) -> Denied | None:
        """Return the answer for what the policy does not allow; None for what it does."""
        verdict = self._judge(request.caller, artifact, suites)
        return None if verdict.allowed else Denied(artifact, verdict.rule, verdict.reason)

    def here(self, kind: str, name: str, file: str, expected: str | None = None) -> Record | None:
        """Return the record of a file whose content is in the store and right."""
        record = self.store.find(kind, name, file)
        if record is None or expected not in (None, record.sha256):
            return None
        return record if self.store.blobs.find(record.sha256) else None

    async def file(
        self,
        request: Request,
        artifact: Artifact,
        key: tuple[str, str, str],
        media: str,
        url: str = "",
        expected: str | None = None,
        headers: Mapping[str, str] | None = None,
        scope: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Return one file, found or fetched. The caller has judged it. ``key`` is the record's.

        ``expected`` is the SHA-256 that it must have. Raises UpstreamError.
        """
        extra = headers or {}
        found = self.here(*key, expected)
        if found is None and expected and (path := self.store.blobs.find(expected)):
            # The same content under another name.
            found = self._note(key, artifact, expected, path.stat().st_size, media, url, meta)
        if found is not None:
            self.touched(found)
            return Blob(artifact, found, media, extra)
        if self._downloads is None or not url:
            return self.missing(request, artifact)

        def stored(done: Download) -> None:
            self.touched(self._note(key, artifact, done.sha256, done.arrived, media, url, meta))

        download = self._downloads.start(key, url, expected, stored, scope)
        try:
            await download.head()
        except NotThere as error:
            return Missing(artifact, str(error))
        return Growing(artifact, download, media, url, extra)

    def missing(self, request: Request, artifact: Artifact) -> Missing:
        """Return the answer for what is not here. In sealed mode it goes on the want list."""
        if not self.settings.sealed:
            return Missing(artifact, "upstream has no such thing")
        if not can_be_wanted(artifact):
            return Missing(artifact, "it is not in the store of this sealed site")
        self.store.want(*want_of(artifact), request.caller.network)
        return Missing(artifact, "it is not in the store of this sealed site; it was put on the want list")

    def _note(
        self,
        key: tuple[str, str, str],
        artifact: Artifact,
        sha256: str,
        size: int,
        media: str,
        url: str,
        meta: Mapping[str, Any] | None,
    ) -> Record:
        kind, name, file = key
        record = Record(kind, name, file, sha256, size, artifact.version, media, url, meta or {})
        self.store.add(record)
        return record


class Recent:
    """Keeps answers for a second: many clients ask for one index, and a change counts within that."""

    MOST = 512  # answers; an index page has some 100 KB at most, most have 10

    def __init__(self) -> None:
        self._second, self._answers = 0, dict[object, Any]()

    def find(self, key: object) -> Any | None:
        now = int(time.monotonic())
        if now != self._second or len(self._answers) > self.MOST:
            self._second, self._answers = now, {}
        return self._answers.get(key)

    def keep(self, key: object, answer: Any) -> None:
        self._answers[key] = answer
