"""The tests that docs/reliability.md and SECURITY.md name exist."""

from __future__ import annotations

import pytest

from tests.contract import DOCS, quoted, table, tables

ROOT = DOCS.parent


PAGES = {"docs/reliability.md": "test", "SECURITY.md": "test, or where the limit is"}


@pytest.mark.parametrize(("page", "column"), PAGES.items())
def test_each_test_that_the_page_names_exists(page: str, column: str) -> None:
    cells = [cell for each in tables(ROOT / page) if column in each.header for cell in each.column(column)]
    named = [name for cell in cells for name in quoted(cell) or [cell] if "::" in name]
    assert named
    for test in named:
        path, _, function = test.partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text(), test


def test_each_row_of_the_crash_table_names_a_test() -> None:
    rows = table("What dies, and what comes back", "what dies", page=DOCS / "reliability.md").column("test")
    assert all("::" in cell for cell in rows)
