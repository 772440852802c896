"""Zones, gateways, servers and records: the immutable types of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tproxy.inward.names.domain import within

POWERDNS, RFC2136 = "powerdns", "rfc2136"
ANY, TXT, NAMESERVER = "any", "txt", "nameserver"  # how an owner proves


class Server(NamedTuple):
    """Where records of a zone are. ``at`` is a URL of PowerDNS's API, or ADDRESS:PORT for RFC 2136."""

    kind: str
    at: str
    key_file: str

    def __str__(self) -> str:
        return f"PowerDNS at {self.at}" if self.kind == POWERDNS else f"the name server at {self.at}"


class Gateway(NamedTuple):
    """A gateway: its addresses for clients, and the names of name servers beside it."""

    name: str
    addresses: tuple[str, ...]
    nameservers: tuple[str, ...] = ()


class Zone(NamedTuple):
    """One entry of ``tproxy_zones``. Without ``server``, its DNS is elsewhere, and nothing is written."""

    line: int
    domain: str
    gateways: tuple[Gateway, ...] = ()
    server: Server | None = None
    owner: str = ""
    proof: str = ANY
    proof_grace: int = 3 * 86400  # seconds
    resolver: str = ""  # an address; "": those of the host
    dnssec: bool | None = None  # None: as it is
    ttl: int = 30  # seconds
    lease: int = 60  # seconds
    origin: str = ""  # the path of another file than the one that was read

    @property
    def nameservers(self) -> tuple[str, ...]:
        """The names of all name servers, in the order of the gateways, each once."""
        return tuple(dict.fromkeys(name for each in self.gateways for name in each.nameservers))

    def gateway(self, name: str) -> Gateway | None:
        """Return the gateway of this name."""
        return next((each for each in self.gateways if each.name == name), None)


class Record(NamedTuple):
    """All records of one name and type, whose values are in the form of a zone file, sorted."""

    name: str
    type: str
    ttl: int
    values: tuple[str, ...]


# The records of a zone by name and type.
Records = Mapping[tuple[str, str], Record]


def zone_of(name: str, zones: tuple[Zone, ...]) -> Zone | None:
    """Return the zone that a name is in: the one with the longest domain."""
    found = [each for each in zones if within(name, each.domain)]
    return max(found, key=lambda each: len(each.domain), default=None)
