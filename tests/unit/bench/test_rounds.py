"""Measuring peers in turns."""

from __future__ import annotations

from functools import partial
from typing import cast

from bench.peers import Peer
from bench.quiet import Quiet
from bench.results import Results
from bench.rounds import TRIES, Turns
from tproxy.lab.hypervisor import Guest, Hypervisor


def peer(name: str) -> Peer:
    """A peer that is not built: nothing here looks at its host."""
    return Peer(name, cast(Hypervisor, None), cast(Guest, None), list, "")


def turns(results: Results) -> Turns:
    return Turns(1.0, results, Quiet(0))


def test_in_every_other_round_the_last_peer_comes_first() -> None:
    order: list[str] = []

    def measure(each: Peer, _: float) -> dict[str, float]:
        order.append(each.name)
        return {}

    some = turns(Results())
    for number in range(3):
        some.round(number, {"rate": measure}, [peer("one"), peer("two")])

    assert order == ["one", "two", "two", "one", "one", "two"]


def test_a_peer_that_fails_at_one_measurement_is_left_out_of_that_one_only() -> None:
    results = Results()
    calls: list[tuple[str, str]] = []

    def measure(what: str, each: Peer, _: float) -> dict[str, float]:
        calls.append((what, each.name))
        if (what, each.name) == ("bulk", "one"):
            raise OSError("no")
        return {what: 1}

    some = turns(results)
    for number in range(TRIES + 2):
        measures = {what: partial(measure, what) for what in ("bulk", "rate")}
        some.round(number, measures, [peer("one"), peer("two")])

    assert calls.count(("bulk", "one")) == TRIES
    assert len(results.problems) == TRIES
    assert len(results.figures["one"]["rate"]) == TRIES + 2
    assert len(results.figures["two"]["bulk"]) == TRIES + 2
