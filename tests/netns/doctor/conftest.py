"""The host that the tests of a module share. Each test cures what it made ill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.doctor.patient import Patient
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture(scope="module")
def patient(real_kernel: None) -> Iterator[Patient]:
    with Hypervisor() as host:
        yield Patient(host)
