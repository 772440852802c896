"""Makes the tables of docs/metrics.md of the declarations: ``make options``. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tproxy.metrics import declared
from tproxy.metrics.declared import ALL, LABELS, MEANINGS, MEANINGS_OF_REASONS, MEANINGS_OF_SESSIONS, Metric
from tproxy.model import TCP, UDP

ROOT = Path(__file__).parents[2]
PAGE = "docs/metrics.md"


def page() -> str:
    """Return the page with tables, and the number of a service's series, as they should be."""
    text = (ROOT / PAGE).read_text()
    series = f"A TCP service has {series_of_a_service(TCP)} series, a UDP service {series_of_a_service(UDP)},"
    text = re.sub(r"A TCP service has \d+ series, a UDP service \d+,", series, text)
    text = _with_table(text, ["metric", "kind", "labels", "meaning"], map(_row, ALL))
    buckets = (
        [f"`{each.full_name}`", ", ".join(f"{bound:g}" for bound in each.bounds)]
        for each in ALL
        if each.bounds
    )
    text = _with_table(text, ["histogram", "buckets"], buckets)
    labels = ([f"`{name}`", value, bound] for name, (value, bound) in LABELS.items())
    text = _with_table(text, ["label", "value", "bounded by"], labels)
    outcomes = ([f"`{each}`", MEANINGS[each]] for each in declared.ENDED.values)
    text = _with_table(text, ["`outcome` of a connection", "meaning"], outcomes)
    of_sessions = {**MEANINGS, **MEANINGS_OF_SESSIONS}
    outcomes = ([f"`{each}`", of_sessions[each]] for each in declared.SESSIONS_ENDED.values)
    text = _with_table(text, ["`outcome` of a UDP session", "meaning"], outcomes)
    reasons = (
        [f"`{each}`", MEANINGS_OF_REASONS.get(each) or MEANINGS[each]]
        for each in declared.DIAL_FAILURES.values
    )
    return _with_table(text, ["`reason`", "meaning"], reasons)


def series_of_a_service(protocol: str) -> int:
    """Return how many series a service has, without those of its endpoints."""
    found = 0
    for each in ALL:
        if each.protocol not in ("", protocol) or each is declared.ENDPOINT_UP:
            continue
        if each.labels[:3] == declared.SERVICE:
            found += len(each.values) if each.values else len(each.bounds) + 3 if each.bounds else 1
    return found


def _row(metric: Metric) -> list[str]:
    labels = ", ".join(f"`{each}`" for each in metric.labels)
    return [f"`{metric.full_name}`", metric.kind, labels, metric.help]


def _with_table(text: str, header: list[str], rows: Iterable[list[str]]) -> str:
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *rows))
    first = re.escape(f"| {' | '.join(header)} |")
    return re.sub(rf"^{first}\n(\|.*\n)+", lambda _: lines, text, flags=re.MULTILINE)


def main() -> None:
    (ROOT / PAGE).write_text(page())


if __name__ == "__main__":
    main()
