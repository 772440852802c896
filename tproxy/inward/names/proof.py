"""Looks whether an owner controls a domain: by a TXT record, or by names of name servers that only he has.

The TXT record is at ``_tproxy-challenge.DOMAIN``. The name servers are read from the servers of the parent
zone: those of the domain itself may be ours, and would say what we wrote there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver

from tproxy.errors import to_ascii
from tproxy.inward.names.model import NAMESERVER, TXT, Zone

LABEL = "_tproxy-challenge"
TIMEOUT = 5.0  # seconds, for one server
LIFETIME = 5.0  # seconds, for one question to resolvers
MOST_SERVERS = 4  # of a parent, that are asked


class Unknown(Exception):
    """Nobody could tell."""


def place(domain: str) -> str:
    """Return the name of the TXT record."""
    return f"{LABEL}.{domain}"


def text(token: str) -> str:
    """Return the text of the TXT record."""
    return f"tproxy={token}"


def unique(token: str, nameserver: str) -> str:
    """Return the name of a name server that stands for one owner."""
    return f"{token}.{nameserver}"


def look(zone: Zone, token: str) -> tuple[str | None, str]:
    """Return what proves the zone, "" for nothing, None if nobody can tell now; and what was found."""
    resolver = dns.resolver.Resolver(configure=not zone.resolver)
    if zone.resolver:
        resolver.nameservers = [zone.resolver]
    resolver.lifetime = LIFETIME
    resolver.use_edns(0, 0, 1232)
    unknown = False
    said = []
    if zone.proof != NAMESERVER:
        try:
            if text(token) in _texts(resolver, place(zone.domain)):
                return f"TXT {place(zone.domain)}", f"{place(zone.domain)} has the text"
            said.append(f"{place(zone.domain)} has no TXT {text(token)}")
        except Unknown as reason:
            unknown = True
            said.append(to_ascii(reason))
    if zone.proof != TXT and zone.server is not None and zone.nameservers:
        try:
            names = _delegation(resolver, zone.domain)
            wanted = [unique(token, each) for each in zone.nameservers]
            if found := next((each for each in wanted if each in names), None):
                return f"NS {found}", f"the parent leads to {found}"
            shown = ", ".join(sorted(names)) or "none"
            said.append(f"the parent has other name servers: {shown}")
        except Unknown as reason:
            unknown = True
            said.append(to_ascii(reason))
    return None if unknown else "", "; ".join(said)


def _texts(resolver: dns.resolver.Resolver, name: str) -> list[str]:
    answer = _resolve(resolver, name, "TXT")
    return [b"".join(each.strings).decode(errors="replace").strip() for each in answer]


def ds_at_parent(zone: Zone) -> bool:
    """Whether the parent says that the zone is signed. Raises Unknown."""
    resolver = dns.resolver.Resolver(configure=not zone.resolver)
    if zone.resolver:
        resolver.nameservers = [zone.resolver]
    resolver.lifetime = LIFETIME
    return bool([*_resolve(resolver, zone.domain, "DS")])


def _resolve(resolver: dns.resolver.Resolver, name: str, type_: str) -> Iterable[Any]:
    problem = f"no answer for {name} {type_}"
    try:
        answer = resolver.resolve(f"{name}.", type_, raise_on_no_answer=False)
        response, found = answer.response, answer.rrset or ()
    except dns.resolver.NXDOMAIN as error:
        response, found = [*error.responses().values()][-1], ()  # type: ignore[no-untyped-call]
    except (dns.exception.DNSException, OSError) as error:
        raise Unknown(f"{problem}: {' '.join(str(error).split())[:200]}") from None
    if not response.flags & dns.flags.RA:
        raise Unknown(f"{problem}: {resolver.nameservers[0]} is no resolver")
    return found


def _delegation(resolver: dns.resolver.Resolver, domain: str) -> set[str]:
    """Return the name servers that the parent zone gives to a domain. Raises Unknown."""
    name = dns.name.from_text(domain)
    problem = f"no server of the parent zone of {domain} answers"
    query = dns.message.make_query(name, dns.rdatatype.NS)
    query.flags &= ~dns.flags.RD
    for address in _servers_of_parent(resolver, name):
        try:
            answer, _ = dns.query.udp_with_fallback(query, address, TIMEOUT)
        except (dns.exception.DNSException, OSError):
            continue
        if answer.rcode() == dns.rcode.NXDOMAIN:
            return set()
        if answer.rcode() != dns.rcode.NOERROR:
            continue
        if answer.flags & dns.flags.AA:
            if not any(each.rdtype == dns.rdatatype.NS for each in answer.answer):
                return set()
            # The server has both zones, and answers for the lower one, which may be as we wrote it.
            problem = (
                f"the parent's server {address} also has {domain}, and says nothing of the parent's own NS"
            )
            continue
        for section in (answer.authority, answer.answer):
            for rrset in section:
                if rrset.name == name and rrset.rdtype == dns.rdatatype.NS:
                    return {each.target.to_text(omit_final_dot=True).lower() for each in rrset}
    raise Unknown(problem)


def _servers_of_parent(resolver: dns.resolver.Resolver, name: dns.name.Name) -> Iterator[str]:
    asked = 0
    above = name
    while above != dns.name.root:
        above = above.parent()
        servers = [
            *_resolve(resolver, above.to_text(omit_final_dot=True) if above != dns.name.root else "", "NS")
        ]
        if not servers:
            continue
        for each in servers:
            for type_ in ("A", "AAAA"):
                for address in _resolve(resolver, each.target.to_text(omit_final_dot=True), type_):
                    if asked == MOST_SERVERS:
                        return
                    asked += 1
                    yield address.to_text()
        return
