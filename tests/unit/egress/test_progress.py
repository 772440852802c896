"""What is under way for a guest, by the beginnings that the helper sees and the ends in squid's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.egress.squid.progress import Progress


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.json"
    path.write_text('{"id":"a-1","time":"1"}\n')
    return path


def ends(log: Path, *numbers: str) -> None:
    with log.open("a") as file:
        file.writelines(f'{{"id":"{number}","time":"1"}}\n' for number in numbers)


def test_what_has_ended_is_under_way_no_longer(log: Path) -> None:
    progress = Progress(log, "a")
    progress.look()
    for number in ("1", "2", "3"):  # 1 is in the log of a process before
        progress.begin(number, "guest")
    progress.begin("4", "other")
    assert (progress.count("guest"), progress.count("other")) == (3, 1)
    ends(log, "a-2", "b-1", "b-4")  # those of b are another squid's
    progress.look()
    assert (progress.count("guest"), progress.count("other")) == (2, 1)
    progress.end("3")
    assert progress.count("guest") == 1


def test_an_end_that_comes_before_its_beginning_counts(log: Path) -> None:
    """A client that goes at once: squid has written its line before the helper has read the request."""
    progress = Progress(log, "a")
    progress.look()
    ends(log, "a-7")
    progress.look()
    progress.begin("7", "guest")
    assert progress.count("guest") == 0


def test_ends_are_found_in_a_log_that_was_moved_and_in_the_new_one(log: Path) -> None:
    progress = Progress(log, "a")
    progress.look()
    for number in "23456":
        progress.begin(number, "guest")
    old = log.rename(log.with_suffix(".1"))
    ends(old, "a-2")
    progress.look()
    ends(old, "a-3")  # squid has not opened the new one yet
    progress.look()
    ends(log, "a-4")
    ends(old, "a-5")
    progress.look()
    ends(log, "a-6")
    progress.look()
    assert progress.count("guest") == 0


def test_without_a_log_everything_is_under_way(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "none", "a")
    progress.begin("1", "guest")
    progress.look()
    assert progress.count("guest") == 1
