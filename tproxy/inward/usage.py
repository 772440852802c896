"""How much routes were used, by owner and kind: counted by HAProxy, and kept in a file across restarts.

HAProxy counts for each route and kind in a table (``compile``), which begins anew with each of its processes.
The file has the sums of all of them: whenever it is brought up to date, it grows by what HAProxy counted
since. That is before a reload and an end, and each time the timer calls `tproxy gateway up`. What a process
counted after that and before a crash is lost, and so are bytes of connections that outlive a reload.

The file also remembers whose a route was, since HAProxy still counts for one that the operator has removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tproxy.config.routes import RouteEntry
from tproxy.inward import files
from tproxy.inward.runtime import Runtime

FILE = "usage.json"


class Count(NamedTuple):
    """Requests (HTTP, HTTPS) or connections, and bytes from and to clients."""

    times: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def plus(self, other: Count) -> Count:
        return Count(*(one + two for one, two in zip(self, other, strict=True)))

    def since(self, before: Count) -> Count:
        """What was counted after ``before``; all of it where the table has begun anew."""
        if any(now < then for now, then in zip(self, before, strict=True)):
            return self
        return Count(*(now - then for now, then in zip(self, before, strict=True)))


Counts = Mapping[str, Count]  # by kind/id


Place = tuple[str, str, str]  # owner, kind, route


class Ledger(NamedTuple):
    """The sums, and how far they go: what the table of which process of HAProxy said last."""

    sums: dict[Place, Count]
    owners: dict[str, str]  # by id
    process: str
    read: dict[str, Count]

    def grown(self, process: str, table: Counts) -> Ledger:
        """Return the ledger after a look at the table of a process."""
        before = self.read if process == self.process else {}
        sums = dict(self.sums)
        for key, count in table.items():
            kind, _, id_ = key.partition("/")
            place = self.owners.get(id_, ""), kind, id_
            if any(more := count.since(before.get(key, Count()))):
                sums[place] = sums.get(place, Count()).plus(more)
        return Ledger(sums, self.owners, process, dict(table))

    def owned(self, entries: Iterable[RouteEntry]) -> Ledger:
        """Return the ledger with the owners of these routes, and of those that HAProxy has counted for."""
        now = {id_: each.owner for each in entries for id_, _ in each.parts}
        counted = {key.partition("/")[2] for key in self.read}
        return self._replace(owners={id_: self.owners[id_] for id_ in counted & self.owners.keys()} | now)


def read(state: str) -> Ledger:
    """Return the ledger in a directory; an empty one where there is none."""
    try:
        said = json.loads((Path(state) / FILE).read_text())
        sums = {(owner, kind, id_): Count(*count) for owner, kind, id_, *count in said["sums"]}
        last = {key: Count(*count) for key, count in said["read"].items()}
        return Ledger(sums, said["owners"], said["process"], last)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Ledger({}, {}, "", {})


def keep(state: str, admin: Runtime, entries: Iterable[RouteEntry] | None = None) -> Ledger:
    """Bring the file up to date, with the owners of these routes from now on; return the ledger."""
    before = ledger = read(state)
    if process := admin.worker:
        ledger = ledger.grown(process, {key: Count(*each) for key, each in admin.usage().items()})
    if entries is not None:
        ledger = ledger.owned(entries)
    if ledger != before:
        folder = Path(state)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        said = ledger._asdict() | {"sums": [[*place, *count] for place, count in ledger.sums.items()]}
        files.write(folder, {FILE: json.dumps(said)})
    return ledger


def by_owner(ledger: Ledger) -> dict[tuple[str, str], Count]:
    """Return the sums by owner and kind."""
    found: dict[tuple[str, str], Count] = {}
    for (owner, kind, _), count in sorted(ledger.sums.items()):
        found[owner, kind] = found.get((owner, kind), Count()).plus(count)
    return found


def as_metrics(ledger: Ledger) -> str:
    """Return the sums in Prometheus' text format, for its node exporter's directory of text files."""
    names = ("uses", "bytes_from_clients", "bytes_to_clients")
    lines = []
    for number, name in enumerate(names):
        metric = f"tproxy_gateway_{name}_total"
        lines.append(f"# TYPE {metric} counter")
        for (owner, kind, route), count in sorted(ledger.sums.items()):
            labels = f'owner="{_escaped(owner)}",kind="{kind}",route="{route}"'
            lines.append(f"{metric}{{{labels}}} {count[number]}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
