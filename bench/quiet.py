"""Measures when the machine is there: a virtual one's neighbours take processor time from it.

How much they took is known, and does not depend on what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

Figures = TypeVar("Figures")

# Of the processor time that was wanted. Where more was taken the same is measured again, so often at most.
MOST = 0.05
TIMES = 4

# Seconds before that: who takes some now will take some in the next moment.
PAUSE = 3.0


@dataclass(frozen=True)
class Attempt(Generic[Figures]):
    stolen: float  # share of the processor time that was wanted
    figures: Figures


class Quiet:
    """``patience``: how many seconds may be spent, in all, on measuring the same again."""

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def measure(self, job: Callable[[], Figures]) -> list[Attempt[Figures]]:
        """Until little was stolen, or often enough; returns all attempts, the least disturbed first."""
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
    """CPU seconds since boot that neighbours took, and that this machine had (proc_stat(5))."""
    times = psutil.cpu_times()
    return times.steal, times.user + times.nice + times.system + times.irq + times.softirq
