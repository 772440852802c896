"""Waiting for an event that comes soon, at a time that is not known."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tproxy.lab.hypervisor import PATIENCE


def eventually(patience: float = PATIENCE) -> Iterator[None]:
    """Yield again and again; the body of the loop breaks or returns when it sees the event.

    The test fails after ``patience`` seconds, which is a guard against hanging.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
    pytest.fail(f"it did not happen in {patience:g} s")
