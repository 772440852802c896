"""Measures workers: ``make bench-workers``, or ``python -m bench.workers [--quick] [--only PART]...``.

The parts, in each of which all peers are measured in turns:

* before: one worker and the default on the axes of ``make bench``, beside an older checkout (``--base``)
* two: two workers, on two bridges and on one; and their memory
* fairness: p99 beside a greedy guest (fairness.py)
* scaling: one to eight workers that are held to a twentieth of a core each (quota.py)
* kill: the end of the daemon under load (killing.py)

A HAProxy pair has a process with one thread in the namespace of each bridge, and one process with one or two
threads in the root namespace. A full run writes bench/workers.json; a quick or partial run writes to
build/bench instead. Both print the tables (workers_report.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import axes, costs, fairness, killing, load, peers, report, rounds, workers_report
from bench.__main__ import ROOT, TRIAL, check_surroundings
from bench.bridges import Client, Site, build_haproxy, build_tproxy, together
from bench.checkout import HERE, Checkout, checkout
from bench.peers import BEFORE, HAPROXY, TPROXY, Peer
from bench.quiet import Quiet
from bench.quota import held
from bench.results import Results
from bench.rounds import FAILURES, Build, Measuring, Turns
from bench.workers_report import HAPROXY_2, ONE, SCALE, SHARE, TWO, scaled
from tproxy.errors import ProcessError

RESULTS = ROOT / "bench/workers.json"

# Guests on the two bridges of the hosts where two workers are measured.
GUESTS = (8, 4)

# Connections of all guests together, and those of each bridge where bridges and workers grow.
CONNECTIONS, CONNECTIONS_PER_BRIDGE = 64, 32

# Seconds that each part may spend on repeating disturbed measurements.
PATIENCE = 600.0

# Which guest has load, by bridge and number.
LAYOUTS: Mapping[str, Callable[[Site], list[Client]]] = {
    "two bridges": lambda site: [Client(site.guests[bridge][0], bridge) for bridge in (0, 1)],
    "two bridges, 4 guests each": lambda site: [
        Client(site.guests[number % 2][number // 2], number % 2) for number in range(8)
    ],
    "one bridge, 8 guests": lambda site: [Client(site.guests[0][number], number // 4) for number in range(8)],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.workers", description="what workers give")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="measure this part only; can be repeated"
    )
    parser.add_argument("--base", metavar="PATH", help="compare with tproxy of another checkout as well")
    parser.add_argument("--report", metavar="JSON", type=Path, help="only print the tables of these results")
    options = parser.parse_args()
    if options.report:
        print(workers_report.markdown(Results.load(options.report)))
        return
    check_surroundings()
    if options.quick:
        options.rounds, options.seconds = 2, 1.0
    base = checkout(options.base) if options.base else None
    results = Results(report.circumstances(options.rounds, options.seconds))
    if base:
        results.about.append(f"{BEFORE}: {base.described()}")
    path = TRIAL / RESULTS.name if options.quick or options.only else RESULTS
    for part in options.only or PARTS:
        print(part, file=sys.stderr)
        PARTS[part](options.rounds, options.seconds, base, results)
        results.save(path)  # after each part, since the next one may take half an hour
    print(workers_report.markdown(results))
    print(f"written: {path}", file=sys.stderr)


def as_before(count: int, seconds: float, base: Checkout | None, results: Results) -> None:
    """Measure one worker and the default on the axes of ``make bench`` with bodies of 1 B."""
    builders: dict[str, Build[Peer]] = {
        ONE: partial(peers.build_tproxy, name=ONE, workers=1),
        TPROXY: peers.build_tproxy,
        HAPROXY: peers.build_haproxy,
    }
    if base:
        builders[BEFORE] = partial(peers.build_tproxy, name=BEFORE, code=base)
    measures = {what: measure for what, measure in axes.EACH_ROUND.items() if "KiB" not in what}
    turns = Turns(seconds, results, Quiet(PATIENCE))
    with rounds.built(builders, results) as there:
        for what in ("memory at rest", "memory of idle connections"):
            turns.once(what, axes.ONCE[what], there)
        take_rounds(turns, count, measures, there)


def two_workers(count: int, seconds: float, base: Checkout | None, results: Results) -> None:
    """Measure two workers beside one, HAProxy pairs and the older checkout, on a host with two bridges."""
    with rounds.built(sites(base), results) as there:
        check_two(there, results)
        turns = Turns(seconds, results, Quiet(PATIENCE))
        turns.once("memory of workers at rest", worker_memory("rest"), there)
        take_rounds(turns, count, LOADS, there)
        turns.once("memory of workers after load", worker_memory("used"), there)


def fair(count: int, seconds: float, base: Checkout | None, results: Results) -> None:
    """Measure p99 on one bridge beside a greedy guest on the other."""
    with rounds.built(sites(base), results) as there:
        check_two(there, results)
        take_rounds(Turns(seconds, results, Quiet(PATIENCE)), count, fairness.MEASURES, there)


def check_two(there: Sequence[Site], results: Results) -> None:
    """Note it as a problem when the two bridges share a worker, since the figures are then of one worker."""
    for site in there:
        if site.name == TWO:
            try:
                check_spread(site)
            except FAILURES as problem:
                results.failed(site.name, "two bridges", problem)


def sites(base: Checkout | None) -> dict[str, Build[Site]]:
    """The peers on hosts with two bridges."""
    found: dict[str, Build[Site]] = {
        ONE: partial(build_tproxy, guests=GUESTS, name=ONE, workers=1),
        TWO: partial(build_tproxy, guests=GUESTS, name=TWO, workers=2),
        HAPROXY: partial(build_haproxy, guests=GUESTS, name=HAPROXY, threads=1),
        HAPROXY_2: partial(build_haproxy, guests=GUESTS, name=HAPROXY_2, threads=2),
    }
    if base:
        found[BEFORE] = partial(build_tproxy, guests=GUESTS, name=BEFORE, code=base)
    return found


def take_rounds(
    turns: Turns,
    count: int,
    measures: Mapping[str, Measuring[rounds.AnyPeer]],
    there: list[rounds.AnyPeer],
) -> None:
    for number in range(count):
        print(f"round {number + 1} of {count}", file=sys.stderr)
        turns.round(number, measures, there)


def requests(layout: str, close: bool, site: Site, seconds: float) -> dict[str, float]:
    """Requests per second of all guests of a layout together, and the worst p99; ``close``: connections."""
    clients = LAYOUTS[layout](site)
    done = ask(clients, seconds, CONNECTIONS // len(clients), close)
    kind = "new" if close else "requests"
    return {
        f"{layout} {kind}": sum(each.rate for each in done),
        f"{layout} {kind} p99": max(each.p99 for each in done),
        "errors": sum(each.errors for each in done),
    }


def ask(clients: list[Client], seconds: float, connections: int, close: bool) -> list[load.Requests]:
    return together(
        clients,
        lambda client: load.requests(client.guest, seconds, connections, port=client.http, close=close),
    )


LOADS: dict[str, Measuring[Site]] = {
    f"{layout}, {'new connections' if close else 'requests'}": partial(requests, layout, close)
    for layout in LAYOUTS
    for close in (True, False)
}


def worker_memory(when: str) -> Measuring[Site]:
    """Measure the private memory, in MB, of the largest worker and of all processes."""

    def measure(site: Site, _: float) -> dict[str, float]:
        if when == "rest":
            ask(LAYOUTS["two bridges"](site), 1.0, 1, close=False)
        found = {f"private all {when}": site.memory().private / 1e6}
        if workers := site.workers():
            found[f"private worker {when}"] = (
                max(costs.memory(site.host, [pid]).private for pid in workers) / 1e6
            )
        return found

    return measure


def scaling(count: int, seconds: float, _: Checkout | None, results: Results) -> None:
    """Measure workers on as many bridges, each worker held to a part of a core."""
    builders: dict[str, Build[Site]] = {
        scaled(number): partial(build_tproxy, guests=(1,) * number, name=scaled(number), workers=number)
        for number in SCALE
    }
    with rounds.built(builders, results) as there, ExitStack() as quotas:
        for site in there:
            try:
                check_spread(site)
                quotas.enter_context(held(site.host, site.workers(), SHARE))
            except FAILURES as problem:
                results.failed(site.name, "scaling", problem)
        take_rounds(Turns(seconds, results, Quiet(PATIENCE)), count, SCALED, there)


def check_spread(site: Site) -> None:
    """Raise ProcessError unless each bridge's guest has a worker of its own."""
    workers = site.workers()
    if len(workers) != len(site.guests):
        raise ProcessError(f"{len(workers)} workers for {len(site.guests)} bridges")
    served = []
    for client in first_guests(site):
        before = {pid: costs.cpu(site.host, [pid]) for pid in workers}
        ask([client], 1.0, CONNECTIONS_PER_BRIDGE, close=False)
        served.append(max(workers, key=lambda pid: costs.cpu(site.host, [pid]) - before[pid]))
    if len(set(served)) < len(served):
        raise ProcessError(f"{len(served)} bridges share {len(set(served))} workers")


