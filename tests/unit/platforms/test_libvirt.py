"""libvirt: the NICs and networks in its XML, and the calls that its operations ask for."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.bridge.members import Nics
from tproxy.platforms import document
from tproxy.platforms.calls import Call, Down, Fault, Refusal, Up
from tproxy.platforms.document import BadDocument
from tproxy.platforms.libvirt import (
    GUEST_DOWN,
    GUEST_UP,
    NetworkState,
    Nic,
    guest_calls,
    network_calls,
    network_state,
    nics,
)

ON_BRIDGE = Nic("br0", "", "vnet0", False)
ON_NETWORK = Nic("", "blue", "vnet1", False)
PLUGGED = Nic("virbr0", "blue", "vnet1", False)
ON_OPEN_VSWITCH = Nic("ovs0", "", "vnet2", True)


def interfaces(xml: str) -> list[Nic]:
    return nics(document.parse(f"<domain><devices>{xml}</devices></domain>".encode(), "domain"))


def calls(operation: str, *found: Nic, remnants: frozenset[str] = frozenset(), **bridges: str) -> list[Call]:
    return list(guest_calls(operation, list(found), bridges, lambda port: port in remnants))


def network(xml: str) -> NetworkState:
    return network_state(document.parse(f"<hookData>{xml}</hookData>".encode(), "hookData"))


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        ("<interface type='bridge'><source bridge='br0'/><target dev='vnet0'/></interface>", ON_BRIDGE),
        ("<interface type='network'><source network='blue'/><target dev='vnet1'/></interface>", ON_NETWORK),
        (
            "<interface type='network'><source network='blue' portid='1' bridge='virbr0'/>"
            "<target dev='vnet1'/></interface>",
            PLUGGED,
        ),
        # As a running guest shows a network that only names a bridge of the host.
        (
            "<interface type='bridge'><source network='blue' portid='1' bridge='virbr0'/>"
            "<target dev='vnet1'/></interface>",
            PLUGGED,
        ),
        (
            "<interface type='bridge'><source bridge='ovs0'/><virtualport type='openvswitch'>"
            "<parameters interfaceid='1'/></virtualport><target dev='vnet2'/></interface>",
            ON_OPEN_VSWITCH,
        ),
        ("<interface type='bridge'><source bridge='br0'/></interface>", Nic("br0", "", "", False)),
    ],
)
def test_nics_on_bridges_are_found(xml: str, found: Nic) -> None:
    assert interfaces(xml) == [found]


@pytest.mark.parametrize(
    "xml",
    [
        "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>",
        "<interface type='user'/>",
        "<interface type='hostdev'><source><address type='pci'/></source></interface>",
        "<interface type='bridge'/>",
        "<interface/>",
        "<controller type='usb'/>",
    ],
)
def test_devices_without_a_port_on_a_bridge_are_left_out(xml: str) -> None:
    assert interfaces(xml) == []


@pytest.mark.parametrize("operation", sorted(GUEST_UP))
def test_a_starting_guest_brings_its_bridges_up(operation: str) -> None:
    assert calls(operation, ON_BRIDGE, PLUGGED) == [Up("br0", "br0"), Up("virbr0", "blue")]
    assert calls(operation, ON_NETWORK, blue="virbr0") == [Up("virbr0", "blue")]


def test_the_network_of_a_bridge_is_known_also_when_the_nic_names_only_the_bridge() -> None:
    assert calls("start", ON_BRIDGE, blue="br0") == [Up("br0", "blue")]


@pytest.mark.parametrize("operation", sorted(GUEST_UP))
def test_a_network_without_a_known_bridge_is_a_fault_only_when_its_guest_is_plugged_in(
    operation: str,
) -> None:
    early = operation in ("prepare", "migrate", "restore")
    assert [type(call) for call in calls(operation, ON_NETWORK)] == ([] if early else [Fault])


@pytest.mark.parametrize("operation", sorted(GUEST_DOWN))
def test_an_ended_guest_takes_its_bridges_down_and_its_closed_ports_do_not_count(
    operation: str,
) -> None:
    assert calls(operation, ON_BRIDGE, PLUGGED, remnants=frozenset({"vnet1", "vnet9"})) == [
        Down("br0", frozenset({"vnet1"})),
        Down("virbr0", frozenset({"vnet1"})),
    ]
    assert calls(operation, ON_NETWORK) == []


def test_open_vswitch_is_refused_once_for_each_start() -> None:
    refused = [operation for operation in GUEST_UP | GUEST_DOWN if calls(operation, ON_OPEN_VSWITCH)]
    assert refused == ["start"]
    assert isinstance(calls("start", ON_OPEN_VSWITCH)[0], Refusal)


def test_the_bridge_comes_from_the_network_or_from_its_port() -> None:
    assert network("<network><name>n</name><bridge name='virbr0'/></network>")[:3] == ("n", "virbr0", False)
    plug = "<networkport><plug type='bridge' bridge='br0'/></networkport>"
    assert network(f"<network><name>n</name></network>{plug}")[:3] == ("n", "br0", False)
    assert network("<network><name>n</name><forward mode='bridge'/></network>")[:3] == ("n", "", False)
    for port in ("<networkport><virtualport type='openvswitch'/></networkport>", ""):
        inside = "" if port else "<virtualport type='openvswitch'/>"
        assert network(f"<network><name>n</name>{inside}</network>{port}").openvswitch


def test_calls_name_the_mac_of_the_nic() -> None:
    macs = frozenset({"52:54:00:00:00:01"})
    nic = PLUGGED._replace(macs=macs)
    (up,) = calls("prepare", nic)
    assert up == Up("virbr0", "blue", Nics(macs))  # there can be a port of this name that is another's
    (up,) = calls("start", nic)
    assert up == Up("virbr0", "blue", Nics(macs, frozenset({(nic.port, "52:54:00:00:00:01")})))
    (down,) = calls("release", nic)
    assert isinstance(down, Down)
    assert down.nics == Nics(macs)
    port = "<networkport><mac address='52:54:00:00:00:01'/></networkport>"
    state = network(f"<network><name>n</name><bridge name='virbr0'/></network>{port}")
    assert list(network_calls("port-created", state)) == [Up("virbr0", "n", Nics(macs))]
    assert list(network_calls("port-deleted", state)) == [Down("virbr0", nics=Nics(macs))]
    mac = "<mac address='52:54:00:00:00:01'/>"
    (found,) = interfaces(f"<interface type='bridge'>{mac}<source bridge='br0'/></interface>")
    assert found.macs == macs


@pytest.mark.parametrize("xml", ["", "<network/>", "<network><name/></network>"])
def test_a_network_without_a_name_is_refused(xml: str) -> None:
    with pytest.raises(BadDocument):
        network(xml)


def test_ports_of_networks_bring_bridges_up_and_down() -> None:
    state = NetworkState("blue", "virbr0", False)
    asked = {
        op: list(network_calls(op, state)) for op in ("started", "port-created", "port-deleted", "stopped")
    }
    assert asked == {
        "started": [],
        "port-created": [Up("virbr0", "blue")],
        "port-deleted": [Down("virbr0")],
        "stopped": [Down("virbr0")],
    }
    assert not list(network_calls("port-created", NetworkState("macvtap", "", False)))
    assert isinstance(next(network_calls("started", NetworkState("ovs", "ovs0", True))), Refusal)
    assert not list(network_calls("port-created", NetworkState("ovs", "ovs0", True)))


@given(st.binary(max_size=200) | st.text("<>/&;!DOCTYPEdomain[]'\" =", max_size=80).map(str.encode))
def test_any_bytes_are_a_document_or_refused_with_a_reason(data: bytes) -> None:
    with suppress(BadDocument):  # and nothing else
        assert document.parse(data, "domain").tag == "domain"


def test_no_entity_is_ever_expanded() -> None:
    bomb = "<!DOCTYPE d [<!ENTITY a 'x'>" + "".join(
        f"<!ENTITY {b} '{f'&{a};' * 50}'>" for a, b in zip("abcdefg", "bcdefgh", strict=False)
    )
    with pytest.raises(BadDocument, match="document type"):
        document.parse(f"{bomb}]><domain>&h;</domain>".encode(), "domain")
