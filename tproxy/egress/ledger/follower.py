"""Brings what squid has answered by itself into the ledger: plain URLs of the policy, tunnels, and denials.

squid's helper records its decisions before squid acts (``squid.external_acl``), and the mirror what it
serves. What is left is how a transfer ended, with its bytes, and what squid denied without asking the helper.
squid writes a line of JSON for each request (``squid.compiler``). The place in the log is kept in a file, so
after a restart no line is missed or taken twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tproxy.egress.ledger.entries import Event
from tproxy.egress.ledger.tail import Tail
from tproxy.egress.model import Caller
from tproxy.egress.policy import places
from tproxy.egress.policy.rules import Upstreams
from tproxy.egress.store.durable import replace

_CALLER = ("hypervisor", "network", "network_id", "bridge", "port", "mac", "address")
_TO_MIRROR = ("PARENT", "mirror")  # in "way": squid asked the mirror, which has written its own entry

# What the helper says in the note "recorded" that it wrote to the ledger.
BEGUN, DENIED, NOTHING = "begun", "denied", "nothing"


class Follower:
    """Reads the lines that a log has got since the last time, also since the last process."""

    def __init__(self, log: Path, place: Path) -> None:
        self._place = place
        try:
            inode, offset = map(int, place.read_text().split())
        except (OSError, ValueError):
            inode, offset = 0, 0

        def start(stat: os.stat_result) -> int:
            return offset if stat.st_ino == inode and stat.st_size >= offset else 0

        self._tail = Tail(log, start)

    def new(self) -> list[str]:
        """Return whole lines that are new, some of them if there are many. Raises OSError."""
        return self._tail.new()

    def keep(self) -> None:
        """Remember how far the lines went, when they are in the ledger. Raises OSError."""
        replace(self._place, f"{self._tail.inode} {self._tail.offset}\n".encode(), 0o640)

    def again(self) -> None:
        """Have ``new`` return the last lines once more: they could not be written to the ledger."""
        self._tail.again()


def events(lines: list[str], upstreams: Upstreams) -> Iterator[Event]:
    """Yield what goes into the ledger. A line that is none of ours is passed over."""
    for line in lines:
        try:
            entry = {name: unquote(str(text)) for name, text in json.loads(line).items()}
            event = _event(entry, upstreams)
        except (ValueError, KeyError, AttributeError):
            continue
        if event is not None:
            yield event


def _event(entry: dict[str, str], upstreams: Upstreams) -> Event | None:
    recorded, status, tunnel = entry.get("recorded", "-"), entry["status"], entry["cache"] == "TCP_TUNNEL"
    if recorded == DENIED or any(word in entry["way"] for word in _TO_MIRROR):
        return None
    denied = "TCP_DENIED" in entry["cache"]
    denied |= status == "403" and entry["way"] == "HIER_NONE" and recorded != BEGUN
    if entry["method"] == "CONNECT" and not (denied or tunnel):
        return None  # opened: the requests in it have lines of their own
    caller = Caller(**{name: _known(entry.get(name, "")) for name in _CALLER})
    artifact, rule = places.artifact_at(entry["url"], upstreams), _known(entry["rule"])
    if denied:
        reason = _denial(rule, recorded, status)
        return Event.of(caller, artifact, "denied", rule=rule, reason=reason)
    size = int(entry["bytes"]) if entry["bytes"].isdecimal() else 0
    if status.startswith("2") or tunnel:
        about = "a tunnel: what went through it was not seen" if tunnel else ""
        return Event.of(caller, artifact, "allowed", rule=rule, reason=about, size=size)
    if recorded == BEGUN:
        about = f"the answer was {status}" if status.strip("0") else "it ended without an answer"
        return Event.of(caller, artifact, "ended", rule=rule, reason=about, size=size)
    return None


def _denial(rule: str, recorded: str, status: str) -> str:
    """Return why squid denied a request that the helper did not deny, or whose denial was not recorded."""
    if recorded in (BEGUN, NOTHING):  # allowed by name, and refused when squid had found the address
        return "its address is one of this site"
    if status == "503":
        return "the ledger could not be written then"
    return f"denied by {rule}" if rule not in ("", "none") else "no rule allows it"


def _known(text: str) -> str:
    return "" if text == "-" else text
