"""The tests that docs/reliability.md names exist."""

from __future__ import annotations

from tests.contract import DOCS, quoted, table

ROOT = DOCS.parent


def test_each_test_of_the_crash_table_exists() -> None:
    rows = table("What dies, and what comes back", "what dies", page=DOCS / "reliability.md").column("test")
    for test in [name for row in rows for name in quoted(row) or [row]]:
        path, _, function = test.partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text(), test
