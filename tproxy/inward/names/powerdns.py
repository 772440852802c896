"""Zones of PowerDNS by its HTTP API (https://doc.powerdns.com/authoritative/http-api/zone.html), from 4.4 on.

A PATCH is one transaction: with one record that PowerDNS refuses, nothing changes.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from tproxy.errors import to_ascii
from tproxy.inward.names.model import Record, Records, Zone
from tproxy.inward.names.servers import ServerDown, ServerError, ZoneMissing

TIMEOUT = 10.0  # seconds

# Seconds for which resolvers may remember that a name has no addresses (RFC 2308): one comes back soon.
NEGATIVE_TTL = 30

# Not through a proxy of the environment: the key is for this server alone.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PowerDns:
    """The API at ``url``."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    def read(self, zone: Zone) -> Records:
        found: dict[tuple[str, str], Record] = {}
        for each in self._ask("GET", _place(zone), missing=zone)["rrsets"]:
            values = sorted(one["content"] for one in each["records"] if not one.get("disabled"))
            record = Record(_name(each["name"]), each["type"], each["ttl"], tuple(values))
            found[record.name, record.type] = record
        return found

    def create(self, zone: Zone, nameservers: tuple[str, ...]) -> None:
        if not nameservers:
            raise ServerError(
                f"{zone.domain} is not at {zone.server}, and cannot be made: no gateway has nameservers"
            )
        domain = f"{zone.domain}."
        soa = f"{nameservers[0]}. hostmaster.{domain} 0 3600 600 1209600 {NEGATIVE_TTL}"
        self._ask(
            "POST",
            "",
            {
                "name": domain,
                "kind": "Native",
                "nameservers": [f"{each}." for each in nameservers],
                "rrsets": [_rrset(Record(zone.domain, "SOA", 3600, (soa,)))],
                "dnssec": bool(zone.dnssec),
                "api_rectify": True,
                "soa_edit_api": "DEFAULT",
            },
        )

    def change(self, zone: Zone, before: Records, changes: Iterable[Record]) -> None:
        self._ask("PATCH", _place(zone), {"rrsets": [*map(_rrset, changes)]}, missing=zone)

    def ds(self, zone: Zone) -> list[str]:
        keys = self._ask("GET", f"{_place(zone)}/cryptokeys", missing=zone)
        return [each for key in keys if key["active"] and key["published"] for each in key.get("ds", ())]

    def sign(self, zone: Zone, *, signed: bool) -> bool:
        if self._ask("GET", f"{_place(zone)}?rrsets=false", missing=zone)["dnssec"] == signed:
            return False
        self._ask("PUT", _place(zone), {"dnssec": signed, "api_rectify": True}, missing=zone)
        return True

    def _ask(self, method: str, place: str, content: Any = None, missing: Zone | None = None) -> Any:
        url = f"{self._url}/api/v1/servers/localhost/zones{place}"
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(url, data, {"X-API-Key": self._key}, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            said = _said(error)
            if error.code == 401:
                raise ServerError(f"{self._url} refuses the key") from None
            if error.code == 404 and missing is not None:
                raise ZoneMissing(f"PowerDNS at {self._url} does not have {missing.domain}") from None
            kind = ServerDown if error.code >= 500 else ServerError
            raise kind(f"PowerDNS at {self._url} refuses: {said}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            reason = getattr(reason, "strerror", None) or reason
            raise ServerDown(f"PowerDNS at {self._url} does not answer: {to_ascii(reason)}") from None


def _said(error: urllib.error.HTTPError) -> str:
    text = error.read(4096).decode(errors="replace")
    try:
        found = json.loads(text)
        text = "; ".join([found["error"], *found.get("errors", ())])
    except (ValueError, TypeError, KeyError):
        text = text or error.reason
    return to_ascii(" ".join(text.split()))[:300]


def _place(zone: Zone) -> str:
    return f"/{quote(zone.domain)}."


def _name(text: str) -> str:
    return text.removesuffix(".").lower()


def _rrset(record: Record) -> dict[str, Any]:
    return {
        "name": f"{record.name}.",
        "type": record.type,
        "ttl": record.ttl,
        "changetype": "REPLACE" if record.values else "DELETE",
        "records": [{"content": each, "disabled": False} for each in record.values],
    }
