"""The locks of host and bridges: who waits for whom. Each holder is a process of its own, as in use."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tproxy.process import run_directory
from tproxy.process.run_directory import ALL_BRIDGES, Range, lock, of_bridge


@pytest.fixture(autouse=True)
def directory_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "ROOT", str(tmp_path / "tproxy"))


class Process:
    """A child that takes a lock, tells that it has it, and holds it until it is told to end."""

    def __init__(self, bridges: Range | None = None) -> None:
        self._said, said = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in range(3, max(said, go, self._said, self._go) + 16):
                if fd not in (said, go):  # a lock that the test holds is one of the others
                    with suppress(OSError):
                        os.close(fd)
            with lock(bridges):
                os.write(said, b"!")
                os.read(go, 1)
            os._exit(0)
        os.close(said)
        os.close(go)

    def has_it(self) -> None:
        """Wait until it has the lock."""
        assert os.read(self._said, 1) == b"!"

    def waits(self) -> bool:
        """Whether it waits for the lock, once it has had the time to do that, or has it."""
        file = f":{os.stat(f'{run_directory.ROOT}/lock').st_ino}"
        while True:
            with open("/proc/locks") as locks:
                lines = [line.split() for line in locks]
            # "->" marks a lock that is waited for (proc(5)).
            if any(line[1] == "->" and line[6].endswith(file) for line in lines):
                return True
            if select.select([self._said], [], [], 0)[0]:
                return False

    def end(self) -> None:
        if self._go < 0:
            return
        os.close(self._go)
        self._go = -1
        os.waitpid(self.pid, 0)
        os.close(self._said)


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def start(bridges: Range | None = None) -> Process:
        started.append(Process(bridges))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_while_the_host_is_released_other_bridges_go_on(start: Start) -> None:
    with lock(of_bridge("br0")) as held:
        held.release()
        start(of_bridge("br1")).has_it()


def test_while_the_host_is_released_the_same_bridge_waits(start: Start) -> None:
    with lock(of_bridge("br0")) as held:
        held.release()
        other = start(of_bridge("br0"))
        assert other.waits()
    other.has_it()


def test_while_the_host_is_held_other_bridges_wait(start: Start) -> None:
    with lock(of_bridge("br0")) as held:
        other = start(of_bridge("br1"))
        assert other.waits()
        held.release()
        other.has_it()


def test_a_command_for_all_bridges_waits_for_a_hook_that_has_released_the_host(start: Start) -> None:
    with lock(of_bridge("br0")) as held:
        held.release()
        command = start(ALL_BRIDGES)
        assert command.waits()
    command.has_it()


def test_the_host_is_taken_again_and_released_again(start: Start) -> None:
    with lock(of_bridge("br0")) as held:
        held.release()
        held.release()
        held.take()
        held.take()
        other = start()
        assert other.waits()
        held.release()
        other.has_it()


def test_a_lock_file_that_was_removed_while_a_process_waited_is_not_the_lock(start: Start) -> None:
    with lock():
        late = start()
        assert late.waits()
        os.unlink(f"{run_directory.ROOT}/lock")
        os.rmdir(run_directory.ROOT)
    late.has_it()
    after = start()
    assert after.waits()
    late.end()
    after.has_it()


@pytest.mark.parametrize("name", ["br0", "a", "0" * 15, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 7])
def test_each_bridge_has_a_place_in_the_lock_file(name: str) -> None:
    start, length = of_bridge(name)
    assert 0 <= start < 2**63 - 1
    assert length == 1
    assert of_bridge(name + "x") != (start, length)
