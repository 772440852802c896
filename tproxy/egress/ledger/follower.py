"""Brings what squid answers by itself into the ledger: denials, plain URLs of the policy, and tunnels.

squid writes a line of JSON for each request (``squid.compiler``). What it passed on to the mirror is in the
ledger already. The place in the log is kept in a file, so after a restart no line is missed or taken twice. A
log that was moved away or truncated is read from its beginning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tproxy.egress.ledger.entries import Event
from tproxy.egress.model import Artifact, Caller
from tproxy.egress.policy import places
from tproxy.egress.policy.rules import Upstreams
from tproxy.egress.store.durable import replace

# Bytes of the log that are read at a time: the mirror serves requests in between.
MOST = 1 << 20

_CALLER = ("hypervisor", "network", "network_id", "bridge", "port", "mac", "address")
_TO_MIRROR = ("PARENT", "mirror")  # in "way": squid asked the mirror, which has written its own entry


class Follower:
    """Reads the lines that a log has got since the last time."""

    def __init__(self, log: Path, place: Path) -> None:
        self._log, self._place = log, place
        try:
            inode, offset = map(int, place.read_text().split())
        except (OSError, ValueError):
            inode, offset = 0, 0
        self._inode, self._offset = inode, offset

    def new(self) -> list[str]:
        """Return whole lines that are new, at most MOST bytes of them. Raises OSError."""
        try:
            file = self._log.open("rb")
        except FileNotFoundError:
            return []
        with file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset = stat.st_ino, 0
            file.seek(self._offset)
            data = file.read(MOST)
        whole = data.rpartition(b"\n")[0]
        if not whole:
            if len(data) == MOST:  # no line is that long
                self._offset += len(data)
            return []
        self._offset += len(whole) + 1
        return whole.decode("utf-8", "replace").split("\n")

    def keep(self) -> None:
        """Remember how far the lines went, when they are in the ledger. Raises OSError."""
        replace(self._place, f"{self._inode} {self._offset}\n".encode(), 0o640)


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
    if any(word in entry["way"] for word in _TO_MIRROR):
        return None
    denied = entry["status"] == "403" or entry["cache"].startswith("TCP_DENIED")
    tunnel = entry["rule"] == "tunnel"
    if entry["method"] == "CONNECT" and not (denied or tunnel):
        return None  # opened: the requests in it have lines of their own
    if not denied and not entry["status"].startswith("2"):
        return None
    caller = Caller(**{name: _known(entry.get(name, "")) for name in _CALLER})
    rule = _known(entry["rule"])
    if denied:
        reason = f"denied by {rule}" if rule not in ("", "none") else "no rule allows it"
        return Event.of(caller, _artifact(entry, upstreams), "denied", rule=rule, reason=reason)
    about = "a tunnel: what went through it was not seen" if tunnel else ""
    size = int(entry["bytes"]) if entry["bytes"].isdecimal() else 0
    return Event.of(caller, _artifact(entry, upstreams), "allowed", rule=rule, reason=about, size=size)


def _artifact(entry: dict[str, str], upstreams: Upstreams) -> Artifact:
    try:
        found = next(places.artifacts(places.parse(entry["url"]), upstreams), None)
    except places.NotClear:
        found = None
    return found or Artifact("uri", url=entry["url"])


def _known(text: str) -> str:
    return "" if text == "-" else text
