"""The tables of docs/security.md and the tests behind them have the same rows."""

from __future__ import annotations

from tests.contract import DOCS, SECURITY, table
from tests.netns.bridge.forged import FRAMES
from tests.vm import choice

ROOT = DOCS.parent


def test_each_row_of_the_table_of_frames_has_frames_and_the_other_way_round() -> None:
    assert table("Isolation, frame by frame", "frames", page=SECURITY).column("frames") == list(FRAMES)


def test_each_test_of_what_the_host_shares_exists_and_runs_in_the_machine() -> None:
    for test in table("Tests of what the host shares", "resource", page=SECURITY).column("test"):
        path, _, function = test.partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text()
        assert path.startswith("tests/vm/inside/") or test.removeprefix("tests/netns/") in choice.ISOLATION


def test_cells_of_the_table_of_frames_say_nothing_that_the_test_does_not_know() -> None:
    found = table("Isolation, frame by frame", "frames", page=SECURITY)
    words = {"-", "frame", "answer", "question"}
    for row in found.rows:
        assert {word for cell in row[2:-1] for word in cell.split(", ")} <= words
        assert set(row[-1].split(", ")) <= {"-", *found.header[2:-1]}
