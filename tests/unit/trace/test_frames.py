"""Frames are taken apart, whatever a guest sends."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.netns.bridge import frames as made
from tests.netns.bridge.frames import ACK, ARP, BROADCAST, ICMP, IPV4, IPV6, NOBODY, SYN, TAG, TCP, UDP
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.trace import frames
from tproxy.trace.frames import Frame, decode

GUEST, MAC = "10.0.0.5", "02:00:0a:00:00:05"


def syn(tags: made.Tags = (), options: bytes = b"") -> bytes:
    segment = made.tcp(GUEST, SERVICE_ADDRESS, (40000, 5030))
    return made.ethernet(
        SERVICE_MAC, MAC, IPV4, made.ipv4(GUEST, SERVICE_ADDRESS, TCP, segment, options=options), tags
    )


def test_a_syn_has_addresses_ports_and_the_macs_of_its_frame() -> None:
    found = decode(syn())
    assert found == Frame(
        frames.TCP, GUEST, SERVICE_ADDRESS, (40000, 5030), SYN, source_mac=MAC, target_mac=SERVICE_MAC
    )
    assert found.is_first
    assert not found.to_group


def test_options_and_tags_are_skipped() -> None:
    found = decode(syn(((TAG, 5),), bytes(8)))
    assert found is not None
    assert (found.ports, found.vlan) == ((40000, 5030), 5)


def test_the_tag_that_the_kernel_keeps_beside_a_frame_counts() -> None:
    found = decode(syn(), 7)
    assert found is not None
    assert found.vlan == 7


def test_an_answer_to_a_syn_is_not_the_first() -> None:
    segment = made.tcp(SERVICE_ADDRESS, GUEST, (5030, 40000), flags=SYN | ACK)
    found = decode(made.ethernet(MAC, SERVICE_MAC, IPV4, made.ipv4(SERVICE_ADDRESS, GUEST, TCP, segment)))
    assert found is not None
    assert not found.is_first


def test_arp_has_who_asks_for_whom() -> None:
    found = decode(made.ethernet(BROADCAST, MAC, ARP, made.arp(1, (MAC, GUEST), (NOBODY, SERVICE_ADDRESS))))
    assert found is not None
    assert (found.kind, found.source, found.target, found.asks, found.claimed) == (
        *(frames.ARP, GUEST, SERVICE_ADDRESS),
        *(True, MAC),
    )
    assert found.to_group


def test_neighbour_discovery_has_what_it_is_about() -> None:
    about = socket.inet_pton(socket.AF_INET6, SERVICE_ADDRESS_IPV6)
    option = b"\x02\x01" + made.mac_bytes(SERVICE_MAC)
    told = made.icmpv6(SERVICE_ADDRESS_IPV6, "fe80::1", 136, bytes(4) + about + option)
    found = decode(made.ethernet(MAC, SERVICE_MAC, IPV6, made.ipv6(SERVICE_ADDRESS_IPV6, "fe80::1", told)))
    assert found is not None
    assert (found.kind, found.source, found.asks) == (frames.DISCOVERY, SERVICE_ADDRESS_IPV6, False)
    assert found.claimed == SERVICE_MAC


def test_a_refusal_belongs_to_the_packets_that_it_answers() -> None:
    asked = made.ipv4(GUEST, SERVICE_ADDRESS, UDP, made.udp(GUEST, SERVICE_ADDRESS, (40000, 53), b"?"))
    said = made.ipv4(SERVICE_ADDRESS, GUEST, ICMP, made.icmp(3, 3, bytes(4), asked[:28]))
    found = decode(made.ethernet(MAC, SERVICE_MAC, IPV4, said))
    assert found is not None
    assert (found.kind, found.source, found.target, found.ports) == (
        *(frames.REFUSAL, SERVICE_ADDRESS),
        *(GUEST, (53, 40000)),
    )


@pytest.mark.parametrize("length", range(54))
def test_a_frame_that_is_cut_off_is_no_error(length: int) -> None:
    decode(syn()[:length])


@given(st.binary(max_size=120))
def test_any_bytes_are_no_error(data: bytes) -> None:
    decode(data)
    for kind in (ARP, IPV4, IPV6, TAG):
        decode(bytes(12) + kind.to_bytes(2, "big") + data)
