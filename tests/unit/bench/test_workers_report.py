"""The tables of `make bench-workers`."""

from __future__ import annotations

import pytest

from bench.peers import BEFORE, HAPROXY, TPROXY
from bench.results import Results
from bench.workers_report import CLAIMS, HAPROXY_2, ONE, SCALE, TWO, markdown, scaled


def goals(results: Results) -> list[list[str]]:
    """The cells of the rows with goals."""
    text = markdown(results).partition("### Goals")[2]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_part_that_was_not_measured_has_no_table() -> None:
    results = Results(["2 cores"])
    results.add(TWO, {"kill lost": 0, "kill refused": 0})

    text = markdown(results)

    assert text.startswith("- 2 cores")
    assert "`kill -9`" in text
    assert "Two workers" not in text
    assert [row[-1] for row in goals(results)] == ["≤ 0 ✓", "≤ 0 ✓"]


def test_two_workers_are_compared_with_one_and_with_haproxy_of_one_and_two_threads() -> None:
    results = Results()
    for peer, figure in ((ONE, 10_000), (TWO, 18_000), (HAPROXY, 14_000), (HAPROXY_2, 16_000)):
        results.add(peer, {"two bridges new": figure})

    assert [row[-2:] for row in goals(results)] == [
        ["1.80", "≥ 1.5 ✓"],
        ["1.29", "≥ 1.2 ✓"],
        ["1.12", "≥ 1.15 ✗"],
    ]


def test_rates_may_not_fall_and_latencies_may_not_rise() -> None:
    results = Results()
    results.add(BEFORE, {"1x64 rate": 100, "1x64 p99": 100})
    results.add(ONE, {"1x64 rate": 120, "1x64 p99": 120})
    results.add(TPROXY, {"1x64 rate": 96, "1x64 p99": 80})

    assert [row[-1] for row in goals(results)] == ["≥ 0.95 ✓", "≤ 1.15 ✗", "≥ 0.95 ✓", "≤ 1.15 ✓"]


@pytest.mark.parametrize(
    ("place", "where", "goal"), [("", "another bridge", "≤ 2 ✓"), ("same ", "the same bridge", "≤ 3 ✓")]
)
def test_p99_beside_a_greedy_guest_is_compared_with_its_own_control(
    place: str, where: str, goal: str
) -> None:
    results = Results()
    for peer, beside in ((TWO, 300), (HAPROXY, 900)):
        figures = {"calm p99": 100, f"{place}connects control p99": 200, f"{place}connects p99": beside}
        results.add(peer, figures)

    title = f"two workers: p99 on {where} beside 8 processes that connect, by the control, µs"
    assert goals(results) == [[title, "300", "200", "1.50", goal]]
    rows = [[cell.strip() for cell in line.split("|")] for line in markdown(results).splitlines()]
    assert ["", f"{where}, 8 processes that connect", "1.50", "4.50", ""] in rows


def test_held_workers_are_compared_with_one_of_them() -> None:
    results = Results()
    for workers in SCALE:
        results.add(scaled(workers), {"requests": 1000 * workers})

    assert [row[-2:] for row in goals(results)] == [
        ["2.00", "≥ 1.9 ✓"],
        ["4.00", "≥ 3.7 ✓"],
        ["8.00", "≥ 7 ✓"],
    ]


def test_each_goal_has_a_title_of_its_own() -> None:
    titles = [claim.title for claim in CLAIMS]
    assert len(titles) == len(set(titles))
