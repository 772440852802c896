"""The tables that `make bench` writes: ratios, goals, failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import report
from bench.axes import Axis, Goal
from bench.peers import HAPROXY, NO_RELAY, TPROXY
from bench.results import Results

NEW = Axis("new rate", "connections/s", goal=Goal("≥", 1.4))


def results(ours: list[float], theirs: list[float]) -> Results:
    found = Results(["2 x cores"])
    for peer, figures in ((TPROXY, ours), (HAPROXY, theirs)):
        for figure in figures:
            found.add(peer, {NEW.key: figure})
    return found


def test_a_ratio_is_of_medians_so_one_outlier_does_not_change_it() -> None:
    assert report.ratio(results([1, 300, 310], [100, 99, 10_000]), NEW, HAPROXY) == "3.00"


@pytest.mark.parametrize(
    ("ours", "goal", "met"),
    [
        (140, Goal("≥", 1.4), "✓"),
        (139, Goal("≥", 1.4), "✗"),
        (50, Goal("≤", 0.5), "✓"),
        (51, Goal("≤", 0.5), "✗"),
    ],
)
def test_a_goal_is_marked_met_or_missed(ours: float, goal: Goal, met: str) -> None:
    assert report.verdict(results([ours], [100]), replace(NEW, goal=goal)).endswith(met)


def test_a_goal_without_figures_of_the_other_peer_has_no_mark() -> None:
    assert report.verdict(results([140], []), NEW) == "≥ 1.4"
    assert report.ratio(results([140], []), NEW, HAPROXY) == ""


def test_a_table_has_a_row_for_each_axis_with_figures_and_a_column_for_each_peer() -> None:
    other = Axis("up1", "up")

    lines = report.comparison(
        results([140, 150, 160], [100]), [NEW, other], [TPROXY, HAPROXY], HAPROXY
    ).splitlines()

    assert len(lines) == 3  # heading, rule, one axis
    assert [cell.strip() for cell in lines[-1].split("|")] == [
        *("", "connections/s", "150 (140 to 160)", "100", "1.50", "≥ 1.4 ✓", "")
    ]


def test_no_relay_gets_a_ratio_column_of_its_own() -> None:
    found = results([140], [100])
    found.add(NO_RELAY, {NEW.key: 280})

    assert "0.50" in report.comparison(found, [NEW], [TPROXY, HAPROXY, NO_RELAY], HAPROXY)


def test_a_failure_is_listed_in_the_page() -> None:
    found = results([140], [100])
    found.failed(HAPROXY, "new connections", OSError("it died"))

    assert "HAProxy pair: new connections: it died" in report.markdown(found, "img")


def test_results_survive_saving_and_loading(tmp_path: Path) -> None:
    found = results([140], [100])
    found.add_point("bridges", TPROXY, {"n": 1, "p50": 10})
    found.save(tmp_path / "new" / "results.json")

    assert Results.load(tmp_path / "new" / "results.json") == found


def test_only_the_text_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")

    report.put(page, "new")

    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.END}\n{report.BEGIN}\n")

    with pytest.raises(ValueError, match="needs a line"):
        report.put(page, "new")

    assert page.read_text() == f"before\n{report.END}\n{report.BEGIN}\n"
