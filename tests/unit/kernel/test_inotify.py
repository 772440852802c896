"""Which names come and go in a directory."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from tproxy.kernel.inotify import Watch


def test_names_that_come_and_go_are_told_and_changes_of_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    watch = Watch(str(tmp_path))
    assert watch.read() == set()
    (tmp_path / "old").write_text("text")
    (tmp_path / "new").touch()
    (tmp_path / "x").touch()
    (tmp_path / "x").rename(tmp_path / "moved")
    assert select.select([watch], [], [], 30)[0]
    assert watch.read() == {"new", "x", "moved"}
    (tmp_path / "old").unlink()
    assert watch.read() == {"old"}
    assert not watch.ended
    watch.close()


def test_a_directory_that_is_removed_ends_its_watch(tmp_path: Path) -> None:
    place = tmp_path / "netns"
    place.mkdir()
    watch = Watch(str(place))
    place.rmdir()
    assert watch.read() == {""}
    assert watch.ended
    watch.close()


def test_events_that_were_lost_are_told(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path))
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    file = tmp_path / ("x" * 200)
    for _ in range(most // 2 + 1):
        file.touch()
        file.unlink()
    names: set[str] = set()
    while more := watch.read():
        names |= more
    assert "" in names
    watch.close()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Watch(str(tmp_path / "none"))
    assert len(os.listdir("/proc/self/fd")) == before
