"""Waiting for an event that comes soon, at a time that is not known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tproxy.errors import TproxyError
from tproxy.lab.hypervisor import PATIENCE

# What a look may raise while what it looks for is not there yet: a refusal, a process or a file that is gone.
_TOO_EARLY = (AssertionError, TproxyError, OSError, LookupError, TypeError, ValueError)


def eventually(patience: float = PATIENCE) -> Iterator[None]:
    """Yield again and again; the body of the loop breaks or returns when it sees the event.

    The test fails after ``patience`` seconds, which is a guard against hanging.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
    pytest.fail(f"it did not happen in {patience:g} s")


def await_equal(look: Callable[[], object], wanted: object) -> None:
    """Look again and again until that is what is wanted. A look that raises an error is repeated, too."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(*_TOO_EARLY):
            if look() == wanted:
                return
        time.sleep(0.05)
    assert look() == wanted
