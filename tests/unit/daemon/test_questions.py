"""The daemon passes questions on to all workers, and reads no answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.daemon.test_workers import Daemon
from tproxy.daemon import questions
from tproxy.daemon.server import Client
from tproxy.worker import orders


class Asker:
    """Stands for the connection of a command."""

    def __init__(self) -> None:
        self.answers: list[tuple[dict[str, Any], list[socket.socket]]] = []

    def answer_with(self, answer: dict[str, Any], fds: list[int]) -> None:
        self.answers.append((answer, [socket.socket(fileno=os.dup(fd)) for fd in fds]))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def ask(daemon: Daemon, *words: str) -> tuple[dict[str, Any], list[socket.socket]]:
    asker = Asker()
    questions.pass_on(daemon.workers, "connections", [*words], cast(Client, asker))
    ((answer, ends),) = asker.answers
    return answer, ends


def test_all_workers_are_asked_also_those_that_only_finish(daemon: Daemon) -> None:
    daemon.start(2)
    daemon.workers.keep(1)
    answer, ends = ask(daemon, "bridge=br0")
    pids = [daemon.stand_in(number).pid for number in range(2)]
    assert answer["asked"] == [[pids[0], False], [pids[1], True]]
    assert answer["unasked"] == []
    assert len(ends) == 2
    for number, end in enumerate(ends):
        stand_in = daemon.stand_in(number)
        assert stand_in.hear()[-1] == orders.Question("connections", ("bridge=br0",))
        assert stand_in.descriptors[-1] == 1
        # The stand-in has closed its end, and the daemon has no copy of either.
        assert end.recv(1) == b""
        end.close()


def test_a_worker_of_another_version_is_named_and_not_asked(daemon: Daemon) -> None:
    daemon.workers.keep(1)
    old = daemon.stand_in(0)
    old.born()
    old.ready(orders.VERSION + 1)
    daemon.stand_in(1).start()
    daemon.until(lambda: len(daemon.workers.pids()) == 2)
    answer, ends = ask(daemon)
    assert answer["unasked"] == [[old.pid, True]]
    assert answer["asked"] == [[daemon.stand_in(1).pid, False]]
    assert not any(isinstance(each, orders.Question) for each in old.hear())
    for end in ends:
        end.close()


def test_without_workers_nobody_is_asked(daemon: Daemon) -> None:
    assert ask(daemon) == ({"format": 1, "asked": [], "unasked": []}, [])
