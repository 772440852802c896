"""Fixtures: those of tests on a real kernel."""

from __future__ import annotations

from tests.netns.conftest import real_kernel

__all__ = ["real_kernel"]
