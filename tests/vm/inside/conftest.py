"""Fixtures of tests that run in a machine with Debian's kernel, see tests/vm/test_kernel.py."""

from __future__ import annotations

from tests.netns.conftest import hypervisor as hypervisor
from tests.netns.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.netns.conftest import real_kernel as real_kernel
from tests.netns.conftest import start_endpoint as start_endpoint
