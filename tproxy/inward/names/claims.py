"""Who may have which name: owners' claims to zones and to the domains of routes. Pure.

A zone of an owner counts from its proof on, until the proof has been missing for longer than its grace. Of
two owners whose names overlap, the one who proved first has it; in a zone of the operator, the one who was
there first. Entries without owner are the operator's own, and conflict with nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tproxy.config.routes import RouteEntry
from tproxy.errors import BadName
from tproxy.inward.names.domain import base, is_wildcard, normalised, parents, within
from tproxy.inward.names.model import Zone

# Seconds for which a name stays its owner's after the last route for it is gone: a file that is written anew
# must not give it to somebody else.
NAME_KEPT = 86_400

# Seconds between two looks at a proof: one that is awaited, one that is there, one that has disappeared.
AWAITED, PROVED, LOST = 60, 3600, 300


class Claim(NamedTuple):
    """What is known of an owner's zone. Times are in seconds since 1970; 0 is never."""

    proved: int = 0  # first
    by: str = ""  # what the proof is
    missing: int = 0  # since when the proof is gone
    looked: int = 0
    said: str = ""  # what the last look found
    answered: bool = False  # whether any look had an answer

    @property
    def is_unknown(self) -> bool:
        """Whether nobody could tell yet: what is there then stays, as after the loss of a ledger."""
        return not self.proved and not self.answered


class Holder(NamedTuple):
    """Whose a name of an operator's zone is."""

    owner: str
    since: int
    last: int


class Ledger(NamedTuple):
    """What must outlive a process: claims by (domain, owner), and holders of names."""

    claims: Mapping[tuple[str, str], Claim] = {}
    holders: Mapping[str, Holder] = {}


class Verdict(NamedTuple):
    """Which routes may have their domain (by id, with its zone, if one has it), and why others may not."""

    granted: Mapping[str, tuple[str, Zone | None]]
    refused: Mapping[str, str]
    zones: tuple[Zone, ...]  # that count
    waiting: Mapping[tuple[str, str], str]  # zones that do not, by (domain, owner), and why
    holders: Mapping[str, Holder]


def after_look(claim: Claim, found: str | None, said: str, now: float) -> Claim:
    """Return the claim after a look for its proof.

    ``found`` is what proves it, "" for nothing, None where nobody could tell: then all stays as it is.
    """
    at = int(now)
    if found is None:
        return claim._replace(looked=at, said=said)
    if found:
        return Claim(claim.proved or at, found, 0, at, said, True)
    missing = (claim.missing or at) if claim.proved else 0
    return claim._replace(missing=missing, looked=at, said=said, answered=True)


def next_look(claim: Claim) -> float:
    """Return when to look for the proof again, in seconds since 1970."""
    pause = AWAITED if not claim.proved else LOST if claim.missing else PROVED
    return claim.looked + pause if claim.looked else 0


def assumed(zones: Sequence[Zone]) -> Ledger:
    """Return the ledger in which all owners have proved their zones, in the order of the file."""
    owned = [each for each in zones if each.owner]
    return Ledger({(each.domain, each.owner): Claim(number) for number, each in enumerate(owned, 1)})


def judge(zones: Sequence[Zone], routes: Iterable[RouteEntry], ledger: Ledger, now: float) -> Verdict:
    """Return who has what."""
    active, waiting = _zones(zones, ledger, now)
    granted: dict[str, tuple[str, Zone | None]] = {}
    refused: dict[str, str] = {}
    names = _Names(zone for zone in active if zone.owner)
    holders = {name: each for name, each in ledger.holders.items() if now < each.last + NAME_KEPT}
    wishes = []
    for number, route in enumerate(routes):
        if not route.domain or 0 < route.expires <= now:
            continue
        try:
            name = normalised(route.domain, wildcard=True)
        except BadName as fault:
            refused[route.id] = str(fault)
            continue
        zone, problem = _zone_for(name, route.owner, zones, active, waiting)
        if problem:
            refused[route.id] = problem
            continue
        held = holders.get(name)
        first = held.since if held and held.owner == route.owner else now
        wishes.append((first, number, name, zone, route))
    for _, _, name, zone, route in sorted(wishes, key=lambda each: each[:2]):
        held = holders.get(name)
        if route.owner and held and held.owner != route.owner:
            refused[route.id] = f"{name} is {held.owner}'s, who had it first"
            continue
        if route.owner and (other := names.other(name, route.owner)):
            refused[route.id] = f"{name} overlaps {other[0]}, which is {other[1]}'s"
            continue
        granted[route.id] = (name, zone)
        if route.owner:
            names.add(name, route.owner)
            holders[name] = _held(held, route.owner, int(now))
    return Verdict(granted, refused, active, waiting, holders)


