"""Answers of a worker: made as they are read, and ended by whoever goes first."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.unit.recorder import Recorder
from tests.unit.sockets import run_until
from tproxy.kernel.loop import Loop
from tproxy.worker import questions
from tproxy.worker.questions import END, PAUSE, Answer, Questions


class Asker:
    """Asks one question, and reads the answer."""

    def __init__(self, *kinds: str) -> None:
        self.loop = Loop()
        self.log = Recorder()
        self.made = 0
        self.lasting: list[Answer] = []
        self.questions = Questions(self.loop, self.log, {"many": self._many, "events": self._events})
        self.end, theirs = socket.socketpair()
        self.end.setblocking(False)
        self.questions.ask(kinds[0], kinds[1:], theirs)
        self.said = b""
        self.over = False

    def _many(self, words: tuple[str, ...], answer: Answer) -> Iterator[str]:
        for number in range(int(words[0])):
            self.made += 1
            if number == 40 and "fails" in words:
                raise ValueError("no more")
            yield PAUSE if number % 2 else f'{{"n": {number}, "text": "{"x" * 1000}"}}'

    def _events(self, words: tuple[str, ...], answer: Answer) -> None:
        self.lasting.append(answer)

    def read(self) -> None:
        try:
            while part := self.end.recv(1 << 16):
                self.said += part
            self.over = True
        except BlockingIOError:
            pass

    def hear(self) -> list[str]:
        """Read until the worker says nothing more."""

        def over() -> bool:
            self.read()
            return self.over

        run_until(self.loop, over)
        return self.said.decode().splitlines()


def test_an_answer_comes_whole_and_says_that_it_is_complete() -> None:
    asker = Asker("many", "1000")
    *lines, last = asker.hear()
    assert [json.loads(each)["n"] for each in lines] == [*range(0, 1000, 2)]
    assert last == END


def test_no_more_is_made_than_is_read() -> None:
    asker = Asker("many", "100000")
    turns = asker.loop.turns
    run_until(asker.loop, lambda: asker.loop.turns > turns + 200)
    made = asker.made
    run_until(asker.loop, lambda: asker.loop.turns > turns + 400)
    assert made == asker.made < 10_000
    asker.read()
    run_until(asker.loop, lambda: asker.made > made)


def test_each_turn_of_the_loop_makes_only_some_lines() -> None:
    asker = Asker("many", "100")
    most = 0

    def over() -> bool:
        nonlocal most
        before = asker.made
        asker.loop.call_later(0, lambda: None)
        asker.read()
        most = max(most, asker.made - before)
        return asker.over

    made = [0]
    asker.loop.call_later(0, lambda: made.append(asker.made))
    run_until(asker.loop, over)
    assert made[1] <= questions.AT_ONCE


def test_an_answer_that_fails_is_not_complete_and_the_worker_goes_on() -> None:
    asker = Asker("many", "1000", "fails")
    lines = asker.hear()
    assert lines
    assert lines[-1] != END
    assert asker.log.warnings == ["a question cannot be answered: ValueError: no more"]


@pytest.mark.parametrize("words", [("unheard",), ("many", "no number")], ids=str)
def test_a_question_that_cannot_be_answered_gets_nothing(words: tuple[str, ...]) -> None:
    asker = Asker(*words)
    assert asker.hear() == []
    assert asker.log.warnings


def test_too_many_questions_at_once_get_nothing() -> None:
    asker = Asker("events")
    pairs = [socket.socketpair() for _ in range(questions.MOST)]
    for _, theirs in pairs:
        asker.questions.ask("events", (), theirs)
    assert len(asker.lasting) == questions.MOST
    assert pairs[-1][0].recv(1) == b""
    for ours, _ in pairs:
        ours.close()


def test_an_answer_without_an_end_says_what_happens_until_its_reader_goes() -> None:
    asker = Asker("events")
    (answer,) = asker.lasting
    gone = []
    answer.on_gone = lambda: gone.append(True)
    answer.say('{"a": 1}')
    answer.say('{"a": 2}')
    assert asker.end.recv(100) == b'{"a": 1}\n{"a": 2}\n'
    asker.end.close()
    run_until(asker.loop, lambda: bool(gone))
    assert not answer.open
    answer.say('{"a": 3}')  # does no harm


def test_what_a_slow_reader_has_missed_is_counted() -> None:
    asker = Asker("events")
    (answer,) = asker.lasting
    line = json.dumps({"text": "x" * 1000})
    for _ in range(5000):
        answer.say(line)

    def counted() -> bool:
        asker.read()
        return b"left_out" in asker.said

    run_until(asker.loop, counted)
    *said, last = map(json.loads, asker.said.decode().splitlines())
    assert 100 < len(said) < 5000
    assert last == {"left_out": 5000 - len(said)}
    answer.say('{"a": 1}')

    def came() -> bool:
        asker.read()
        return asker.said.endswith(b'{"a": 1}\n')

    run_until(asker.loop, came)
