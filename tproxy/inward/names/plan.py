"""What is to change in a zone: wanted addresses against the records that are there. Pure.

A name whose records are not ours, or not ours alone, stays as it is, with a note that says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from tproxy.inward.names import markers
from tproxy.inward.names.domain import is_wildcard, parents
from tproxy.inward.names.markers import Marked
from tproxy.inward.names.model import Record, Records, Zone

# A record by which a gateway shows that it lives changes that often in a lease.
BEATS = 3


class Plan(NamedTuple):
    """The records to write, where no value means to remove, and what an operator should know."""

    changes: tuple[Record, ...]
    notes: tuple[str, ...]


def plan(
    zone: Zone,
    present: Records,
    gateway: str,
    wanted: Mapping[str, bool],
    dead: Collection[str] = (),
    now: float = 0.0,
    *,
    beating: bool = True,
) -> Plan:
    """Return the changes of a zone.

    ``gateway`` is the one that asks, "" for none. ``wanted`` are the names that lead to it, and whether
    something healthy is behind each. Those of ``dead`` gateways are withdrawn where others stay. ``now`` is
    in seconds since 1970. ``beating`` says whether the gateway shows in this zone that it lives.
    """
    before = markers.marked(present)
    after = _after(zone, before, gateway, wanted, dead)
    changes: list[Record] = []
    notes: list[str] = []
    own = {address for each in zone.gateways for address in each.addresses}
    for name in sorted(before.keys() | after.keys()):
        if note := _foreign(zone, name, before, present, own):
            notes.append(note)
            continue
        changes += _of_name(zone, name, before.get(name, {}), after.get(name, {}), present)
    changes += _heartbeat(zone, present, gateway, now, beating=beating)
    return Plan(tuple(changes), tuple(notes))


def _after(
    zone: Zone, before: Marked, gateway: str, wanted: Mapping[str, bool], dead: Collection[str]
) -> Marked:
    after = {name: {**each} for name, each in before.items()}
    me = zone.gateway(gateway)
    if me is not None:
        for name in before:
            if name not in wanted:
                after[name].pop(gateway, None)
        for name, healthy in wanted.items():
            after.setdefault(name, {})[gateway] = me.addresses if healthy else ()
    known = {each.name for each in zone.gateways}
    for by_gateway in after.values():
        for each in set(dead) & by_gateway.keys() - {gateway}:
            if each not in known:
                del by_gateway[each]
            elif any(by_gateway[other] for other in by_gateway if other not in dead):
                # A dead address is no worse than none, so the last one stays.
                by_gateway[each] = ()
    return after


def _foreign(zone: Zone, name: str, before: Marked, present: Records, own: set[str]) -> str:
    """Say why a name is not ours to change; "" if it is."""
    if name == zone.domain:
        pass
    elif any((each, "NS") in present for each in _up_to(name, zone.domain)):
        return f"{name}: is below a delegation to other name servers: nothing written"
    elif (name, "CNAME") in present:
        return f"{name}: is a CNAME that tproxy did not make: nothing written"
    # A gateway's address beside a marker is ours, even if that gateway's marker went at the same time.
    ours = {address for each in before.get(name, {}).values() for address in each}
    if name in before:
        ours |= own
    for type_ in ("A", "AAAA"):
        record = present.get((name, type_))
        others = [value for value in record.values if value not in ours] if record else []
        if others:
            return f"{name}: {type_} {others[0]} is there, which tproxy did not make: nothing written"
    return ""


def _up_to(name: str, domain: str) -> Iterable[str]:
    if not is_wildcard(name):
        yield name
    for each in parents(name):
        if each == domain:
            return
        yield each


def _of_name(
    zone: Zone,
    name: str,
    before: Mapping[str, tuple[str, ...]],
    after: Mapping[str, tuple[str, ...]],
    present: Records,
) -> Iterable[Record]:
    addresses = sorted({address for each in after.values() for address in each})
    for type_ in ("A", "AAAA"):
        values = tuple(each for each in addresses if (":" in each) == (type_ == "AAAA"))
        yield from _set(Record(name, type_, zone.ttl, values), present)
    for gateway in sorted(before.keys() | after.keys()):
        place = markers.place(gateway, name)
        values = (markers.text(after[gateway]),) if gateway in after else ()
        yield from _set(Record(place, "TXT", zone.ttl, values), present)


def _set(wanted: Record, present: Records) -> Iterable[Record]:
    there = present.get((wanted.name, wanted.type))
    if there != wanted if wanted.values else there is not None:
        yield wanted


def _heartbeat(zone: Zone, present: Records, gateway: str, now: float, *, beating: bool) -> Iterable[Record]:
    """Show that the gateway lives, in a zone that has others who would withdraw it."""
    if zone.gateway(gateway) is None:
        return
    place = markers.alive_place(gateway, zone.domain)
    if not beating or not zone.lease or len(zone.gateways) < 2:
        yield from _set(Record(place, "TXT", zone.ttl, ()), present)
        return
    said = markers.words(present.get((place, "TXT")))
    last = int(said[0]) if said and said[0].isdecimal() else 0
    if not last <= now < last + zone.lease / BEATS:
        yield Record(place, "TXT", zone.ttl, (markers.text([str(int(now))]),))


def changed(present: Records, changes: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """Return the records after changes."""
    found = {**present}
    for each in changes:
        if each.values:
            found[each.name, each.type] = each
        else:
            found.pop((each.name, each.type), None)
    return found
