"""Which documents are to be issued, and in which order, from what hosts have and are to have. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from tproxy.errors import quoted
from tproxy.fleet import document
from tproxy.fleet.compiling import Wanted
from tproxy.fleet.document import Document
from tproxy.fleet.keys import SecretKey
from tproxy.fleet.receipts import Receipt

# Keys whose changes go out first, each before the next: a route must not lead to a name that nobody knows.
ORDER = ("tproxy_zones", "tproxy_certificates")


class Standing(NamedTuple):
    """What is known of a host: its document in the store, its receipt, and the newest serial it was given."""

    document: Document | None
    receipt: Receipt | None
    serial: int
    problem: str = ""  # why the document in the store counts for nothing


class Change(NamedTuple):
    """A document that a host is to get. ``text`` is what it says behind its header; ``rank`` is by ORDER."""

    host: str
    before: Document | None
    text: str
    not_after: int
    serial: int
    rank: int


def standing(text: str | None, receipt: Receipt | None, trusted: Any) -> Standing:
    """Return what is known of a host, from its document in the store and its receipt."""
    found, problem = None, ""
    if text is not None:
        try:
            found = document.read(text, trusted)
        except document.Refused as error:
            problem = str(error)
    serials = [found.serial if found else 0, receipt.serial if receipt else 0]
    return Standing(found, receipt, max(serials), problem)


def changes(wanted: Mapping[str, Wanted], known: Mapping[str, Standing]) -> list[Change]:
    """Return what is to be issued, in the order in which it goes out."""
    found = []
    for host, each in wanted.items():
        now = known.get(host, Standing(None, None, 0))
        before = now.document
        same = before is not None and (before.content, before.not_after) == (each.content, each.not_after)
        if same and before is not None and now.serial == before.serial:
            continue  # with another serial, the store has an older one than the host
        rank = _rank(before.content if before else [], each.content)
        found.append(Change(host, before, each.text, each.not_after, now.serial + 1, rank))
    return sorted(found, key=lambda each: each.rank)


def back(host: str, now: Standing, old: Document, text: str) -> Change:
    """Return the change that gives a host what an older document said, under a new serial."""
    rank = _rank(now.document.content if now.document else [], old.content)
    return Change(host, now.document, text, old.not_after, now.serial + 1, rank)


def _rank(before: Any, after: Any) -> int:
    old, new = dict(before), dict(after)
    return next((rank for rank, key in enumerate(ORDER) if old.get(key) != new.get(key)), len(ORDER))


def sealed(change: Change, made: int, message: str, key: SecretKey) -> str:
    """Return the text of the document. ``made`` is in seconds since 1970."""
    lines = [f"host: {change.host}", f"serial: {change.serial}", f"made: '{moment(made)}'"]
    if change.not_after:
        lines.append(f"not_after: '{moment(change.not_after)}'")
    if message:
        lines.append(f"message: {quoted(message)}")
    return document.seal("\n".join(lines) + f"\n{change.text}", change.not_after, key)


def entries_of(text: str) -> str:
    """Return the lines of a document that this module sealed, behind the header."""
    lines = text.splitlines(keepends=True)[1:]
    while lines and lines[0].partition(":")[0] in document.HEADER - {document.EMPTY}:
        del lines[0]
    return "".join(lines)


def moment(seconds: float) -> str:
    """Return a time as documents have it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def differences(found: Iterable[Change]) -> dict[str, list[str]]:
    """Return the hosts of each difference, by its text."""
    alike: dict[str, list[str]] = {}
    for each in found:
        old = entries_of(each.before.text).splitlines() if each.before else []
        lines = [*difflib.unified_diff(old, each.text.splitlines(), lineterm="", n=1)][2:]
        if each.before is not None and each.before.not_after != each.not_after:
            ends = moment(each.not_after) if each.not_after else "never"
            lines.append(f"+not_after: {ends}")
        if each.before is None:
            lines.insert(0, "(its first document)")
        alike.setdefault("\n".join(lines) or "(the same entries under a new serial)", []).append(each.host)
    return alike


def stages(found: list[Change], canary: int, then: str) -> list[list[Change]]:
    """Return the changes in stages: first ``canary`` hosts, then so many at a time, such as 10 or 10%.

    Without both, all of one rank go out at once. Raises ValueError for a size that cannot be.
    """
    if then.endswith("%"):
        share = float(then[:-1])
        if not 0 < share <= 100:
            raise ValueError(then)
        step = max(1, int(len(found) * share / 100))
    else:
        step = int(then) if then else len(found)
        if step < 1 and found:
            raise ValueError(then)
    made: list[list[Change]] = []
    size = canary or step
    for each in found:
        if not made or len(made[-1]) >= size or made[-1][-1].rank != each.rank:
            if made:
                size = step
            made.append([])
        made[-1].append(each)
    return made
