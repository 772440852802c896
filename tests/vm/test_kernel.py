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

# All that happens to guests, as each driver tells it; and as nobody does.
OPENNEBULA = (
    "test_opennebula.py::test_deploy_and_shut_down[802.1Q-eth1.100]",
    "test_opennebula.py::test_poweroff_and_resume",
    "test_opennebula.py::test_attach_and_detach_concern_one_bridge",
    "test_opennebula.py::test_live_migration",
    "test_opennebula.py::test_after_a_failed_migration_the_source_serves_and_the_target_can_be_cleaned",
    "test_opennebula.py::test_after_a_crash_without_clean_the_next_guest_finds_all_in_order_and_takes_it_away",
)
LIBVIRT = (
    "test_libvirt.py::test_a_guest_on_a_network_starts_and_shuts_down_and_the_network_goes",
    "test_libvirt.py::test_save_and_restore_and_migration_in_and_out",
    "test_libvirt.py::test_a_nic_is_attached_to_a_running_guest_and_detached",
    "test_libvirt.py::test_a_migration_that_fails_leaves_nothing",
    "test_libvirt.py::test_a_guest_that_ends_by_itself_and_one_that_crashes",
)
PROXMOX = (
    "test_proxmox.py::test_a_virtual_machine_starts_and_stops",
    "test_proxmox.py::test_migration_in_and_out",
    "test_proxmox.py::test_a_migration_that_fails_leaves_nothing",
    "test_proxmox.py::test_a_guest_that_shut_down_from_inside_without_a_post_stop_is_collected",
    "test_proxmox.py::test_a_crash_and_a_start_again",
)
HOOKLESS = ("test_watch.py::test_a_bridge_is_up_while_it_has_guests",)


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(("tests/vm/inside",), id="what only this kernel has"),
        pytest.param([f"tests/netns/{each}" for each in FROM_NETNS], id="what all kernels have"),
        pytest.param([f"tests/netns/{each}" for each in OPENNEBULA], id="what OpenNebula tells"),
        pytest.param([f"tests/netns/{each}" for each in LIBVIRT], id="what libvirt tells"),
        pytest.param(
            [f"tests/netns/{each}" for each in PROXMOX + HOOKLESS], id="what Proxmox tells, and nobody"
        ),
    ],
)
def test_on_a_kernel_as_users_have(host_kernel: Kernel, tmp_path: Path, tests: list[str]) -> None:
    outcome = run_pytest(host_kernel, tmp_path, ["-q", "--durations=0", *tests], MINUTES * 60)
    print(outcome)
    assert outcome.status == 0, "tests failed in there; their output is above"
