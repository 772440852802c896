"""The tables of docs/security.md and the tests behind them have the same rows."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.contract import DOCS, SECURITY, table
from tests.netns.bridge.forged import FRAMES
from tests.netns.bridge.forged_ipv6 import FRAMES_IPV6
from tests.vm import choice

ROOT = DOCS.parent


OVER_IPV4, OVER_IPV6 = "Isolation, frame by frame", "Isolation over IPv6, frame by frame"


@pytest.mark.parametrize(("heading", "frames"), [(OVER_IPV4, FRAMES), (OVER_IPV6, FRAMES_IPV6)])
def test_each_row_of_the_tables_of_frames_has_frames_and_the_other_way_round(
    heading: str, frames: Collection[str]
) -> None:
    assert table(heading, "frames", page=SECURITY).column("frames") == list(frames)


def test_each_test_of_what_the_host_shares_exists_and_runs_in_the_machine() -> None:
    for test in table("Tests of what the host shares", "resource", page=SECURITY).column("test"):
        path, _, function = test.partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text()
        assert path.startswith("tests/vm/inside/") or test.removeprefix("tests/netns/") in choice.ISOLATION


@pytest.mark.parametrize("heading", [OVER_IPV4, OVER_IPV6])
def test_cells_of_the_tables_of_frames_say_nothing_that_the_test_does_not_know(heading: str) -> None:
    found = table(heading, "frames", page=SECURITY)
    words = {"-", "frame", "answer", "question"}
    for row in found.rows:
        assert {word for cell in row[2:-1] for word in cell.split(", ")} <= words
        assert set(row[-1].split(", ")) <= {"-", *found.header[2:-1]}
