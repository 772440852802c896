"""The processes of this instance in the process table, by title and by directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.sockets import wait_for
from tproxy.process import run_directory
from tproxy.process.table import Running, end_relay, find
from tproxy.process.title import set_title

Start = Callable[[str, str, str], int]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a run directory of this test alone, with the empty directory in it."""
    monkeypatch.setattr(run_directory, "ROOT", str(tmp_path))
    path = run_directory.directory()
    os.makedirs(f"{path}/{run_directory.EMPTY}")
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with this title, root directory and working directory."""
    pids: list[int] = []

    def process(title: str, root: str, work: str) -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if root != "/":
                    os.chroot(root)
                os.chdir(work)
                set_title(title)
                os.write(writer, b"x")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        return pid

    yield process
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def pids(running: Running) -> dict[str, set[int]]:
    return {
        "daemons": {each.pid for each in running.daemons},
        "relays": {each.pid for _, each in running.relays},
        "auxiliary": {each.pid for each in running.auxiliary},
        "watchers": {each.pid for each in running.watchers},
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its root directory")
def test_relays_and_workers_are_found_in_the_empty_directory_that_is_their_root(
    home: str, start: Start
) -> None:
    empty = f"{home}/{run_directory.EMPTY}"
    daemon = start("one_tproxy", "/", home)
    relay = start("one_tproxy_br0", empty, "/")
    workers = {start(title, empty, "/") for title in ("tproxy-worker", "tproxy-draining")}
    watcher = start("tproxy-watch", "/", home)
    start("tproxy-worker", "/", "/")  # anybody's: such a title is no proof
    found = find()
    assert pids(found) == {
        "daemons": {daemon},
        "relays": {relay},
        "auxiliary": workers,
        "watchers": {watcher},
    }
    assert found.lines == [("one_tproxy", daemon), ("one_tproxy_br0", relay)]


def test_a_relay_is_ended_by_the_name_of_its_bridge(home: str, start: Start) -> None:
    ours, other = (start(f"one_tproxy_{bridge}", "/", home) for bridge in ("br0", "br1"))
    end_relay("br0")
    wait_for(lambda: [bridge for bridge, _ in find().relays] == ["br1"])
    assert pids(find())["relays"] == {other}
    assert ours != other
