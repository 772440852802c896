"""Tests on a hypervisor with Debian's kernel: what it has and the kernel at hand may lack.

``meta ibrname``, VLANs, netem, a process 1 within reach, the sysctls of users. What fails in there fails
here, with all that was printed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.host import run_pytest
from tests.vm.machine import Kernel

# Several times what it takes on an idle host.
MINUTES = 20
pytestmark = pytest.mark.timeout(MINUTES * 60 + 60)

# Some for each thing that is another one in this kernel.
FROM_NETNS = (
    "test_hook.py::test_up_builds_what_the_contract_names[a.b-c.10]",
    "test_hook.py::test_up_on_a_healthy_bridge_changes_nothing",
    "test_guards.py::test_nothing_of_ours_leaves_through_an_uplink",
    "test_guards.py::test_a_firewall_of_the_host_that_eats_bridged_packets_is_named",
    "test_two_hosts.py::test_each_guest_is_answered_by_its_own_host_and_nothing_crosses[tunnel, recognised]",
    "test_commands.py::test_a_program_that_only_loads_maps_gets_its_service",
)

# A sequence of events of each driver, and of none.
DRIVERS = (
    "test_opennebula.py::test_deploy_and_shut_down[802.1Q-eth1.100]",
    "test_opennebula.py::test_live_migration",
    "test_libvirt.py::test_a_nic_is_attached_to_a_running_guest_and_detached",
    "test_proxmox.py::test_a_guest_that_shut_down_from_inside_without_a_post_stop_is_collected",
    "test_watch.py::test_a_bridge_is_up_while_it_has_guests",
)


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(("tests/vm/inside",), id="what only this kernel has"),
        pytest.param([f"tests/netns/{each}" for each in FROM_NETNS], id="what all kernels have"),
        pytest.param([f"tests/netns/{each}" for each in DRIVERS], id="what drivers do"),
    ],
)
def test_on_a_kernel_as_users_have(host_kernel: Kernel, tmp_path: Path, tests: list[str]) -> None:
    outcome = run_pytest(host_kernel, tmp_path, ["-q", "--durations=0", *tests], MINUTES * 60)
    print(outcome)
    assert outcome.status == 0, "tests failed in there; their output is above"
