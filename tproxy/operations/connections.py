"""Lists the live connections of all workers, measures their rates, and ends chosen ones.

What a worker says is taken only in the form of FIELDS. Which worker said it, the daemon knows.
"""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tproxy.daemon.asking import PATIENCE, Inquiry, Silent, Worker
from tproxy.datapath.inspection import STATES
from tproxy.errors import BadName
from tproxy.kernel import rtnetlink
from tproxy.names import BridgeNames

# The keys of a connection: what each value must be, and what it means. SAID is what ``datapath.inspection``
# says.
TEXT, COUNT, SECONDS, YES_OR_NO, RATE = "text", "count", "seconds", "yes or no", "rate"
COUNT_OR_NULL, MAC = "count or null", "MAC"


class Field(NamedTuple):
    """One key of a connection."""

    kind: str
    meaning: str


SAID = {
    "id": Field(TEXT, "the id of the connection, as in the log and in the PROXY header"),
    "protocol": Field(TEXT, "`tcp` or `udp`"),
    "state": Field(TEXT, "one of the words below"),
    "draining": Field(YES_OR_NO, "whether it goes on in an old worker, after a restart"),
    "age": Field(SECONDS, "seconds since it was accepted"),
    "bridge": Field(TEXT, "the bridge"),
    "network": Field(TEXT, "the network, as in metrics"),
    "service": Field(TEXT, "the service, as in metrics: `name:port`, or `port`; `route/ID` for a route"),
    "route": Field(TEXT, "of a stream from outside, whose client is the endpoint: the id of its route"),
    "service_address": Field(TEXT, "the service address; empty for a route"),
    "service_port": Field(COUNT, "the service port; 0 for a route"),
    "guest": Field(TEXT, "the guest's address"),
    "guest_port": Field(COUNT, "its port"),
    "mac": Field(MAC, "the guest's MAC; empty where it is not known"),
    "port": Field(TEXT, "the port of the bridge where the guest is; empty where it is not known"),
    "endpoint": Field(TEXT, "the endpoint's address and port, or `unix:/path`"),
    "bytes_to_endpoint": Field(COUNT, "bytes that were passed on to the endpoint"),
    "bytes_to_guest": Field(COUNT, "bytes that were passed on to the guest"),
    "guest_rtt": Field(COUNT_OR_NULL, "microseconds of a round trip to the guest, smoothed (TCP_INFO)"),
    "endpoint_rtt": Field(
        COUNT_OR_NULL, "microseconds of a round trip to the endpoint, likewise; null for a UNIX socket"
    ),
    "guest_retransmits": Field(COUNT_OR_NULL, "packets that were sent to the guest again"),
    "endpoint_retransmits": Field(COUNT_OR_NULL, "packets that were sent to the endpoint again"),
}
ADDED = {
    "worker": Field(COUNT, "the process id of its worker"),
    "rate_to_endpoint": Field(RATE, "bytes a second to the endpoint, over `seconds`; null if not measured"),
    "rate_to_guest": Field(RATE, "bytes a second to the guest, likewise"),
}
FIELDS = {**SAID, **ADDED}

_WORDS = {"protocol": ("tcp", "udp"), "state": STATES}

_MAC = "|[0-9a-f]{2}(:[0-9a-f]{2}){5}"

# The longest text that a worker may say: two names of 255 bytes, escaped.
_MOST_OF_A_TEXT = 4096

Row = dict[str, Any]


class Listing(NamedTuple):
    """Connections, sorted, and the workers that did not say all of theirs.

    ``seconds`` is the time for which rates were measured; None: they were not.
    """

    rows: list[Row]
    silent: list[Silent]
    seconds: float | None = None


def listed(words: Sequence[str], patience: float = PATIENCE) -> Listing:
    """Return the connections that these words choose (``datapath.choice``), without rates.

    Raises ProcessError when no daemon answers.
    """
    return _ask("connections", words, patience)


def measured(words: Sequence[str], seconds: float, before: Listing | None = None) -> Listing:
    """The same with rates: a second look, so many seconds after ``before``, or after a first one."""
    first = before if before is not None else listed(words)
    time.sleep(seconds)
    return with_rates(listed(words), first)


def with_rates(now: Listing, before: Listing) -> Listing:
    """Return the listing with rates since the one before.

    The time between two looks at one connection is the difference of its ages. One that is new has moved all
    of its bytes since it began.
    """
    known = {row["id"]: row for row in before.rows}
    spans = []
    for row in now.rows:
        was = known.get(row["id"], {"age": 0.0, "bytes_to_endpoint": 0, "bytes_to_guest": 0})
        span = row["age"] - was["age"]
        if span <= 0:
            continue
        spans.append(span)
        for direction in ("to_endpoint", "to_guest"):
            moved = row[f"bytes_{direction}"] - was[f"bytes_{direction}"]
            row[f"rate_{direction}"] = max(round(moved / span, 1), 0.0)
    return now._replace(seconds=round(max(spans, default=0.0), 3))


def kill(words: Sequence[str], patience: float = PATIENCE) -> Listing:
    """End the connections that these words choose, with a reset; return them as they were."""
    return _ask("kill", words, patience)


def _ask(kind: str, words: Sequence[str], patience: float) -> Listing:
    with Inquiry(kind, words) as inquiry:
        found = (row_of(worker, line) for worker, line in inquiry.lines(patience))
        rows = [each for each in found if each is not None]
        _add_ports(rows)
        return Listing(_sorted(rows), inquiry.silent)


def _add_ports(rows: Iterable[Row]) -> None:
    """Ask the bridges where guests are, unless their workers know it, as they do only where it matters."""
    known: dict[tuple[str, str], str] = {}
    for row in rows:
        place = row["bridge"], row["mac"]
        if row["mac"] and not row["port"]:
            if place not in known:
                known[place] = _port_of(*place)
            row["port"] = known[place]


def _port_of(bridge: str, mac: str) -> str:
    """Return the port of a bridge behind which a MAC was seen last, in VLAN 0; "" if there is none."""
    try:
        ours = socket.if_nametoindex(BridgeNames(bridge).veth_bridge)
        return rtnetlink.name(rtnetlink.port_of(ours, mac))
    except (OSError, BadName):  # the bridge or our port is gone, or a worker lies
        return ""


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(
        rows, key=lambda each: (each["bridge"], each["service_port"], each["guest"], -each["age"], each["id"])
    )


def row_of(worker: Worker, line: dict[str, Any]) -> Row | None:
    """Return a connection that a worker has described; None if it is no description."""
    row: Row = {}
    for name, (kind, _) in SAID.items():
        value = line.get(name)
        if name not in line or not _fits(kind, value) or value not in _WORDS.get(name, (value,)):
            return None
        row[name] = value
    return {**row, "worker": worker.pid, "rate_to_endpoint": None, "rate_to_guest": None}


def _fits(kind: str, value: object) -> bool:
    match kind:
        case "text":
            return isinstance(value, str) and len(value) <= _MOST_OF_A_TEXT
        case "MAC":
            return isinstance(value, str) and re.fullmatch(_MAC, value) is not None
        case "yes or no":
            return isinstance(value, bool)
        case "seconds":
            return _is_number(value) and not isinstance(value, bool)
        case "count or null" if value is None:
            return True
        case _:
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
