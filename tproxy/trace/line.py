"""The line of a trace: what happened, how long after the beginning of its attempt, in plain words. Pure."""

from __future__ import annotations

import json
from typing import NamedTuple

from tproxy.errors import to_ascii

# Of the JSON objects (docs/contract.md, Output of `trace`).
VERSION = 1

GOOD, FAILED, OPEN = "good", "failed", "open"


class Line(NamedTuple):
    """``attempt`` is 0 for a line about the trace itself. ``seconds`` are since the attempt began.

    ``outcome`` is set in the last line of an attempt: GOOD, FAILED, or OPEN where the trace ended before it.
    ``guest`` and ``service`` are an address, and a port where there is one.
    """

    attempt: int
    seconds: float
    event: str
    text: str
    kind: str = ""
    bridge: str = ""
    guest: str = ""
    service: str = ""
    outcome: str = ""

    def __str__(self) -> str:
        if not self.attempt:
            return to_ascii(self.text)
        begin = f"#{self.attempt:<4} {self.seconds * 1000:10.1f} ms  "
        return begin + to_ascii(f"{self.outcome}: {self.text}" if self.outcome else self.text)

    def as_json(self) -> str:
        found = {"version": VERSION, **self._asdict(), "milliseconds": round(self.seconds * 1000, 3)}
        del found["seconds"]
        return json.dumps(found)


def named(address: str, port: int = 0) -> str:
    """An address with its port, where it has one."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
