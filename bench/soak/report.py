"""The report of a soak, in Markdown. Performs no effect."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from bench.soak.judgement import Event, Judgement, Sample

SHOWN = 20  # losses without an explanation that are listed one by one


def markdown(
    about: Sequence[str],
    counts: Mapping[str, int],
    events: Sequence[Event],
    judgement: Judgement,
    before: Sample,
    after: Sequence[Sample],
) -> str:
    verdict = "All went well." if judgement.well else "Not all went well."
    parts = [
        "\n".join(f"- {line}" for line in about),
        f"**{verdict}** Losses that no fault explains: {len(judgement.unexplained)}. "
        f"Leaks: {len(judgement.leaks)}.",
        _table(["traffic", "number"], [[what, f"{number:,}"] for what, number in sorted(counts.items())]),
        _table(
            ["what was done", "times", "seconds, median", "at most", "losses explained"],
            [
                [name, str(len(some)), *_seconds(some), str(judgement.explained.get(name, 0))]
                for name, some in _by_name(events).items()
            ],
        ),
        _table(
            ["without traffic", "at the beginning", "before the faults", "at the end"],
            [
                [key, *(_number(sample.figures.get(key, 0)) for sample in (before, *after))]
                for key in sorted({key for sample in (before, *after) for key in sample.figures})
            ],
        ),
    ]
    if judgement.leaks:
        parts.append("\n".join(["Leaks:", "", *(f"- {line}" for line in judgement.leaks)]))
    if judgement.unexplained:
        lines = [
            f"- {loss.kind}, {loss.connection.bridge} {loss.connection.address}:{loss.connection.port}, "
            f"port {loss.service}: {loss.error}, after {loss.ended - loss.began:.3f} s; "
            f"{_last(events, loss.ended)}"
            for loss in judgement.unexplained[:SHOWN]
        ]
        kinds = Counter(f"{loss.kind}: {loss.error}" for loss in judgement.unexplained)
        summary = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        parts.append("\n".join([f"Losses that no fault explains: {summary}.", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _by_name(events: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.name, []).append(event)
    return dict(sorted(found.items()))


def _seconds(events: Sequence[Event]) -> tuple[str, str]:
    lengths = [event.end - event.begin for event in events]
    return f"{statistics.median(lengths):.2f}", f"{max(lengths):.2f}"


def _last(events: Sequence[Event], time: float) -> str:
    """The action that was last before a loss, for the reader to look at."""
    before = [event for event in events if event.begin <= time]
    if not before:
        return "nothing had been done"
    last = max(before, key=lambda event: event.begin)
    return f"{time - last.begin:.3f} s after: {last.name}"


def _number(figure: float) -> str:
    return f"{figure:,.1f}" if figure % 1 else f"{figure:,.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, head, "pipe", disable_numparse=True)