def first_guests(site: Site) -> list[Client]:
    return [Client(guests[0], number) for number, guests in enumerate(site.guests)]


def scaled_requests(close: bool, site: Site, seconds: float) -> dict[str, float]:
    done = ask(first_guests(site), seconds, CONNECTIONS_PER_BRIDGE, close)
    errors = sum(each.errors for each in done)
    return {"new" if close else "requests": sum(each.rate for each in done), "errors": errors}


def scaled_bulk(site: Site, seconds: float) -> dict[str, float]:
    done = together(first_guests(site), lambda client: load.bulk(client.guest, seconds, port=client.bulk))
    return {"bulk": sum(each.gigabits for each in done)}


SCALED: dict[str, Measuring[Site]] = {
    "requests": partial(scaled_requests, False),
    "new connections": partial(scaled_requests, True),
    "bulk": scaled_bulk,
}


def killed(_: int, seconds: float, base: Checkout | None, results: Results) -> None:
    """Kill the daemon under load, with two workers and before."""
    there = {name: build for name, build in sites(base).items() if name in (TWO, BEFORE)}
    codes = {TWO: HERE, BEFORE: base or HERE}
    with rounds.built(there, results) as found:
        turns = Turns(seconds, results, Quiet(0))
        for site in found:
            turns.once("kill -9", partial(killing.measure, codes[site.name]), [site])


PARTS: dict[str, Callable[[int, float, Checkout | None, Results], None]] = {
    "before": as_before,
    "two": two_workers,
    "fairness": fair,
    "scaling": scaling,
    "kill": killed,
}


if __name__ == "__main__":
    main()
