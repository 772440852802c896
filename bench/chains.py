"""What the base chain costs that each bridge has by contract (SPEC section 2), and what is in it.

``python -m bench.chains [--rounds N] [--seconds S] [--bridges N]`` prints Markdown: tproxy on one bridge,
while the host has the chains of so many others, in turns with none, empty ones, and several rules.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tabulate import tabulate

from bench import report
from bench.growth import speed
from bench.lab import BRIDGE
from bench.peers import build_tproxy
from bench.results import Point
from tproxy.guards import Guard
from tproxy.hypervisor import Hypervisor
from tproxy.model import TABLE

NONE = "no other chains"
_RULE = Guard(BRIDGE, frozenset({BRIDGE}), {}).arp_rule

# The rule of each chain; None where there are no chains.
CONTENTS: Mapping[str, str | None] = {
    NONE: None,
    "empty": "",
    "the guard's rule": _RULE,
    "asking for the protocol first": _RULE[_RULE.index("arp ") :],
}

COLUMNS = {"p50": "p50, µs", "rate": "requests/s, 64 conn.", "new rate": "new/s"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.chains")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--bridges", type=int, default=200)
    options = parser.parse_args()
    taken: dict[str, list[Point]] = {name: [] for name in CONTENTS}
    with Hypervisor() as host:
        peer = build_tproxy(host)
        for number in range(options.rounds):
            for name in list(CONTENTS)[:: -1 if number % 2 else 1]:
                with chains(host, CONTENTS[name], options.bridges):
                    taken[name].append(speed(peer, options.seconds))
    print("\n".join(f"- {line}" for line in report.circumstances(options.rounds, options.seconds)))
    print()
    print(table(taken))


@contextmanager
def chains(host: Hypervisor, rule: str | None, count: int) -> Iterator[None]:
    names = [f"bridge {TABLE} ch_other{number}" for number in range(count if rule is not None else 0)]
    base = "type filter hook forward priority -200; policy accept;"
    made = [f"add chain {name} {{ {base} }}" for name in names]
    load_rules(host, [*made, *(f"add rule {name} {rule}" for name in names if rule)])
    yield
    load_rules(host, [f"{verb} chain {name}" for name in names for verb in ("flush", "delete")])


def load_rules(host: Hypervisor, commands: list[str]) -> None:
    host.run("nft", "-f", host.write("/run/chains.nft", "".join(f"{line}\n" for line in commands)))


def table(taken: Mapping[str, list[Point]]) -> str:
    rows = []
    for name, points in taken.items():
        texts = []
        for key in COLUMNS:
            measured = [point[key] for point in points]
            whole = statistics.median(point[key] for point in taken[NONE])
            texts.append(f"{report.spread(measured)}: {statistics.median(measured) / whole:.2f}")
        rows.append([name, *texts])
    return tabulate(rows, ["each chain", *COLUMNS.values()], "pipe")


if __name__ == "__main__":
    main()
