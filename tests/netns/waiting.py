"""Waiting for what happens soon, but not at a known time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tproxy.lab.hypervisor import PATIENCE


def eventually(patience: float = PATIENCE) -> Iterator[None]:
    """Tries: the body breaks, or returns, when it has happened; otherwise the test fails."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
    pytest.fail(f"it did not happen in {patience:g} s")
