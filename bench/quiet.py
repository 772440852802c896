"""Repeats measurements during which other virtual machines took much processor time from this one.

The kernel counts that time (steal), so it is known, and does not depend on what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

Figures = TypeVar("Figures")

# The largest share of the wanted processor time that may be stolen, and how often to measure at most.
MOST = 0.05
TIMES = 4

# Seconds of waiting before a repetition: a busy neighbour is busy for a while.
PAUSE = 3.0


@dataclass(frozen=True)
class Attempt(Generic[Figures]):
    """The result of one measurement."""

    stolen: float  # share of the processor time that was wanted
    figures: Figures


class Quiet:
    """Measures, and repeats what was disturbed. ``patience``: seconds for all repetitions together."""

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def measure(self, job: Callable[[], Figures]) -> list[Attempt[Figures]]:
        """Run the job until little time was stolen; returns all attempts, the least disturbed first."""
        attempts = [_attempt(job)]
        while attempts[-1].stolen > MOST and len(attempts) < TIMES and self._patience > 0:
            began = time.monotonic()
            time.sleep(PAUSE)
            attempts.append(_attempt(job))
            self._patience -= time.monotonic() - began
        return sorted(attempts, key=lambda attempt: attempt.stolen)


def _attempt(job: Callable[[], Figures]) -> Attempt[Figures]:
    before = _times()
    figures = job()
    stolen, used = (now - then for now, then in zip(_times(), before, strict=True))
    return Attempt(stolen / (stolen + used) if stolen else 0.0, figures)


def _times() -> tuple[float, float]:
    """CPU seconds since boot that were stolen, and that were used (proc_stat(5))."""
    times = psutil.cpu_times()
    return times.steal, times.user + times.nice + times.system + times.irq + times.softirq
