"""Measures the peers in turns: all run all the time, so that each has good and bad moments of the machine."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.axes import EACH_ROUND, ONCE, Measure
from bench.peers import BUILDERS, NGINX, SOCAT, Peer
from bench.quiet import Quiet
from bench.results import Results
from tproxy.errors import TproxyError
from tproxy.lab.hypervisor import Hypervisor

# The errors of a peer that fails; everything else is a bug of the benchmark.
FAILURES = (TproxyError, subprocess.TimeoutExpired, OSError)

# Peers with fewer rounds, since their figures need less precision.
FEWER = {NGINX: 3, SOCAT: 2}

# After so many failures at one measurement a peer is left out of it: each failure costs a time-out.
TRIES = 2

# Seconds that may be spent on repeating disturbed measurements.
PATIENCE = 1500.0


@contextmanager
def built(names: Sequence[str], results: Results) -> Iterator[list[Peer]]:
    """Build the peers; yields those that could be built."""
    with ExitStack() as hosts:
        peers = []
        for name in names:
            try:
                peers.append(BUILDERS[name](hosts.enter_context(Hypervisor())))
            except FAILURES as problem:
                results.failed(name, "start", problem)
        yield peers


def compare(names: Sequence[str], rounds: int, seconds: float, results: Results) -> None:
    """Measure the named peers on all axes."""
    failures: Counter[tuple[str, str]] = Counter()
    quiet, at_any_time = Quiet(PATIENCE), Quiet(0)

    def take(what: str, measure: Measure, order: Sequence[Peer], when: Quiet) -> None:
        for peer in order:
            if failures[peer.name, what] >= TRIES:
                continue
            try:
                best, *others = when.measure(partial(measure, peer, seconds))
            except FAILURES as problem:
                failures[peer.name, what] += 1
                results.failed(peer.name, what, problem)
            else:
                results.add(peer.name, {**best.figures, "stolen": best.stolen * 100})
                for other in others:  # an error counts, however disturbed the machine was
                    results.add(peer.name, {"errors": other.figures.get("errors", 0)})

    with built(names, results) as peers:
        for what, measure in ONCE.items():
            take(what, measure, peers, at_any_time)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            taking_part = [peer for peer in peers if number < FEWER.get(peer.name, rounds)]
            for what, measure in EACH_ROUND.items():
                take(what, measure, taking_part[:: -1 if number % 2 else 1], quiet)
