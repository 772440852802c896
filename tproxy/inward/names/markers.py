"""Markers: TXT records that say which addresses of a name are ours, and that a gateway lives. Pure.

``gw1._tproxy.www.example.com TXT "tproxy 192.0.2.1"`` says that the gateway gw1 put this address at
``www.example.com``. Without an address, the gateway has withdrawn its own; the marker then keeps the name
there, empty, so that no wildcard answers for it (RFC 4592, section 2.2.2). Each gateway writes its own
markers, and the addresses of a name are those of all its markers. So what two gateways do at once converges.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from tproxy.inward.names.domain import base, is_wildcard
from tproxy.inward.names.model import Record, Records

LABEL = "_tproxy"
ALIVE = "_tproxy-alive"
NAMESERVERS = "_tproxy-ns"
_ANY_LABEL = "_any"  # stands for ``*``, which is a label of its own meaning
WORD = "tproxy"

# What each gateway has at each name.
Marked = dict[str, dict[str, tuple[str, ...]]]


def place(gateway: str, name: str) -> str:
    """Return the name of a marker."""
    return (
        f"{gateway}.{LABEL}.{_ANY_LABEL}.{base(name)}" if is_wildcard(name) else f"{gateway}.{LABEL}.{name}"
    )


def alive_place(gateway: str, zone: str) -> str:
    """Return the name of the record by which a gateway shows that it lives."""
    return f"{gateway}.{ALIVE}.{zone}"


def text(words: Iterable[str] = ()) -> str:
    """Return the value of a marker, in the form of a zone file."""
    return f'"{" ".join((WORD, *words))}"'


def words(record: Record | None) -> tuple[str, ...] | None:
    """Return the words of a marker; None where the record is none of ours."""
    if record is None or record.type != "TXT" or len(record.values) != 1:
        return None
    said = record.values[0].removeprefix('"').removesuffix('"').split(" ")
    return tuple(filter(None, said[1:])) if said[0] == WORD else None


def marked(records: Records) -> Marked:
    """Return what the markers of a zone say."""
    found: Marked = {}
    for record in records.values():
        gateway, between, name = record.name.partition(f".{LABEL}.")
        said = words(record)
        if not between or "." in gateway or said is None or not all(map(_is_address, said)):
            continue
        if name.startswith(f"{_ANY_LABEL}."):
            name = f"*.{name.partition('.')[2]}"
        found.setdefault(name, {})[gateway] = said
    return found


def heartbeats(records: Records) -> Mapping[str, str]:
    """Return what each gateway said last to show that it lives."""
    found = {}
    for record in records.values():
        gateway, between, _ = record.name.partition(f".{ALIVE}.")
        said = words(record)
        if between and said:
            found[gateway] = said[0]
    return found


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True
