"""The cost of each further bridge for the guests of the others, and which part of it its base chain has.

``python -m bench.chains [--rounds N] [--seconds S] [--bridges N]`` prints Markdown. It measures, in turns,
tproxy on the only bridge of a host, and on one of many bridges of another host. There the chain that every
other bridge must have (docs/contract.md, Names on the host) is deleted, empty, or holds a rule.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from bench import report
from bench.growth import PATIENCE, speed
from bench.lab import BRIDGE
from bench.peers import build_tproxy
from bench.quiet import Quiet
from bench.results import Point
from tproxy.bridge.guards import Guard
from tproxy.lab.hypervisor import Hypervisor
from tproxy.names import TABLE, BridgeNames

ALONE = "no other bridge"
_RULE = Guard(BRIDGE, frozenset({BRIDGE}), {}).arp_rules[0]

# The rule in the chain of each other bridge: "" for none, None where the chain is deleted.
CONTENTS: Mapping[str, str | None] = {
    "other bridges, their chains deleted": None,
    "... empty": "",
    "... with the guard's rule": _RULE,
    "... with a rule that compares the protocol first": _RULE[_RULE.index("arp ") :],
}

COLUMNS = {"p50": "p50, µs", "rate": "requests/s, 64 conn.", "new rate": "new/s"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.chains")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each measurement")
    parser.add_argument("--bridges", type=int, default=200, help="number of bridges on the host with many")
    options = parser.parse_args()
    others = [f"br{number}" for number in range(1, options.bridges)]
    turns = (ALONE, *CONTENTS)
    quiet = Quiet(PATIENCE)
    taken: dict[str, list[Point]] = {name: [] for name in turns}
    with Hypervisor() as empty, Hypervisor() as crowded:
        alone, one_of_many = build_tproxy(empty), build_tproxy(crowded, others)
        for number in range(options.rounds):
            for name in turns[:: -1 if number % 2 else 1]:
                if name == ALONE:
                    taken[name].append(speed(alone, options.seconds, quiet))
                    continue
                load_rules(crowded, chains(others, CONTENTS[name]))
                taken[name].append(speed(one_of_many, options.seconds, quiet))
    print("\n".join(f"- {line}" for line in report.circumstances(options.rounds, options.seconds)))
    print(f"- {options.bridges} bridges")
    print()
    print(table(taken))


def chains(bridges: Sequence[str], rule: str | None) -> list[str]:
    """nftables commands after which the chains hold the rule, are empty (""), or are deleted (None)."""
    names = [f"bridge {TABLE} {BridgeNames(bridge).arp_guard}" for bridge in bridges]
    # Added before it is flushed, since the turn before may have deleted it.
    commands = [
        f"add chain {name} {{ type filter hook forward priority -200; policy accept; }}" for name in names
    ]
    commands += [f"flush chain {name}" for name in names]
    if rule is None:
        commands += [f"delete chain {name}" for name in names]
    elif rule:
        commands += [f"add rule {name} {rule}" for name in names]
    return commands


def load_rules(host: Hypervisor, commands: Sequence[str]) -> None:
    host.run("nft", "-f", host.write("/run/chains.nft", "".join(f"{line}\n" for line in commands)))


def table(taken: Mapping[str, Sequence[Point]]) -> str:
    rows = []
    for name, points in taken.items():
        texts = []
        for key in COLUMNS:
            measured = [point[key] for point in points]
            whole = statistics.median(point[key] for point in taken[ALONE])
            texts.append(f"{report.spread(measured)}: {statistics.median(measured) / whole:.2f}")
        rows.append([name, *texts])
    return tabulate(rows, ["", *COLUMNS.values()], "pipe")


if __name__ == "__main__":
    main()
