"""A receipt: what a host tells its store about its document, its guests and itself. JSON, in one value.

A receipt is what the host knew at its ``time``. It is written anew when something in it changes, and now and
then without a change, so that an old time means a host that is gone or cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from tproxy import __version__
from tproxy.config.services import Problem
from tproxy.fleet.document import Document
from tproxy.fleet.judging import Refusal, Verdict
from tproxy.fleet.presence import Guest

VERSION = 1

# States of a document on its host.
APPLIED, FAILED, EXPIRED, NONE = "applied", "failed", "expired", "none"


class Offered(NamedTuple):
    """What the store offered last, and what became of that. ``serial`` is 0 where it cannot be told."""

    verdict: Verdict = Verdict.MISSING
    why: str = ""
    serial: int = 0
    revision: int = 0
    sum: str = ""  # of the text, whatever it is
    errors: tuple[Problem, ...] = ()
    refusals: tuple[Refusal, ...] = ()


class Effect(NamedTuple):
    """What came of applying the configuration: a state, lines of what failed, how many bridges changed."""

    state: str = NONE
    problems: tuple[str, ...] = ()
    errors: tuple[Problem, ...] = ()
    bridges: Mapping[str, int] = {}
    at: float = 0.0


def make(
    host: str,
    now: float,
    held: Document | None,
    offered: Offered,
    effect: Effect,
    guests: Sequence[Guest],
    counters: Mapping[str, Any],
    store_problem: str,
) -> str:
    """Return the text of a receipt. Times are in seconds since 1970."""
    errors = [*offered.errors, *effect.errors]
    return json.dumps(
        {
            "version": VERSION,
            "host": host,
            "time": round(now, 3),
            "software": __version__,
            "document": {
                "serial": held.serial if held else 0,
                "not_after": held.not_after if held else 0,
                "state": effect.state,
                "applied": round(effect.at, 3),
                "problems": [*effect.problems],
            },
            "offered": {
                "serial": offered.serial,
                "revision": offered.revision,
                "sum": offered.sum,
                "verdict": offered.verdict.value,
                "why": offered.why,
            },
            "errors": [{"file": each.origin, "line": each.line, "text": each.text} for each in errors],
            "refusals": [each._asdict() for each in offered.refusals],
            "bridges": {**effect.bridges},
            "guests": [each._asdict() for each in guests],
            "counters": {**counters},
            "store": store_problem,
        }
    )


def _guest(found: Mapping[str, Any]) -> Guest:
    network, network_id, mac, bridge, port = (str(found[key]) for key in Guest._fields[:-1])
    return Guest(network, network_id, mac, bridge, port, float(found["since"]))


class Receipt(NamedTuple):
    """A receipt as an operator reads it."""

    host: str
    time: float
    software: str
    serial: int
    state: str
    problems: tuple[str, ...]
    verdict: str
    revision: int
    sum: str
    why: str
    errors: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    guests: tuple[Guest, ...]
    counters: Mapping[str, Any]

    @property
    def fault(self) -> str:
        """Why the document that was offered last is not in force as a whole; "" when it is."""
        if self.verdict not in (Verdict.ACCEPTED.value, Verdict.SAME.value):
            return f"{self.verdict}: {self.why}"
        if self.state not in (APPLIED, EXPIRED):
            return f"{self.state}: {self.problems[0] if self.problems else 'no reason given'}"
        return self.errors[0] if self.errors else ""


def read(text: str) -> Receipt | None:
    """Return the receipt that a text is; None for anything else: hosts write these, and may be taken over."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(text)
        document, offered = found["document"], found["offered"]
        return Receipt(
            str(found["host"]),
            float(found["time"]),
            str(found["software"]),
            int(document["serial"]),
            str(document["state"]),
            tuple(map(str, document["problems"])),
            str(offered["verdict"]),
            int(offered["revision"]),
            str(offered["sum"]),
            str(offered["why"]),
            tuple(f"{each['file']}:{each['line']}: {each['text']}" for each in found["errors"]),
            tuple(Refusal(*(str(each[key]) for key in Refusal._fields)) for each in found["refusals"]),
            tuple(map(_guest, found["guests"])),
            dict(found["counters"]),
        )
    return None
