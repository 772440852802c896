"""Fixtures of tests with machines: whether machines can run here, and the kernels that they boot."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.netns.conftest import hypervisor as hypervisor
from tests.netns.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.netns.conftest import real_kernel as real_kernel
from tests.vm import machine

# Tests that run inside a machine, see test_kernel.py.
collect_ignore = [] if os.environ.get("TPROXY_MACHINE") else ["inside"]


@pytest.fixture(scope="session")
def emulator(real_kernel: None) -> None:
    """Skip the test where QEMU is missing: that a package cannot be downloaded is no fault of the code."""
    missing = [program for program in machine.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: run `make test-vm` as root")


@pytest.fixture(scope="session")
def guest_kernel(emulator: None) -> machine.Kernel:
    return _present("cloud-amd64")


@pytest.fixture(scope="session")
def host_kernel(emulator: None) -> machine.Kernel:
    return _present("amd64")


def _present(flavour: str) -> machine.Kernel:
    kernel = machine.Kernel(flavour)
    if not kernel.present:
        pytest.skip(f"the kernel linux-image-{flavour} could not be downloaded: run `make test-vm`")
    return kernel
