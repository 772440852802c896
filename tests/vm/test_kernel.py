"""Tests on a hypervisor with Debian's kernel, which has what the kernel of this machine may lack.

That is ``meta ibrname``, VLANs, netem, a process 1 within reach, and sysctls that namespaces inherit. A test
that fails in the machine fails the test here, with everything that was printed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import choice
from tests.vm.host import run_pytest
from tests.vm.machine import Kernel

# Several times what it takes on an idle host.
MINUTES = 20
pytestmark = pytest.mark.timeout(MINUTES * 60 + 60)


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(("tests/vm/inside",), id="what only this kernel has"),
        pytest.param([f"tests/netns/{each}" for each in choice.KERNEL], id="what all kernels have"),
        pytest.param(
            [f"tests/netns/{each}" for each in choice.FRAMES[:1]], id="which frames of guests arrive where"
        ),
        pytest.param(
            [f"tests/netns/{each}" for each in choice.FRAMES[1:]], id="which frames from elsewhere do"
        ),
        pytest.param(
            [f"tests/netns/{each}" for each in choice.IPV6[:1]], id="which frames of IPv6 arrive where"
        ),
        pytest.param([f"tests/netns/{each}" for each in choice.IPV6[1:2]], id="which from elsewhere do"),
        pytest.param([f"tests/netns/{each}" for each in choice.IPV6[2:]], id="IPv6 and further addresses"),
        pytest.param([f"tests/netns/{each}" for each in choice.SHARED], id="what guests share of the host"),
        pytest.param([f"tests/netns/{each}" for each in choice.OPENNEBULA], id="what OpenNebula tells"),
        pytest.param([f"tests/netns/{each}" for each in choice.LIBVIRT], id="what libvirt tells"),
        pytest.param(
            [f"tests/netns/{each}" for each in choice.PROXMOX + choice.HOOKLESS],
            id="what Proxmox tells, and a host without hooks",
        ),
    ],
)
def test_on_a_kernel_as_users_have(host_kernel: Kernel, tmp_path: Path, tests: list[str]) -> None:
    outcome = run_pytest(host_kernel, tmp_path, ["-q", "--durations=0", *tests], MINUTES * 60)
    print(outcome)
    assert outcome.status == 0, "tests failed in there; their output is above"
