"""The choice of tests that also run on a machine with Debian's kernel."""

from __future__ import annotations

from tests.vm import choice


def test_each_test_that_is_chosen_for_the_machine_exists() -> None:
    assert choice.missing() == []
