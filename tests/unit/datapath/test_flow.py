"""The rules of one direction: when it reads, when FIN is due, and what its sockets are polled for."""

from __future__ import annotations

import select

import pytest

from tproxy.datapath.flow import Direction, interest

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
UNASKED = select.EPOLLET  # only resets and hang-ups, each reported once


def direction(*, held: int = 0, ended: bool = False, fin_sent: bool = False) -> Direction:
    made = Direction()
    made.held, made.ended, made.fin_sent = held, ended, fin_sent
    return made


fresh = direction()
holding = direction(held=1)
ended_holding = direction(held=1, ended=True)
fin_due = direction(ended=True)
done = direction(ended=True, fin_sent=True)


@pytest.mark.parametrize(
    ("state", "wants_read", "due"),
    [
        (fresh, True, False),
        (holding, False, False),
        (ended_holding, False, False),
        (fin_due, False, True),
        (done, False, False),
    ],
    ids=["fresh", "holding", "ended while holding", "ended and empty", "done"],
)
def test_read_only_when_nothing_is_held_and_fin_only_behind_the_last_byte_and_once(
    state: Direction, wants_read: bool, due: bool
) -> None:
    assert (state.wants_read, state.fin_due) == (wants_read, due)


@pytest.mark.parametrize(
    ("reading", "writing", "expected"),
    [
        (fresh, fresh, READ),
        (fresh, holding, READ | WRITE),
        (fresh, ended_holding, READ | WRITE),
        (fresh, fin_due, READ),
        (fresh, done, READ),
        (holding, fresh, UNASKED),
        (holding, holding, WRITE),
        (holding, ended_holding, WRITE),
        (holding, fin_due, UNASKED),
        (holding, done, UNASKED),
        (ended_holding, fresh, UNASKED),
        (ended_holding, holding, WRITE),
        (ended_holding, ended_holding, WRITE),
        (ended_holding, fin_due, UNASKED),
        (ended_holding, done, UNASKED),
        (fin_due, fresh, UNASKED),
        (fin_due, holding, WRITE),
        (fin_due, done, UNASKED),
        (done, fresh, UNASKED),
        (done, holding, WRITE),
        (done, ended_holding, WRITE),
        (done, done, UNASKED),
    ],
)
def test_interest_follows_from_the_two_directions(
    reading: Direction, writing: Direction, expected: int
) -> None:
    assert interest(reading, writing) == expected


def test_the_end_of_one_direction_does_not_end_the_other() -> None:
    assert interest(fresh, done) == READ
    assert interest(done, holding) == WRITE
