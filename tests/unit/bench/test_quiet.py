"""Repeating measurements during which other virtual machines took processor time."""

from __future__ import annotations

import pytest

from bench import quiet


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "PAUSE", 0.001)


class Machine:
    """A machine that loses the given part of each measured second to others, and uses the rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *stolen: float) -> None:
        self._stolen = list(stolen)
        self._times = (100.0, 1000.0)
        monkeypatch.setattr(quiet, "_times", lambda: self._times)

    def measure(self) -> float:
        taken = self._stolen.pop(0)
        self._times = (self._times[0] + taken, self._times[1] + 1 - taken)
        return taken


@pytest.mark.parametrize(
    ("stolen", "attempts"),
    [
        ((0.0,), [0.0]),
        ((0.04,), [0.04]),
        ((0.5, 0.06, 0.01), [0.01, 0.06, 0.5]),
        ((0.5, 0.2, 0.3, 0.4), [0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_a_job_is_repeated_until_little_was_stolen_and_the_least_disturbed_attempt_comes_first(
    monkeypatch: pytest.MonkeyPatch, stolen: tuple[float, ...], attempts: list[float]
) -> None:
    machine = Machine(monkeypatch, *stolen)
    found = quiet.Quiet(60).measure(machine.measure)
    assert [attempt.figures for attempt in found] == attempts
    assert [attempt.stolen for attempt in found] == pytest.approx(attempts)


def test_without_patience_a_disturbed_job_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.5, 0.0)
    assert [attempt.figures for attempt in quiet.Quiet(0).measure(machine.measure)] == [0.5]


def test_the_stolen_share_is_read_from_the_kernel() -> None:
    (attempt,) = quiet.Quiet(0).measure(lambda: sum(range(10**6)))
    assert 0 <= attempt.stolen <= 1
