"""Processes that the benchmark holds to a part of a core."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.quota import held
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor

PLACE = "/run/quota"


def groups(hypervisor: Hypervisor) -> list[Path]:
    """The control groups of this stand-in that there are."""
    return list(hypervisor.path(PLACE).glob(f"tproxy-bench-*-{hypervisor.pid}-*"))


@pytest.fixture
def busy(hypervisor: Hypervisor) -> int:
    """The process id, inside the stand-in, of a process that computes."""
    process = hypervisor.popen("sh", "-c", "echo $$ >/run/busy; echo ready; while :; do :; done", stdout=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return int(hypervisor.path("/run/busy").read_text())


def test_a_held_process_is_throttled_and_its_group_goes_afterwards(hypervisor: Hypervisor, busy: int) -> None:
    try:
        with held(hypervisor, [busy], 1 / 20):
            (group,) = groups(hypervisor)
            while "nr_throttled 0\n" in (group / "cpu.stat").read_text():
                pass
    except ProcessError as problem:
        if "mount" in str(problem):
            pytest.skip("control groups cannot be mounted here")
        raise

    assert groups(hypervisor) == []
    assert hypervisor.run("kill", "-0", str(busy)).returncode == 0
