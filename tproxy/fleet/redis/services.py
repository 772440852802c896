"""What a TCP router's keys say, and the routes that they become. Pure.

A key ``tcprouter/service/NAME`` (or with ``/`` before it) holds JSON: an object whose ``Value`` is, in
base64, the JSON of the service. ``addr`` is its address, ``tlsport`` and ``httpport`` its ports. A service
with a ``clientsecret`` is behind a tunnel of the router's own kind, so it has no address, and cannot become
a route. The secret goes nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tproxy.addresses import is_ipv4
from tproxy.errors import quoted, to_ascii
from tproxy.routes import MOST_ID

PATTERNS = ("tcprouter/service/*", "/tcprouter/service/*", "tcprouter/services/*", "/tcprouter/services/*")

_KEY = re.compile(r"/?tcprouter/services?/(.+)")
_DOMAIN = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
)


class Service(NamedTuple):
    """One service of the router. A port is 0 where there is none."""

    domain: str
    address: str
    http_port: int
    tls_port: int


class Unusable(Exception):
    """Why a key cannot become a route."""


def services(found: Mapping[str, str]) -> tuple[dict[str, Service], dict[str, str]]:
    """Return services by key, and the reasons why other keys cannot be used."""
    used: dict[str, Service] = {}
    problems: dict[str, str] = {}
    domains: dict[str, str] = {}
    for key, value in sorted(found.items()):
        try:
            service = parse(key, value)
            if service.domain in domains:
                raise Unusable(f"{service.domain} is that of the key {to_ascii(domains[service.domain])} too")
        except Unusable as error:
            problems[key] = str(error)
            continue
        domains[service.domain] = key
        used[key] = service
    return used, problems


def parse(key: str, value: str) -> Service:
    """Return the service that a key stands for. Raises Unusable."""
    name = _KEY.fullmatch(key)
    said = _object(value)
    if "value" in said:
        try:
            said = _object(base64.b64decode(str(said["value"]), validate=True).decode())
        except (binascii.Error, UnicodeDecodeError, ValueError) as error:
            raise Unusable("Value is no base64 of text") from error
    domain = str(said.get("sni") or (name[1] if name else "")).lower().rstrip(".")
    if not _DOMAIN.fullmatch(domain):
        raise Unusable(f"{quoted(domain)} is no host name")
    address, _, port = str(said.get("addr") or "").partition(":")
    if said.get("clientsecret"):
        raise Unusable(
            "it is behind a tunnel (clientsecret): give its node a tunnel of tproxy, and a route to it"
        )
    if not is_ipv4(address):
        raise Unusable(f"addr {quoted(address)} is no IPv4 address")
    http, tls = _port(said, "httpport"), _port(said, "tlsport") or _port({"port": port or 0}, "port")
    if not http and not tls:
        raise Unusable("it has neither httpport nor tlsport")
    return Service(domain, address, http, tls)


def entries(found: Mapping[str, Service], network: str, owner: str) -> list[dict[str, Any]]:
    """Return entries of ``tproxy_routes``, sorted by name."""
    made = []
    for each in sorted(found.values()):
        entry: dict[str, Any] = {
            "id": id_of(each.domain),
            "domain": each.domain,
            "network": network,
            "guest_addr": each.address,
            "port": each.http_port or each.tls_port,
        }
        if each.http_port and each.tls_port and each.http_port != each.tls_port:
            entry["port_tls"] = each.tls_port
        if owner:
            entry["owner"] = owner
        made.append(entry)
    return made


def id_of(domain: str) -> str:
    """Return the id of a route for a name, which is the same each time."""
    text = domain.replace("*", "any")
    if len(text) <= MOST_ID:
        return text
    mark = hashlib.blake2s(domain.encode(), digest_size=6).hexdigest()
    return f"{text[: MOST_ID - len(mark) - 1].rstrip('.')}-{mark}"


def _object(text: str) -> dict[str, Any]:
    """An object of JSON with its keys in small letters: writers differ. Raises Unusable."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable("it is no JSON") from error
    if not isinstance(found, dict):
        raise Unusable("it is no object of JSON")
    return {key.lower(): value for key, value in found.items()}


def _port(said: Mapping[str, Any], key: str) -> int:
    port = said.get(key) or 0
    if isinstance(port, str) and port.isdecimal() and len(port) < 6:
        port = int(port)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise Unusable(f"{key} {quoted(str(port))} is not a port, 1 to 65535")
    return port
