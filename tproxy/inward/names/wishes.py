"""Which names of a zone lead to a gateway, from what is granted, and the names of its name servers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tproxy.inward.names.claims import Verdict
from tproxy.inward.names.domain import within
from tproxy.inward.names.model import NAMESERVER, POWERDNS, TXT, Zone
from tproxy.inward.names.proof import unique


def of_routes(verdict: Verdict, zone: Zone, healthy: Mapping[str, bool]) -> dict[str, bool]:
    """Return the names of a zone's routes, and whether something healthy is behind each.

    A route that is not in ``healthy`` is taken for healthy.
    """
    found: dict[str, bool] = {}
    for id_, (name, its) in verdict.granted.items():
        if its == zone:
            found[name] = found.get(name, False) or healthy.get(id_, True)
    return found


def unique_nameservers(zone: Zone, token: str) -> tuple[str, ...]:
    """Return the name servers of a zone: an owner's have names of their own, unless TXT alone proves it."""
    if not zone.owner or zone.proof == TXT:
        return zone.nameservers
    return tuple(unique(token, each) for each in zone.nameservers)


def of_nameservers(
    zone: Zone, zones: Sequence[Zone], gateway: str, tokens: Mapping[str, str]
) -> dict[str, bool]:
    """Return the names of this gateway's name servers that are in a zone of the operator.

    ``zones`` are all of them, and ``tokens`` those of their owners.
    """
    if zone.owner:
        return {}
    found: set[str] = set()
    for each in zones:
        its = each.gateway(gateway)
        for name in its.nameservers if its else ():
            found.add(name)
            if each.owner and each.proof != TXT and each.server is not None:
                found.add(unique(tokens[each.owner], name))
    # As long as the gateway asks, they are there.
    return {each: True for each in sorted(found) if within(each, zone.domain) and each != zone.domain}


def may_be_made(zone: Zone, zones: Sequence[Zone]) -> bool:
    """Whether a zone that nobody proved yet may be made at its server already.

    Some registries want it there before they lead to it. But below another zone, it would answer for names of
    that one.
    """
    if zone.server is None or zone.server.kind != POWERDNS:
        return False
    return not any(
        each is not zone and (within(zone.domain, each.domain) or within(each.domain, zone.domain))
        for each in zones
    )


def beats(zone: Zone, zones: Sequence[Zone], gateway: str) -> bool:
    """Whether the gateway shows in this zone that it lives.

    Zones of owners may be many, so they have it only where no zone of the operator at the same server has.
    """
    if not zone.owner:
        return True
    return not any(
        not each.owner
        and each.server == zone.server
        and each.lease
        and len(each.gateways) > 1
        and each.gateway(gateway) is not None
        for each in zones
    )


def delegation(zone: Zone, nameservers: Sequence[str]) -> list[str]:
    """Return the NS records for the parent of a zone, and the addresses that belong to names within it."""
    records = [f"{zone.domain}. NS {each}." for each in nameservers]
    for gateway in zone.gateways:
        for name in nameservers:
            if any(name == each or name.endswith(f".{each}") for each in gateway.nameservers) and within(
                name, zone.domain
            ):
                kinds = (("AAAA" if ":" in each else "A", each) for each in gateway.addresses)
                records += [f"{name}. {kind} {address}" for kind, address in kinds]
    return records


def advice(zone: Zone, zones: Sequence[Zone]) -> str:
    """Say which name servers have no addresses by us; "" for none."""
    if zone.proof not in (NAMESERVER, "any") or not zone.owner:
        return ""
    outside = [
        each
        for each in zone.nameservers
        if not any(not one.owner and one.server and within(each, one.domain) for one in zones)
    ]
    if not outside:
        return ""
    return f"{outside[0]} is in no zone of yours here: add the wildcard *.{outside[0]} with its address there"
