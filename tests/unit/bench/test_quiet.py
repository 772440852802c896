"""What was measured while neighbours took the machine is measured again."""

from __future__ import annotations

import pytest

from bench import quiet


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "PAUSE", 0.001)


class Machine:
    """Takes some of each second of which the rest is used."""

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
def test_it_is_measured_until_little_was_stolen_and_the_least_disturbed_counts(
    monkeypatch: pytest.MonkeyPatch, stolen: tuple[float, ...], attempts: list[float]
) -> None:
    machine = Machine(monkeypatch, *stolen)
    found = quiet.Quiet(60).measure(machine.measure)
    assert [attempt.figures for attempt in found] == attempts
    assert [attempt.stolen for attempt in found] == pytest.approx(attempts)


def test_without_patience_the_first_attempt_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.5, 0.0)
    assert [attempt.figures for attempt in quiet.Quiet(0).measure(machine.measure)] == [0.5]


def test_the_kernel_tells_what_it_had() -> None:
    (attempt,) = quiet.Quiet(0).measure(lambda: sum(range(10**6)))
    assert 0 <= attempt.stolen <= 1