def _held(before: Holder | None, owner: str, now: int) -> Holder:
    if before is None:
        return Holder(owner, now, now)
    # Now and then is enough, and spares the disk.
    return before._replace(last=now) if now > before.last + NAME_KEPT / 24 else before


def _zones(
    zones: Sequence[Zone], ledger: Ledger, now: float
) -> tuple[tuple[Zone, ...], dict[tuple[str, str], str]]:
    """Return the zones that count, and why others do not."""
    waiting: dict[tuple[str, str], str] = {}
    proved: list[tuple[int, int, Zone]] = []
    active = [each for each in zones if not each.owner]
    for number, zone in enumerate(zones):
        if not zone.owner:
            continue
        key = zone.domain, zone.owner
        claim = ledger.claims.get(key, Claim())
        if not claim.proved:
            waiting[key] = f"{zone.owner} has not proved control of {zone.domain} yet"
        elif claim.missing and now >= claim.missing + zone.proof_grace:
            waiting[key] = f"{zone.domain} is suspended: {zone.owner}'s proof has disappeared"
        else:
            proved.append((claim.proved, number, zone))
    taken: list[Zone] = []
    for _, _, zone in sorted(proved, key=lambda each: each[:2]):
        other = next((each for each in taken if each.owner != zone.owner and _nested(each, zone)), None)
        if other is not None:
            waiting[zone.domain, zone.owner] = (
                f"{zone.domain} overlaps {other.domain}, which is {other.owner}'s, who proved it first"
            )
        else:
            taken.append(zone)
    return (*active, *taken), waiting


def _nested(one: Zone, other: Zone) -> bool:
    return within(one.domain, other.domain) or within(other.domain, one.domain)


def _zone_for(
    name: str,
    owner: str,
    zones: Sequence[Zone],
    active: Sequence[Zone],
    waiting: Mapping[tuple[str, str], str],
) -> tuple[Zone | None, str]:
    """Return the zone of a name for this owner, and why it cannot have it; "" if it can."""
    around = [each for each in zones if within(name, each.domain)]
    if not zones:
        return None, ""  # nobody proves anything: the operator's file says who has what
    if not around:
        return None, f"{name} is in no zone of tproxy_zones, so nobody has proved it" if owner else ""
    counting = [each for each in around if each in active]
    zone = max(counting, key=lambda each: len(each.domain), default=None)
    awaited = [each for each in around if (each.domain, each.owner) in waiting and each.owner == owner]
    if awaited:
        closest = max(awaited, key=lambda each: len(each.domain))
        if zone is None or zone.owner != owner or len(closest.domain) > len(zone.domain):
            return None, waiting[closest.domain, closest.owner]
    if zone is None:
        closest = max(around, key=lambda each: len(each.domain))
        return None, waiting[closest.domain, closest.owner]
    if zone.owner and zone.owner != owner:
        return None, f"{name} is in {zone.domain}, which is {zone.owner}'s"
    return zone, ""


class _Names:
    """Names that have owners, found by overlap in as many steps as a name has parts."""

    def __init__(self, zones: Iterable[Zone]) -> None:
        self._exact: dict[str, str] = {}
        self._wild: dict[str, str] = {}  # by base
        self._below: dict[str, dict[str, str]] = {}  # by domain: a name below it, for each owner
        for zone in zones:  # a zone is its owner's with everything below it
            self._note(zone.domain, zone.owner)

    def add(self, name: str, owner: str) -> None:
        if is_wildcard(name):
            self._wild[base(name)] = owner
            self._note(f"x.{base(name)}", owner, name)
        else:
            self._exact[name] = owner
            self._note(name, owner)

    def _note(self, name: str, owner: str, shown: str = "") -> None:
        for each in parents(name):
            self._below.setdefault(each, {}).setdefault(owner, shown or name)

    def other(self, name: str, owner: str) -> tuple[str, str] | None:
        """Return a name of another owner that overlaps this one, and the owner."""
        if (has := self._exact.get(name, owner)) != owner:
            return name, has
        for each in parents(name) if not is_wildcard(name) else (base(name), *parents(base(name))):
            if (has := self._wild.get(each, owner)) != owner:
                return f"*.{each}", has
        if is_wildcard(name):
            for has, shown in self._below.get(base(name), {}).items():
                if has != owner:
                    return shown, has
        return None
