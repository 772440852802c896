"""Settings and fixtures of all unit tests. hypothesis times no example, since the machine may be busy."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("tproxy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tproxy")

WORK = 20  # seconds of processor time


@pytest.fixture
def bounded_work() -> Iterator[None]:
    """Fail the test when it uses more than WORK; waiting for the processor does not count."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: pytest.fail(f"computed for more than {WORK} s"))
    signal.setitimer(signal.ITIMER_VIRTUAL, WORK)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)
