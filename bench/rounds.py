"""Measures the peers in turns: all run all the time, so that each has good and bad moments of the machine."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

from bench.axes import EACH_ROUND, ONCE
from bench.peers import NGINX, SOCAT, Peer
from bench.quiet import Quiet
from bench.results import Results
from tproxy.errors import TproxyError
from tproxy.lab.hypervisor import Hypervisor

AnyPeer = TypeVar("AnyPeer", bound=Peer)
Build = Callable[[Hypervisor], AnyPeer]
Measuring = Callable[[AnyPeer, float], dict[str, float]]  # a peer and seconds give figures by axis

# The errors of a peer that fails; everything else is a bug of the benchmark.
FAILURES = (TproxyError, subprocess.TimeoutExpired, OSError)

# Peers with fewer rounds, since their figures need less precision.
FEWER = {NGINX: 3, SOCAT: 2}

# After so many failures at one measurement a peer is left out of it: each failure costs a time-out.
TRIES = 2

# Seconds that may be spent on repeating disturbed measurements.
PATIENCE = 1500.0


@contextmanager
def built(builders: Mapping[str, Build[AnyPeer]], results: Results) -> Iterator[list[AnyPeer]]:
    """Build the peers; yields those that could be built."""
    with ExitStack() as hosts:
        peers = []
        for name, build in builders.items():
            try:
                peers.append(build(hosts.enter_context(Hypervisor())))
            except FAILURES as problem:
                results.failed(name, "start", problem)
        yield peers


class Turns:
    """Measurements of peers in turns, each of so many seconds.

    ``quiet`` repeats those that were disturbed. A peer that fails too often is left out.
    """

    def __init__(self, seconds: float, results: Results, quiet: Quiet) -> None:
        self._seconds = seconds
        self._results = results
        self._quiet = quiet
        self._at_any_time = Quiet(0)
        self._failures: Counter[tuple[str, str]] = Counter()

    def once(self, what: str, measure: Measuring[AnyPeer], peers: Sequence[AnyPeer]) -> None:
        """Measure each peer, however disturbed the machine is."""
        for peer in peers:
            self._take(what, measure, peer, self._at_any_time)

    def round(
        self,
        number: int,
        measures: Mapping[str, Measuring[AnyPeer]],
        peers: Sequence[AnyPeer],
    ) -> None:
        """Measure each peer; in every other round the last one comes first."""
        for what, measure in measures.items():
            for peer in peers[:: -1 if number % 2 else 1]:
                self._take(what, measure, peer, self._quiet)

    def _take(self, what: str, measure: Measuring[AnyPeer], peer: AnyPeer, when: Quiet) -> None:
        if self._failures[peer.name, what] >= TRIES:
            return
        try:
            best, *others = when.measure(partial(measure, peer, self._seconds))
        except FAILURES as problem:
            self._failures[peer.name, what] += 1
            self._results.failed(peer.name, what, problem)
            return
        self._results.add(peer.name, {**best.figures, "stolen": best.stolen * 100})
        for other in others:  # an error counts, however disturbed the machine was
            self._results.add(peer.name, {"errors": other.figures.get("errors", 0)})


def compare(builders: Mapping[str, Build[Peer]], rounds: int, seconds: float, results: Results) -> None:
    """Measure the peers on all axes."""
    turns = Turns(seconds, results, Quiet(PATIENCE))
    with built(builders, results) as peers:
        for what, measure in ONCE.items():
            turns.once(what, measure, peers)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            turns.round(number, EACH_ROUND, [peer for peer in peers if number < FEWER.get(peer.name, rounds)])
