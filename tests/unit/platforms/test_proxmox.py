"""Proxmox VE: the NICs in a guest's configuration, and the calls that phases ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.platforms.calls import Call, Down, Fault, Refusal, Up
from tproxy.platforms.proxmox import Kind, Nic, guest_calls, nics

MACS = frozenset({"bc:24:11:5a:0f:31"})


def calls(phase: str, *found: Nic, **kinds: Kind) -> list[Call]:
    return list(guest_calls("100", phase, list(found), lambda name: kinds.get(name, Kind.PLAIN)))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("net0: virtio=BC:24:11:5A:0F:31,bridge=vmbr0", [Nic(0, "vmbr0", "", MACS)]),
        (
            "net31: virtio=BC:24:11:5A:0F:31,bridge=vmbr0,tag=100,firewall=1",
            [Nic(31, "vmbr0", "100", MACS, True)],
        ),
        ("net1: name=eth1,bridge=vnet7,hwaddr=BC:24:11:5A:0F:31,type=veth", [Nic(1, "vnet7", "", MACS)]),
        ("net0: bridge=vmbr0,e1000=BC:24:11:5A:0F:31,link_down=1\r", [Nic(0, "vmbr0", "", MACS)]),
        ("net0:bridge=vmbr0", [Nic(0, "vmbr0", "")]),
        ("net0: virtio=BC:24:11:5A:0F:31", []),  # QEMU's own user-mode network
        ("net0: virtio=BC:24:11:5A:0F:31,bridge=", []),
        ("#net0: bridge=vmbr0", []),
        (" net0: bridge=vmbr0", []),
        ("subnet0: bridge=vmbr0", []),
        ("net: bridge=vmbr0", []),
        ("", []),
    ],
)
def test_nics_of_a_configuration(line: str, found: list[Nic]) -> None:
    assert nics(f"memory: 512\n{line}\nname: web\n") == found


def test_pending_changes_and_snapshots_do_not_count() -> None:
    assert nics("net0: bridge=vmbr0\n\n[PENDING]\nnet1: bridge=vmbr1\n[snap]\nnet2: bridge=vmbr2\n") == [
        Nic(0, "vmbr0", "")
    ]


@given(st.text())
def test_any_text_can_be_read_as_a_configuration(text: str) -> None:
    assert all(nic.bridge for nic in nics(text))
    assert all(nic.bridge for nic in nics(f"net0: {text}"))


def test_starting_phases_bring_bridges_up_and_post_stop_takes_them_down() -> None:
    nic = Nic(0, "vmbr0", "")
    assert calls("pre-start", nic) == [Up("vmbr0", "vmbr0")]
    assert calls("post-start", nic) == [Up("vmbr0", "vmbr0")]
    assert calls("post-stop", nic) == [Down("vmbr0", frozenset({"tap100i0", "veth100i0", "fwpr100p0"}))]


def test_each_call_names_the_mac_of_its_nic() -> None:
    nic = Nic(0, "vmbr0", "", MACS)
    (up,) = calls("pre-start", nic)
    assert isinstance(up, Up)
    (down,) = calls("post-stop", nic)
    assert isinstance(down, Down)
    assert up.nics == down.nics
    assert up.nics.macs == MACS


@pytest.mark.parametrize(
    ("firewall", "ports"),
    [(False, {"tap100i1", "veth100i1"}), (True, {"fwpr100p1"})],
    ids=["plain", "firewall"],
)
def test_each_call_names_the_ports_behind_which_its_nic_can_be(firewall: bool, ports: set[str]) -> None:
    (up,) = calls("post-start", Nic(1, "vmbr0", "", MACS, firewall))
    assert isinstance(up, Up)
    assert up.nics.ports == {(port, mac) for port in ports for mac in MACS}


def test_the_firewall_of_a_nic_is_known_from_its_line() -> None:
    (plain, walled) = nics(
        "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nnet1: name=eth1,bridge=vmbr0,firewall=1"
    )
    assert (plain.firewall, walled.firewall) == (False, True)


def test_ports_of_the_ended_guest_itself_do_not_keep_its_bridges_up() -> None:
    (first, second) = calls("post-stop", Nic(0, "vmbr0", ""), Nic(3, "vmbr1", ""))
    assert isinstance(first, Down)
    assert isinstance(second, Down)
    assert first.gone == second.gone
    assert {"tap100i0", "tap100i3"} < first.gone


def test_a_vlan_on_a_plain_bridge_has_its_own_bridge_which_proxmox_makes_after_pre_start() -> None:
    nic = Nic(0, "vmbr0", "100")
    assert calls("pre-start", nic, vmbr0v100=Kind.MISSING) == []
    assert calls("pre-start", nic) == [Up("vmbr0v100", "vmbr0v100")]
    # Now the bridge must exist, and the call will report that it does not.
    assert calls("post-start", nic, vmbr0v100=Kind.MISSING) == [Up("vmbr0v100", "vmbr0v100")]


def test_a_vlan_of_a_vlan_aware_bridge_is_refused_once_for_each_start() -> None:
    nic = Nic(0, "vmbr0", "100")
    asked = {
        phase: calls(phase, nic, vmbr0=Kind.VLAN_AWARE) for phase in ("pre-start", "post-start", "post-stop")
    }
    assert [type(call) for call in asked["pre-start"]] == [Refusal]
    assert asked["post-start"] == asked["post-stop"] == []
    assert calls("pre-start", Nic(0, "vmbr0", ""), vmbr0=Kind.VLAN_AWARE) == [Up("vmbr0", "vmbr0")]


def test_open_vswitch_is_refused_once_for_each_start() -> None:
    for nic in (Nic(0, "vmbr0", ""), Nic(0, "vmbr0", "100")):
        asked = [calls(phase, nic, vmbr0=Kind.OTHER) for phase in ("pre-start", "post-start", "post-stop")]
        assert [[type(call) for call in each] for each in asked] == [[Refusal], [], []]


@pytest.mark.parametrize(
    "nic",
    [
        Nic(0, "../x", ""),
        Nic(0, "a;b", ""),
        Nic(0, "vmbr0", "x"),
        Nic(0, "vmbr0", "0"),
        Nic(0, "n" * 13, "10"),
    ],
)
def test_an_invalid_nic_is_a_fault_and_the_others_are_served(nic: Nic) -> None:
    assert [type(call) for call in calls("pre-start", nic, Nic(1, "vmbr1", ""))] == [Fault, Up]
