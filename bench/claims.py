"""Goals of single figures: the ratio of two medians, or a limit of one, each with its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tabulate import tabulate

from bench.axes import Goal
from bench.results import Results


class Figure(NamedTuple):
    """A figure of results: that of one peer on one axis."""

    peer: str
    axis: str


class Claim(NamedTuple):
    """A goal for a figure: for its ratio to another, or for itself. ``goal.to`` is not used."""

    title: str
    figure: Figure
    goal: Goal | None
    to: Figure | None = None
    unit: str = ""

    def value(self, results: Results) -> float | None:
        """The ratio or the figure; None where one has not been measured."""
        ours = results.median(*self.figure)
        if self.to is None or ours is None:
            return ours
        theirs = results.median(*self.to)
        return ours / theirs if theirs else None


def table(results: Results, claims: Sequence[Claim]) -> str:
    """A row for each claim that was measured; "" without one."""
    rows = []
    for claim in claims:
        value = claim.value(results)
        if value is None:
            continue
        ours = results.median(*claim.figure)
        theirs = results.median(*claim.to) if claim.to else None
        rows.append(
            [
                claim.title,
                number(ours) + claim.unit,
                "" if theirs is None else number(theirs) + claim.unit,
                f"{value:.2f}" if claim.to else "",
                _verdict(claim.goal, value),
            ]
        )
    head = ["", "figure", "compared with", "ratio", "goal"]
    return tabulate(rows, head, "pipe", disable_numparse=True) if rows else ""


def _verdict(goal: Goal | None, value: float) -> str:
    return f"{goal.at} {goal.value:g} {'✓' if goal.met(value) else '✗'}" if goal else ""


def number(figure: float | None) -> str:
    """A figure with the digits that a reader can use."""
    if figure is None:
        return "-"
    return f"{figure:,.0f}" if figure == 0 or abs(figure) >= 100 else f"{figure:,.2f}"
