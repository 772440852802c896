"""The names derived from a bridge, and which names and addresses are refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.errors import BadName
from tproxy.model import Endpoint, Network
from tproxy.names import INTERFACE_NAME_BYTES, BridgeNames, check_interface_name

ALPHABET = "abcXYZ0189_-."
bridges = st.text(ALPHABET, min_size=1, max_size=INTERFACE_NAME_BYTES).filter(
    lambda name: name not in (".", "..")
)
longest_bridges = st.text(ALPHABET, min_size=INTERFACE_NAME_BYTES, max_size=INTERFACE_NAME_BYTES)


def test_a_bridge_gives_the_names_of_the_contract() -> None:
    names = BridgeNames("br0")
    assert names.namespace == "one_tproxy_br0"
    assert names.veth_bridge == "br0b"
    assert names.veth_namespace == "br0a"
    assert names.map == "ep_br0"
    assert names.arp_guard == "ch_br0"
    assert names.relay_title == "one_tproxy_br0"
    assert names.relay_log == "one_tproxy_br0.log"


def test_a_dot_in_a_vlan_bridge_is_an_ordinary_character() -> None:
    names = BridgeNames("onebr0.1234")
    assert names.veth_bridge == "onebr0.1234b"
    assert names.map == "ep_onebr0.1234"


def test_a_bridge_of_14_bytes_leaves_room_for_one_letter() -> None:
    assert BridgeNames("a" * 14).veth_bridge == "a" * 14 + "b"


def test_a_bridge_of_15_bytes_gets_derived_veth_names_and_keeps_the_rest() -> None:
    bridge = "onebr-tenant-42"
    names = BridgeNames(bridge)
    # As literals: these names are in use on hosts, and another version must find them again.
    assert names.veth_bridge == "tp2c62f03f4191b"
    assert names.veth_namespace == "tp2c62f03f4191a"
    assert names.namespace == f"one_tproxy_{bridge}"
    assert names.map == f"ep_{bridge}"
    assert names.relay_title == f"one_tproxy_{bridge}"


@given(bridges)
def test_veth_names_always_fit_an_interface_and_differ(bridge: str) -> None:
    names = BridgeNames(bridge)
    for veth in (names.veth_bridge, names.veth_namespace):
        assert check_interface_name(veth) == veth
    assert len({bridge, names.veth_bridge, names.veth_namespace}) == 3


@given(st.lists(longest_bridges, unique=True, min_size=2, max_size=2))
def test_bridges_with_different_long_names_have_different_veths(pair: list[str]) -> None:
    one, other = map(BridgeNames, pair)
    assert one.veth_bridge != other.veth_bridge


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "br 0",
        "br0\n",
        "br/0",
        "br@eth0",
        "br:0",
        "br;0",
        'br"0',
        "br\x00",
        "brü",
        "br٣",  # a digit, but not an ASCII one
        "a" * 16,
        "ü" * 8,  # 8 characters, 16 bytes
        "br\udc80",
    ],
)
def test_a_name_that_the_kernel_or_nftables_does_not_allow_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(BadName) as refusal:
        BridgeNames(name)
    assert re.fullmatch(r"[ -~]+", str(refusal.value))


def test_a_refusal_says_what_has_the_name() -> None:
    with pytest.raises(BadName, match="uplink name"):
        check_interface_name("eth 0", "uplink")


def test_an_endpoint_is_an_address_and_prints_as_address_and_port() -> None:
    assert str(Endpoint("10.11.12.13", 5030)) == "10.11.12.13:5030"
    assert str(Endpoint("fd00::1", 5030)) == "[fd00::1]:5030"


@pytest.mark.parametrize(
    "address",
    ["", "10.1", "0x7f.1", "010.0.0.1", "::01", "FD00::1", "fe80::1%lo", "host", "10.0.0.1\n", "1.2.3.4\x00"],
)
def test_an_endpoint_of_any_other_spelling_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is neither an IP address nor a UNIX socket"):
        Endpoint(address, 80)


def test_the_mac_is_unicast_locally_administered_and_carries_the_service_address() -> None:
    octets = bytes.fromhex(SERVICE_MAC.replace(":", ""))
    assert octets[0] & 0b11 == 0b10
    assert ".".join(map(str, octets[2:])) == SERVICE_ADDRESS


def test_a_network_is_recognised_by_the_stand_in_of_its_long_name() -> None:
    name = "Внутренняя сеть отдела продаж"
    # As a literal: it is in maps on hosts, and another version must recognise it.
    network = Network("blake2s:6de4b5185f752d0bf04e3b14", "7")
    assert network.is_one_of(frozenset({"red", name}))
    assert network.is_one_of(frozenset({"7"}))
    assert not network.is_one_of(frozenset({"red", name + "!"}))
