"""Certificates by DNS-01: lego's own providers for PowerDNS and RFC 2136, with our settings.

https://go-acme.github.io/lego/dns/pdns/ and https://go-acme.github.io/lego/dns/rfc2136/
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from tproxy.errors import TproxyError
from tproxy.inward.names.claims import Verdict
from tproxy.inward.names.domain import within
from tproxy.inward.names.model import POWERDNS, Server, Zone


def zone_for(name: str, verdict: Verdict) -> Zone:
    """Return the zone in which a name is proved. Raises TproxyError for a name that no route has."""
    for granted, zone in verdict.granted.values():
        if granted == name:
            if zone is None or zone.server is None:
                raise TproxyError(f"{name} is in no zone with a server: use HTTP-01 for it")
            return zone
    for zone in verdict.zones:
        if within(name, zone.domain):
            raise TproxyError(f"{name} is no route's, so it gets no certificate")
    raise TproxyError(f"{name} is not proved, so it gets no certificate")


def by_dns(zone: Zone) -> tuple[list[str], dict[str, str]]:
    """Return lego's options and its settings for names of a zone. Raises ServerError."""
    from tproxy.inward.names.servers import key

    assert zone.server is not None
    options = ["--dns", "pdns" if zone.server.kind == POWERDNS else "rfc2136"]
    if zone.resolver:
        address = f"[{zone.resolver}]" if ":" in zone.resolver else zone.resolver
        options += ["--dns.resolvers", f"{address}:53"]
    return options, _environment(zone.server, key(zone.server))


def _environment(server: Server, key: str) -> dict[str, str]:
    if server.kind == POWERDNS:
        return {"PDNS_API_URL": server.at, "PDNS_API_KEY_FILE": server.key_file, "PDNS_TTL": "10"}
    return {"RFC2136_NAMESERVER": server.at, "RFC2136_TTL": "10", **_tsig(key)}


def _tsig(key: str) -> dict[str, str]:
    from tproxy.inward.names.updates import parts_of_key

    name, algorithm, secret = parts_of_key(key) or ("", "", "")
    return {
        "RFC2136_TSIG_ALGORITHM": f"{algorithm}.",
        "RFC2136_TSIG_KEY": name,
        "RFC2136_TSIG_SECRET": secret,
    }


def lines(name: str, zone: Zone) -> Iterable[str]:
    """Return the settings and the command. Raises ServerError."""
    options, environment = by_dns(zone)
    for variable, value in environment.items():
        yield f"export {variable}={shlex.quote(value)}"
    options += ["--domains", name, "--path", "/var/lib/tproxy-lego"]
    yield f"lego --accept-tos --email you@example.com {shlex.join(options)} run"
