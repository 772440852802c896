"""Tables for people, on a terminal and in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tproxy.cli import connections, tables
from tproxy.cli.tables import Table

TABLE = Table(
    "services",
    ("name", "state", "open"),
    [["web", "listening", "17"], ["[red]x", "failed", "2"]],
    frozenset({"open"}),
)


def test_a_file_gets_columns_with_numbers_to_the_right() -> None:
    assert tables.plain(TABLE).splitlines() == [
        "name    state      open",
        "------  ---------  ----",
        "web     listening    17",
        "[red]x  failed        2",
    ]


def test_a_table_without_rows_has_its_header() -> None:
    assert tables.plain(TABLE._replace(rows=[])).splitlines() == ["name  state  open", "----  -----  ----"]


def on_terminal(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(tables.drawn(table))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 20])
def test_a_terminal_gets_all_of_it_and_names_are_no_markup(width: int) -> None:
    text = "".join(on_terminal(TABLE, width).split())
    assert "services" in text
    if width == 80:
        assert "[red]x" in text
    assert all(len(line.rstrip()) <= width for line in on_terminal(TABLE, width).splitlines())


def test_a_terminal_shows_a_group_in_one_column_and_no_empty_column() -> None:
    table = Table("", ("id", "age", "mac"), [["abc-1", "3.0 s", ""]], groups=(("id", "age"), ("mac",)))
    assert [line.split() for line in on_terminal(table, 80).splitlines() if line.strip(" ─")] == [
        ["id"],
        ["age"],
        ["abc-1"],
        ["3.0", "s"],
    ]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (1024**4, "1.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_fits(count: int, shown: str) -> None:
    assert tables.in_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (307.9, "5:07"), (93907, "26:05:07")],
)
def test_ages_are_shown_in_seconds_minutes_and_hours(seconds: float, shown: str) -> None:
    assert connections._age(seconds) == shown
