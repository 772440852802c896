"""A short soak: mixed traffic with hashes, while everything is done and killed once."""

from __future__ import annotations

import pytest

from bench.soak.__main__ import soak
from bench.soak.host import Host
from tproxy.lab.hypervisor import Hypervisor


# It does everything once, and all of that under load.
@pytest.mark.timeout(900)
def test_a_short_soak_loses_nothing_that_no_fault_explains_and_leaks_nothing(hypervisor: Hypervisor) -> None:
    report, well = soak(Host(hypervisor, calm=10), seconds=20, seed=1)
    assert well, report
