"""From looks at routes to what counts."""

from __future__ import annotations

from tproxy.inward.names.health import LASTING, settled


def test_a_route_that_fails_for_a_moment_stays_healthy() -> None:
    known = settled({}, {"a": ""}, 0)
    known = settled(known, {"a": "refused"}, 1)
    assert known["a"].healthy
    known = settled(known, {"a": "refused"}, 1 + LASTING)
    assert not known["a"].healthy
    known = settled(known, {"a": ""}, 2 + LASTING)
    assert known["a"].healthy


def test_a_failure_that_ends_in_between_counts_anew() -> None:
    known = settled({}, {"a": ""}, 0)
    for now, reason in ((1, "refused"), (5, ""), (6, "refused"), (5 + LASTING, "refused")):
        known = settled(known, {"a": reason}, now)
    assert known["a"].healthy


def test_the_first_look_counts_at_once() -> None:
    assert not settled({}, {"a": "refused"}, 0)["a"].healthy
    assert settled({"gone": settled({}, {"x": ""}, 0)["x"]}, {}, 1) == {}
