"""Programs for packet sockets, run by the kernel: on a UNIX socket, where they work the same."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

from tests.netns.bridge import frames
from tests.netns.bridge.frames import ACK, ARP, BROADCAST, IPV4, IPV6, NOBODY, SYN, TCP, UDP
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.trace import filters

GUEST, MAC, OTHER = "10.0.0.5", "02:00:0a:00:00:05", "10.0.0.6"
OTHER_MAC = "02:00:0a:00:00:06"
SERVICES = {SERVICE_ADDRESS, "169.254.169.254", SERVICE_ADDRESS_IPV6}
FIN, RST = 0x01, 0x04


def passes(program: bytes, frame: bytes) -> bool:
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        far.setsockopt(socket.SOL_SOCKET, 26, header)  # SO_ATTACH_FILTER
        near.setblocking(False)
        far.setblocking(False)
        try:
            near.send(frame)
            return bool(far.recv(2048))
        except OSError:
            return False


def tcp(
    flags: int,
    source: str = GUEST,
    target: str = SERVICE_ADDRESS,
    mac: str = MAC,
    to: str = SERVICE_MAC,
    options: bytes = b"",
) -> bytes:
    segment = frames.tcp(source, target, (40000, 5030), flags=flags)
    return frames.ethernet(to, mac, IPV4, frames.ipv4(source, target, TCP, segment, options=options))


def udp(source: str = GUEST, target: str = SERVICE_ADDRESS) -> bytes:
    datagram = frames.udp(source, target, (40000, 53), b"question")
    return frames.ethernet(SERVICE_MAC, MAC, IPV4, frames.ipv4(source, target, UDP, datagram))


def arp(operation: int = 1, sender: str = GUEST, target: str = SERVICE_ADDRESS, mac: str = MAC) -> bytes:
    return frames.ethernet(BROADCAST, mac, ARP, frames.arp(operation, (mac, sender), (NOBODY, target)))


def solicitation(about: str) -> bytes:
    body = frames.icmpv6(
        "fe80::1", "ff02::1:ff00:1009", 135, bytes(4) + socket.inet_pton(socket.AF_INET6, about)
    )
    return frames.ethernet("33:33:ff:00:10:09", MAC, IPV6, frames.ipv6("fe80::1", "ff02::1:ff00:1009", body))


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (tcp(SYN), True),
        (tcp(FIN | ACK), True),
        (tcp(RST), True),
        (tcp(ACK), False),
        (tcp(SYN, options=bytes(12)), True),
        (tcp(ACK, options=bytes(12)), False),
        (tcp(SYN, target="169.254.169.254"), True),
        (tcp(SYN | ACK, source=SERVICE_ADDRESS, target=GUEST), True),
        (tcp(SYN, target="10.0.0.9"), False),
        (udp(), True),
        (udp(target="10.0.0.9"), False),
        (arp(), True),
        (arp(2, sender=SERVICE_ADDRESS, target=GUEST), True),
        (arp(target="10.0.0.9"), False),
        (solicitation(SERVICE_ADDRESS_IPV6), True),
        (solicitation("fe80::2"), False),
        (b"short", False),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_what_concerns_a_service_passes_and_the_bytes_of_connections_do_not(
    frame: bytes, expected: bool
) -> None:
    assert passes(filters.program(SERVICES), frame) is expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (tcp(SYN), True),
        (tcp(SYN, source=OTHER), False),
        (tcp(SYN | ACK, source=SERVICE_ADDRESS, target=OTHER), False),
        (arp(), True),
        (arp(sender=OTHER), False),
        (arp(2, sender=SERVICE_ADDRESS, target=GUEST, mac=SERVICE_MAC), True),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_with_an_address_only_the_frames_of_that_guest_pass(frame: bytes, expected: bool) -> None:
    assert passes(filters.program(SERVICES, [GUEST]), frame) is expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (tcp(SYN, source=OTHER), True),
        (tcp(SYN, mac=OTHER_MAC), False),
        (tcp(SYN | ACK, source=SERVICE_ADDRESS, target=GUEST, mac=SERVICE_MAC, to=MAC), True),
        (tcp(SYN | ACK, source=SERVICE_ADDRESS, target=GUEST, mac=SERVICE_MAC, to=OTHER_MAC), False),
        (arp(mac=OTHER_MAC), False),
        (solicitation(SERVICE_ADDRESS_IPV6), True),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_with_a_mac_only_frames_from_it_and_to_it_pass(frame: bytes, expected: bool) -> None:
    assert passes(filters.program(SERVICES, [], [MAC]), frame) is expected


def test_many_addresses_make_a_program_that_the_kernel_accepts() -> None:
    many = {f"169.254.{number}.9" for number in range(200)}
    assert passes(filters.program(many, [GUEST], [MAC]), tcp(SYN, target="169.254.16.9"))
    assert not passes(filters.program(many, [GUEST], [MAC]), tcp(SYN, target="169.254.201.9"))
