"""Zones of any server that takes dynamic updates (RFC 2136) and zone transfers (RFC 5936), signed by TSIG.

Each update says what must be there before (RFC 2136, section 2.4), so one that another gateway has overtaken
changes nothing, and is made anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dns.dnssec
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update
import dns.xfr
import dns.zone

from tproxy.errors import to_ascii
from tproxy.inward.names.model import Record, Records, Server, Zone
from tproxy.inward.names.servers import Changed, ServerDown, ServerError, ZoneMissing

TIMEOUT = 10.0  # seconds

_SEP = 1  # of a key's flags: the parent refers to it, RFC 4034 section 2.1.1

# Records in one message: by TCP it has 64 KiB, and each is there as condition and as change.
MOST = 100

_KEY = re.compile(
    r'key\s+"?(?P<name>[^\s"{]+)"?\s*\{(?=[^}]*algorithm\s+"?(?P<algorithm>[\w.-]+)"?\s*;)'
    r'[^}]*secret\s+"?(?P<secret>[A-Za-z0-9+/=]+)"?\s*;'
)
_OVERTAKEN = {dns.rcode.YXDOMAIN, dns.rcode.YXRRSET, dns.rcode.NXRRSET, dns.rcode.NXDOMAIN}


class Updates:
    """The server; ``key`` is the text of a key file as `tsig-keygen` makes it."""

    def __init__(self, server: Server, key: str) -> None:
        host, _, port = server.at.rpartition(":")
        self._server = server
        self._host = host.strip("[]")
        self._port = int(port)
        found = parts_of_key(key)
        if not found:
            raise ServerError(f"key_file {server.key_file} has no key as tsig-keygen prints it")
        name, algorithm, secret = found
        try:
            self._key = dns.tsig.Key(name, secret, f"{algorithm}.")
        except (ValueError, dns.exception.DNSException) as error:
            raise ServerError(f"key_file {server.key_file}: {to_ascii(error)}") from None

    def read(self, zone: Zone) -> Records:
        name = _absolute(zone.domain)
        query = dns.message.make_query(name, dns.rdatatype.AXFR)
        query.use_tsig(self._key)
        found = dns.zone.Zone(name, relativize=False)
        with self._asking(zone):
            dns.query.inbound_xfr(
                self._host, found, query, port=self._port, timeout=TIMEOUT, lifetime=3 * TIMEOUT
            )
        records = {}
        for owner, rdataset in found.iterate_rdatasets():
            values = tuple(sorted(each.to_text() for each in rdataset))
            record = Record(_relative(owner), dns.rdatatype.to_text(rdataset.rdtype), rdataset.ttl, values)
            records[record.name, record.type] = record
        return records

    def create(self, zone: Zone, nameservers: tuple[str, ...]) -> None:
        raise ServerError(
            f"{zone.server} does not have {zone.domain}: RFC 2136 makes no zones, so add it there"
        )

    def change(self, zone: Zone, before: Records, changes: Iterable[Record]) -> None:
        for part in _parts(changes):
            update = dns.update.UpdateMessage(_absolute(zone.domain))
            for each in part:
                there = before.get((each.name, each.type))
                if there is None:
                    update.absent(_absolute(each.name), each.type)
                else:
                    update.present(_absolute(each.name), each.type, *there.values)
            for each in part:
                if each.values:
                    update.replace(_absolute(each.name), each.ttl, each.type, *each.values)
                else:
                    update.delete(_absolute(each.name), each.type)
            update.use_tsig(self._key)
            with self._asking(zone):
                answer = dns.query.tcp(update, self._host, TIMEOUT, self._port)
            self._judge(zone, answer.rcode())

    def ds(self, zone: Zone) -> list[str]:
        query = dns.message.make_query(_absolute(zone.domain), dns.rdatatype.DNSKEY)
        with self._asking(zone):
            answer = dns.query.tcp(query, self._host, TIMEOUT, self._port)
        found = []
        for rrset in answer.answer:
            for each in rrset:
                if each.rdtype == dns.rdatatype.DNSKEY and each.flags & _SEP:
                    found.append(dns.dnssec.make_ds(rrset.name, each, "SHA256").to_text())
        return sorted(found)

    def sign(self, zone: Zone, *, signed: bool) -> bool:
        return False  # by the server's own configuration

    def _judge(self, zone: Zone, rcode: dns.rcode.Rcode) -> None:
        if rcode == dns.rcode.NOERROR:
            return
        said = dns.rcode.to_text(rcode)
        if rcode in _OVERTAKEN:
            raise Changed(f"{zone.domain} was changed by somebody else meanwhile ({said})")
        if rcode == dns.rcode.NOTAUTH:
            raise ZoneMissing(f"{self._server} does not have {zone.domain} ({said})")
        kind = ServerDown if rcode == dns.rcode.SERVFAIL else ServerError
        raise kind(f"{self._server} refuses to change {zone.domain}: {said}")

    @contextmanager
    def _asking(self, zone: Zone) -> Iterator[None]:
        try:
            yield
        except dns.xfr.TransferError as error:
            if error.rcode == dns.rcode.NOTAUTH:
                raise ZoneMissing(f"{self._server} does not have {zone.domain}") from None
            said = dns.rcode.to_text(error.rcode)
            kind = ServerDown if error.rcode == dns.rcode.SERVFAIL else ServerError
            raise kind(f"{self._server} refuses the transfer of {zone.domain}: {said}") from None
        except (dns.tsig.PeerError, dns.tsig.BadSignature) as error:
            raise ServerError(f"{self._server} refuses the key: {to_ascii(error)}") from None
        except (dns.exception.DNSException, OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or to_ascii(error) or type(error).__name__
            raise ServerDown(f"{self._server} does not answer: {reason}") from None


def parts_of_key(text: str) -> tuple[str, str, str] | None:
    """Return name, algorithm and secret of a key file; None where it has none."""
    found = _KEY.search(text)
    return (found["name"], found["algorithm"], found["secret"]) if found else None


def _parts(changes: Iterable[Record]) -> Iterator[list[Record]]:
    """Divide changes; those that belong together follow each other and stay together where they can."""
    listed = [*changes]
    for start in range(0, len(listed), MOST):
        yield listed[start : start + MOST]


def _absolute(name: str) -> dns.name.Name:
    return dns.name.from_text(name)


def _relative(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
