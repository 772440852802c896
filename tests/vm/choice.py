"""The tests of tests/netns that also run on a machine with Debian's kernel, see tests/vm/test_kernel.py.

A unit test checks that each of them exists, so that a test cannot be renamed here and be lost there.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

# One or more for each thing in which this kernel differs from small ones.
KERNEL = (
    "operations/test_hook.py::test_up_builds_what_the_contract_names[a.b-c.10]",
    "operations/test_hook.py::test_up_on_a_healthy_bridge_changes_nothing",
    "bridge/test_guards.py::test_nothing_of_ours_leaves_through_an_uplink",
    "bridge/test_guards.py::test_a_host_firewall_that_drops_bridged_packets_causes_a_warning",
    "bridge/test_obstacles.py::test_each_up_warns_of_a_host_firewall_that_could_drop",
    "bridge/test_obstacles.py::test_up_and_status_say_when_a_new_port_will_forward",
    "test_two_hosts.py::test_each_guest_is_answered_by_its_own_host_and_nothing_crosses[tunnel, recognised]",
    "kernel/test_kinds.py::test_ports_that_lead_off_the_host_are_recognised_by_their_kind",
    "operations/test_life.py::test_a_program_that_only_loads_maps_gets_its_service",
)

# What happens to guests, as each platform tells it; and where no platform tells anything.
OPENNEBULA = (
    "platforms/test_opennebula.py::test_a_guest_is_served_from_deploy_to_shutdown[802.1Q-eth1.100]",
    "platforms/test_opennebula.py::test_poweroff_takes_the_bridge_down_and_resume_brings_it_up",
    "platforms/test_opennebula.py::test_attach_and_detach_concern_one_bridge",
    "platforms/test_opennebula.py::test_a_migrated_guest_is_served_and_leaves_nothing_on_the_source",
    "platforms/test_opennebula.py::"
    "test_after_a_failed_migration_the_source_serves_and_the_target_can_be_cleaned",
    "platforms/test_opennebula.py::"
    "test_after_a_crash_without_clean_the_next_guest_is_served_and_its_clean_removes_all",
)
LIBVIRT = (
    "platforms/test_libvirt.py::test_a_guest_on_a_network_starts_and_shuts_down_and_the_network_stops",
    "platforms/test_libvirt.py::test_a_guest_is_served_after_restore_and_after_migration",
    "platforms/test_libvirt.py::test_attaching_a_nic_brings_its_bridge_up_and_detaching_takes_it_down",
    "platforms/test_libvirt.py::test_a_migration_that_fails_leaves_nothing",
    "platforms/test_libvirt.py::test_a_guest_that_shuts_down_or_crashes_leaves_nothing",
)
PROXMOX = (
    "platforms/test_proxmox.py::test_a_virtual_machine_starts_and_stops",
    "platforms/test_proxmox.py::test_a_migrated_guest_is_served_here_and_leaves_nothing_when_it_leaves",
    "platforms/test_proxmox.py::test_a_migration_that_fails_leaves_nothing",
    "platforms/test_proxmox.py::test_gc_removes_what_a_guest_without_post_stop_leaves",
    "platforms/test_proxmox.py::test_a_guest_is_served_when_it_starts_again_after_a_crash",
)
# Who gets which frames, and what the host shares: docs/security.md has the tables.
FRAMES = (
    "bridge/test_isolation.py::test_the_frames_of_a_guest_arrive_where_the_table_says_and_nowhere_else",
    "bridge/test_isolation.py::test_the_same_frames_from_behind_an_uplink_reach_no_service",
    "bridge/test_isolation.py::test_a_port_that_was_attached_a_moment_ago_can_claim_nothing",
)
IPV6 = (
    "bridge/test_isolation_ipv6.py::"
    "test_the_ipv6_frames_of_a_guest_arrive_where_the_table_says_and_nowhere_else",
    "bridge/test_isolation_ipv6.py::test_the_same_ipv6_frames_from_behind_an_uplink_reach_no_service",
    "bridge/test_ipv6.py",
    "bridge/test_service_addresses.py::test_only_our_port_can_claim_the_address",
    "bridge/test_service_addresses.py::test_requests_for_the_address_go_to_our_port_alone",
    "bridge/test_service_addresses.py::test_a_bridge_without_the_address_is_left_alone",
    "datapath/test_datagrams_ipv6.py::test_datagrams_of_all_sizes_arrive_whole_in_both_directions",
)
SHARED = (
    "daemon/test_host_resources.py::test_local_ports_towards_an_endpoint_run_out_for_that_endpoint_only",
    "daemon/test_host_resources.py::"
    "test_connections_that_a_guest_does_not_read_hold_no_more_memory_than_the_host_allows",
    "daemon/test_host_resources.py::test_no_connection_is_tracked_because_of_our_rules",
    "daemon/test_host_resources.py::"
    "test_a_host_that_tracks_connections_tracks_those_to_endpoints_and_none_of_guests",
    "daemon/test_log.py::test_a_guest_cannot_fill_the_log_with_connections_and_all_are_counted",
)
ISOLATION = (*FRAMES, *SHARED, *IPV6)
HOOKLESS = ("watch/test_guests.py::test_a_bridge_is_up_while_it_has_guests",)


def missing() -> list[str]:
    """The tests named above that do not exist."""
    return [
        each
        for each in (*KERNEL, *ISOLATION, *OPENNEBULA, *LIBVIRT, *PROXMOX, *HOOKLESS)
        if "::" in each and f"\ndef {_function(each)}(" not in _source(each)
    ]


def _function(test: str) -> str:
    return test.partition("::")[2].partition("[")[0]


def _source(test: str) -> str:
    path = ROOT / "tests/netns" / test.partition("::")[0]
    return path.read_text() if path.exists() else ""
