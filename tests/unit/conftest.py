"""What all unit tests share: no example of hypothesis is timed, since the machine may be busy."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("tproxy", deadline=None)
settings.load_profile("tproxy")

WORK = 20  # seconds of the processor


@pytest.fixture
def bounded_work() -> Iterator[None]:
    """Fail the test when it computes for long, however long it has to wait for the processor."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: pytest.fail(f"computed for more than {WORK} s"))
    signal.setitimer(signal.ITIMER_VIRTUAL, WORK)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)
