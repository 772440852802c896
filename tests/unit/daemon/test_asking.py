"""The command's side of a question to all workers, who may say anything."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.unit.daemon.standins import end, paused_process
from tproxy.daemon import asking
from tproxy.daemon.asking import MOST_OF_A_LINE, Inquiry, Silent, Worker
from tproxy.worker.questions import END


class Workers:
    """Two workers that run, as processes that only wait; the test says what they say."""

    def __init__(self) -> None:
        self.pids = [paused_process() for _ in range(2)]
        pairs = [socket.socketpair() for _ in self.pids]
        self.ends = [theirs for _, theirs in pairs]
        self.fds = [ours.detach() for ours, _ in pairs]
        self.unasked: list[list[object]] = []

    def answer(self, request: object, timeout: float) -> tuple[dict[str, object], list[int]]:
        return {"asked": [[pid, False] for pid in self.pids], "unasked": self.unasked}, self.fds

    def say(self, number: int, *lines: str) -> None:
        self.ends[number].sendall("".join(f"{each}\n" for each in lines).encode())


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    made = Workers()
    monkeypatch.setattr(asking, "ask_for_descriptors", made.answer)
    monkeypatch.setattr(asking, "ENDING", 0.05)  # seconds that are lost for each worker that runs on
    yield made
    for pid in made.pids:
        end(pid)
    for each in made.ends:
        each.close()


def test_what_workers_say_comes_with_the_worker_that_the_daemon_names(workers: Workers) -> None:
    workers.say(0, '{"worker": 1}', '{"a": 2}', END)
    workers.say(1, END)
    with Inquiry("anything") as inquiry:
        said = list(inquiry.lines(20.0))
        assert not inquiry.open
    assert said == [(Worker(workers.pids[0], False), each) for each in ({"worker": 1}, {"a": 2})]
    assert inquiry.silent == []


def test_what_is_no_object_is_left_out(workers: Workers) -> None:
    workers.say(0, "", "[]", "7", "no JSON", "[" * 5000, '{"a": "\\ud800"}', '{"a": 1}', END)
    workers.say(1, END)
    with Inquiry("anything") as inquiry:
        assert [line for _, line in inquiry.lines(20.0)] == [{"a": "\ud800"}, {"a": 1}]


def test_a_worker_that_does_not_answer_in_time_is_named_and_the_others_are_heard(workers: Workers) -> None:
    workers.unasked = [[7, True]]
    workers.say(0, '{"a": 1}', END)
    workers.say(1, '{"a": 2}')
    with Inquiry("anything") as inquiry:
        assert len(list(inquiry.lines(0.2))) == 2
    assert inquiry.silent == [
        Silent(7, "runs another version of tproxy, and cannot be asked"),
        Silent(workers.pids[1], "did not answer in time"),
    ]


def test_a_worker_that_closes_without_an_end_is_named_unless_its_process_has_ended(workers: Workers) -> None:
    for number in range(2):
        workers.say(number, '{"a": 1}')
        workers.ends[number].close()
    end(workers.pids[0])
    with Inquiry("anything") as inquiry:
        assert len(list(inquiry.lines(20.0))) == 2
        assert inquiry.silent == [Silent(workers.pids[1], "did not finish its answer")]


def test_a_worker_that_says_a_line_without_an_end_is_heard_no_longer(workers: Workers) -> None:
    workers.say(1, END)
    workers.ends[0].setblocking(False)
    with Inquiry("anything") as inquiry:
        sent = 0
        while inquiry.open:
            with suppress(BlockingIOError, BrokenPipeError):
                sent += workers.ends[0].send(b"x" * 10_000)
            assert inquiry.poll() == []
        assert sent > MOST_OF_A_LINE
        assert inquiry.silent == [Silent(workers.pids[0], "did not finish its answer")]


def test_the_worker_notices_that_the_command_has_gone(workers: Workers) -> None:
    with Inquiry("anything"):
        assert all(os.stat(fd) for fd in workers.fds)
    for each in workers.ends:
        look = select.poll()
        look.register(each, 0)
        assert look.poll(20_000) == [(each.fileno(), select.POLLHUP)]


def test_an_inquiry_can_be_waited_for_beside_other_things(workers: Workers) -> None:
    with Inquiry("anything") as inquiry:
        look = select.poll()
        look.register(inquiry, select.POLLIN)
        assert look.poll(0) == []
        workers.say(0, json.dumps({"event": "accepted"}))
        assert look.poll(20_000)
        assert [line for _, line in inquiry.poll()] == [{"event": "accepted"}]
        assert look.poll(0) == []
