"""Whether a host takes the document that its store offers. Pure.

A store can be taken over, or be restored from a backup. So a host takes what is signed, is meant for it, is
in time, and is newer than what it has; otherwise it keeps what it has, and says why.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import NamedTuple

from tproxy.config.services import Problem
from tproxy.fleet.document import Document


class Verdict(Enum):
    """What becomes of an offer. The values are words of receipts."""

    ACCEPTED = "accepted"
    SAME = "same"
    OLDER = "older"
    REFUSED = "refused"
    MISSING = "missing"


class Refusal(NamedTuple):
    """One entry that this host does not take: a word for programs, the entry, and a line for people."""

    kind: str
    entry: str
    text: str


class Limits(NamedTuple):
    """How many routes a host takes, in all and of one owner. 0: any number."""

    routes: int = 0
    routes_per_owner: int = 0


NO_LIMITS = Limits()

CAPACITY, QUOTA, NO_DOMAIN = "capacity", "quota", "missing domain"


def judge(offered: Document, held: tuple[int, str], host: str, now: float) -> tuple[Verdict, str]:
    """Return the verdict about a document that was verified, and why.

    ``held`` is the serial and the text of what the host has, or had last; 0 for nothing. ``now`` is in
    seconds since 1970.
    """
    serial, text = held
    if offered.host != host:
        return Verdict.REFUSED, f"it is the document of the host {offered.host!a}"
    if offered.serial < serial:
        return Verdict.OLDER, (
            f"the store offers serial {offered.serial}, and this host has {serial} already: "
            "the newer one stays. Was the store restored from a backup?"
        )
    if offered.serial == serial and text:
        if offered.text == text:
            return Verdict.SAME, ""
        return Verdict.REFUSED, f"it is another document with the serial {serial} of the one that is here"
    if 0 < offered.not_after <= now:
        return Verdict.REFUSED, "its time (not_after) is over"
    return Verdict.ACCEPTED, ""


def refusals(document: Document, limits: Limits) -> list[Refusal]:
    """Return the entries that the host has no room for, or that no client could ask for."""
    found = []
    owners: Counter[str] = Counter()
    for number, route in enumerate(document.config.routes, 1):
        owners[route.owner] += 1
        if limits.routes and number > limits.routes:
            text = f"route {route.id}: this host takes {limits.routes} routes"
            found.append(Refusal(CAPACITY, route.id, text))
        elif limits.routes_per_owner and route.owner and owners[route.owner] > limits.routes_per_owner:
            text = f"route {route.id}: this host takes {limits.routes_per_owner} routes of {route.owner!a}"
            found.append(Refusal(QUOTA, route.id, text))
        elif not (route.domain or route.gateway_port):
            text = f"route {route.id}: it has neither domain nor gateway_port, so nobody can ask for it"
            found.append(Refusal(NO_DOMAIN, route.id, text))
    return found


def errors_of(found: list[Refusal], document: Document) -> list[Problem]:
    """Return the refusals as faults with lines."""
    lines = {each.id: each.line for each in document.config.routes}
    return [Problem(lines.get(each.entry, 1), f"{each.text} ({each.kind})") for each in found]
