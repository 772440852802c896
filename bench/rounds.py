"""Peers in turns: all are there all the time, so that each has the machine's good and bad moments."""

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

# What a peer that fails can raise; everything else is a mistake of ours.
FAILURES = (TproxyError, subprocess.TimeoutExpired, OSError)

# Rounds for peers that nobody needs to know to the percent.
FEWER = {NGINX: 3, SOCAT: 2}

# A peer that failed so often at something is not asked again: each time costs a time-out.
TRIES = 2

# Seconds that may be spent on measuring again what was disturbed.
PATIENCE = 1500.0


@contextmanager
def built(names: Sequence[str], results: Results) -> Iterator[list[Peer]]:
    """The peers that could be built."""
    with ExitStack() as hosts:
        peers = []
        for name in names:
            try:
                peers.append(BUILDERS[name](hosts.enter_context(Hypervisor())))
            except FAILURES as problem:
                results.failed(name, "start", problem)
        yield peers


def compare(names: Sequence[str], rounds: int, seconds: float, results: Results) -> None:
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
                for other in others:  # an error is one, whatever the machine does
                    results.add(peer.name, {"errors": other.figures.get("errors", 0)})

    with built(names, results) as peers:
        for what, measure in ONCE.items():
            take(what, measure, peers, at_any_time)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            taking_part = [peer for peer in peers if number < FEWER.get(peer.name, rounds)]
            for what, measure in EACH_ROUND.items():
                take(what, measure, taking_part[:: -1 if number % 2 else 1], quiet)
