"""Goals of single figures: ratios of medians, limits, and figures that are missing."""

from __future__ import annotations

import pytest

from bench import claims
from bench.axes import Goal
from bench.claims import Claim, Figure
from bench.results import Results

OURS, THEIRS = Figure("tproxy", "new"), Figure("HAProxy pair", "new")


def results(ours: list[float], theirs: list[float]) -> Results:
    found = Results()
    for (peer, axis), figures in ((OURS, ours), (THEIRS, theirs)):
        for figure in figures:
            found.add(peer, {axis: figure})
    return found


@pytest.mark.parametrize(
    ("goal", "to", "row"),
    [
        (Goal("≥", 1.5), THEIRS, ["new/s", "3,000", "2,000", "1.50", "≥ 1.5 ✓"]),
        (Goal("≥", 1.6), THEIRS, ["new/s", "3,000", "2,000", "1.50", "≥ 1.6 ✗"]),
        (Goal("≤", 2999), None, ["new/s", "3,000", "", "", "≤ 2999 ✗"]),
    ],
)
def test_a_row_has_figure_ratio_and_verdict(goal: Goal, to: Figure | None, row: list[str]) -> None:
    found = results([1, 3000, 9000], [2000])
    last = claims.table(found, [Claim("new/s", OURS, goal, to)]).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == row


def test_a_claim_without_figures_has_no_row() -> None:
    claim = Claim("new/s", OURS, Goal("≥", 1.5), THEIRS)
    assert claims.table(results([100], []), [claim]) == ""
    assert claims.table(results([], [100]), [claim]) == ""


def test_a_limit_of_zero_is_met_by_zero_only() -> None:
    claim = Claim("lost", OURS, Goal("≤", 0))
    assert "≤ 0 ✓" in claims.table(results([0], []), [claim])
    assert "≤ 0 ✗" in claims.table(results([1], []), [claim])


@pytest.mark.parametrize(
    ("figure", "text"), [(0, "0"), (1234.5, "1,234"), (6.789, "6.79"), (0.5, "0.50"), (None, "-")]
)
def test_figures_have_as_many_digits_as_they_need(figure: float | None, text: str) -> None:
    assert claims.number(figure) == text
