"""The limit of log lines: a burst, then a steady rate, and a count of what was left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tproxy.log.limit import LineLimit

NOW = 1_000_000.0  # a host that has run for some days


def test_a_burst_is_allowed_then_one_line_each_interval() -> None:
    limit = LineLimit(3, 10.0)
    assert [limit.allows(NOW) for _ in range(5)] == [True, True, True, False, False]
    assert not limit.allows(NOW + 9)
    assert limit.allows(NOW + 10)
    assert not limit.allows(NOW + 10)
    assert limit.left_out == 4


def test_after_a_pause_the_burst_is_allowed_again() -> None:
    limit = LineLimit(3, 10.0)
    for _ in range(5):
        limit.allows(NOW)
    assert [limit.allows(NOW + 30) for _ in range(4)] == [True, True, True, False]


def test_the_next_line_tells_once_how_many_were_left_out() -> None:
    limit = LineLimit(1, 10.0)
    assert limit.allows(NOW)
    assert limit.suffix() == ""
    assert not limit.allows(NOW)
    assert not limit.allows(NOW)
    assert limit.allows(NOW + 10)
    assert limit.suffix() == " (2 more like this were left out before)"
    assert limit.suffix() == ""


@given(
    st.integers(1, 20),
    st.floats(0.1, 100),
    st.lists(st.floats(0, 50), min_size=1, max_size=200),
)
def test_no_pattern_of_lines_exceeds_the_burst_and_the_rate(
    burst: int, interval: float, pauses: list[float]
) -> None:
    limit, now, allowed = LineLimit(burst, interval), NOW, 0
    for pause in pauses:
        now += pause
        allowed += limit.allows(now)
    assert allowed <= burst + (now - NOW) / interval + 1e-6
    assert allowed + limit.left_out == len(pauses)
