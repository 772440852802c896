"""The keeper of the watcher: another one starts soon after one has ended, later and later if it keeps dying.

Processes, their places and their ends are real; time passes as the keeper waits for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.sockets import run_until
from tproxy.daemon import watcher_keeper
from tproxy.daemon.watcher_keeper import (
    OTHERS_TURN,
    RETRY_FIRST,
    RETRY_MOST,
    SETTLED,
    WatcherKeeper,
    take_place,
)
from tproxy.kernel.loop import Loop, Timer
from tproxy.process import run_directory, table

# A watcher that holds its place as the real one does, and that says when it has it.
WATCHER = f"""#!{sys.executable} -IS
import fcntl, os, signal
place = os.open({{place!r}}, os.O_RDWR | os.O_CREAT)
fcntl.flock(place, fcntl.LOCK_EX)
with open({{started!r}}, "a") as file:
    print(os.getpid(), file=file)
signal.pause()
"""


class EagerLoop(Loop):
    """A loop in which each wait is over at once, but for those of ``longest`` seconds and more.

    ``waits`` are the lengths of all in seconds; ``go_on`` ends the long one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waits: list[float] = []
        self.longest = float("inf")

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        if seconds < 0.01:  # the test's own looks
            return super().call_later(seconds, call)
        self.waits.append(seconds)

        def over() -> None:
            self.now += seconds
            call()

        if seconds >= self.longest:
            self.go_on = over
            return Timer(0.0, over)
        return super().call_later(0.0, over)


class Watched:
    """A keeper, and the watchers that it starts."""

    def __init__(self, folder: Path) -> None:
        self.loop = EagerLoop()
        self.keeper = WatcherKeeper(self.loop)
        self.script = folder / "watcher"
        self._started = folder / "started"
        self._started.touch()
        self.home = run_directory.prepare()
        place = f"{self.home}/{watcher_keeper.PLACE}"
        self.script.write_text(WATCHER.format(place=place, started=str(self._started)))
        self.script.chmod(0o700)

    @property
    def pids(self) -> list[int]:
        return list(map(int, self._started.read_text().split()))

    def await_watcher(self, number: int) -> int:
        """Return the pid of the watcher that is the keeper's ``number``th, once it has its place."""
        run_until(self.loop, lambda: len(self.pids) >= number)
        return self.pids[number - 1]

    def kill(self) -> None:
        os.kill(self.pids[-1], signal.SIGKILL)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(run_directory, "ROOT", str(tmp_path / "run"))
    made = Watched(tmp_path)
    monkeypatch.setattr(watcher_keeper, "sys", SimpleNamespace(executable=str(made.script)))
    monkeypatch.setattr(watcher_keeper, "time", SimpleNamespace(monotonic=lambda: made.loop.now))
    yield made
    made.keeper.keep("")
    if made.keeper._child is not None:
        made.keeper._child.wait()
    made.loop.close()


class Foreign:
    """A watcher that the keeper did not start: a process with its title, in its directory."""

    def __init__(self, home: str, *, kept: bool) -> None:
        place = take_place(kept=kept)
        assert place is not None
        os.close(place)
        self._process = subprocess.Popen(
            [table.WATCHER_TITLE], executable="/bin/cat", cwd=home, stdin=subprocess.PIPE
        )

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_watcher_that_ends_is_followed_by_another_one_later_and_later(watched: Watched) -> None:
    watched.keeper.keep("/etc/tproxy.yaml")
    for number in range(1, 14):
        watched.await_watcher(number)
        watched.kill()
    watched.await_watcher(14)
    doubled = [RETRY_FIRST * 2**number for number in range(13)]
    assert watched.loop.waits == [min(each, RETRY_MOST) for each in doubled]


def test_a_watcher_that_lived_for_long_is_followed_by_another_one_soon(watched: Watched) -> None:
    watched.keeper.keep("/etc/tproxy.yaml")
    for number in range(1, 4):
        watched.await_watcher(number)
        watched.loop.now += SETTLED
        watched.kill()
    watched.await_watcher(4)
    assert watched.loop.waits == [RETRY_FIRST] * 3


def test_the_watcher_of_an_earlier_daemon_is_followed_by_another_one_soon(watched: Watched) -> None:
    former = Foreign(watched.home, kept=True)
    watched.keeper.keep("/etc/tproxy.yaml")
    former.end()
    watched.await_watcher(1)
    assert sum(watched.loop.waits) == pytest.approx(RETRY_FIRST)


def test_who_started_a_watcher_has_some_seconds_to_start_it_again(watched: Watched) -> None:
    service = Foreign(watched.home, kept=False)
    watched.keeper.keep("/etc/tproxy.yaml")
    service.end()
    watched.await_watcher(1)
    assert sum(watched.loop.waits) == pytest.approx(OTHERS_TURN)


def test_a_service_that_starts_its_watcher_again_keeps_its_place(watched: Watched) -> None:
    service = Foreign(watched.home, kept=False)
    watched.keeper.keep("/etc/tproxy.yaml")
    watched.loop.longest = 1.0
    service.end()
    run_until(watched.loop, lambda: len(watched.loop.waits) == 2)
    again = Foreign(watched.home, kept=False)
    watched.loop.go_on()
    assert watched.keeper._attended is not None
    watched.loop.longest = float("inf")
    again.end()
    watched.await_watcher(1)
    assert len(watched.loop.waits) == 4


def test_no_watcher_is_started_once_none_is_wanted(watched: Watched) -> None:
    watched.keeper.keep("/etc/tproxy.yaml")
    watched.await_watcher(1)
    watched.keeper.keep("")
    run_until(watched.loop, lambda: len(watched.loop.waits) > 0)
    run_until(watched.loop, lambda: watched.keeper._timer is None)
    assert len(watched.pids) == 1


def test_a_watcher_for_another_file_follows_soon(watched: Watched) -> None:
    watched.keeper.keep("/etc/tproxy.yaml")
    watched.await_watcher(1)
    watched.keeper.keep("/etc/other.yaml")
    pid = watched.await_watcher(2)
    assert "/etc/other.yaml" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert watched.loop.waits == [RETRY_FIRST]
