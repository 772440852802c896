"""Fixtures of the tests of fleets: stand-in hosts, as in tests/netns, and real stores."""

from __future__ import annotations

from tests.netns.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.netns.conftest import real_kernel as real_kernel
