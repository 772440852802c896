"""Ethernet frames from their parts, as freely as a guest can forge them. Pure."""

from __future__ import annotations

import socket
import struct

BROADCAST, NOBODY = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
ARP, IPV4, IPV6, LLDP, EAPOL, EXPERIMENT = 0x0806, 0x0800, 0x86DD, 0x88CC, 0x888E, 0x88B5
TAG, SERVICE_TAG = 0x8100, 0x88A8  # 802.1Q, 802.1ad
TAGS = frozenset({TAG, SERVICE_TAG, 0x9100})
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, ACK = 0x02, 0x10
MORE_FRAGMENTS = 0x2000

Tags = tuple[tuple[int, int], ...]  # protocol and VLAN, from the outside


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> bytes:
    """The checksum of the Internet protocols, RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", 0xFFFF - total)


def ethernet(target: str, source: str, protocol: int, payload: bytes, tags: Tags = ()) -> bytes:
    words = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return mac_bytes(target) + mac_bytes(source) + words + struct.pack("!H", protocol) + payload


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str], hardware: int = 1) -> bytes:
    """An ARP packet, RFC 826. Sender and target are MAC and address."""
    hosts = b"".join(mac_bytes(mac) + socket.inet_aton(address) for mac, address in (sender, target))
    return struct.pack("!HHBBH", hardware, IPV4, 6, 4, operation) + hosts


def ipv4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    number: int = 1,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet, RFC 791. ``fragment``: MORE_FRAGMENTS, and the offset in units of 8 bytes."""
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4
    total = 4 * words + len(payload)
    start = struct.pack("!BBHHHBB", 0x40 | words, 0, total, number, fragment, ttl, protocol)
    rest = socket.inet_aton(source) + socket.inet_aton(target) + options
    return start + checksum(start + bytes(2) + rest) + rest + payload


def tcp(source: str, target: str, ports: tuple[int, int], payload: bytes = b"", flags: int = SYN) -> bytes:
    """A TCP segment, RFC 9293, between these addresses."""
    segment = struct.pack("!HHIIBBHHH", *ports, 0x10000000, 0, 5 << 4, flags, 64000, 0, 0) + payload
    return segment[:16] + checksum(_pseudo(source, target, TCP, len(segment)) + segment) + segment[18:]


def udp(source: str, target: str, ports: tuple[int, int], payload: bytes) -> bytes:
    """A UDP datagram, RFC 768, between these addresses."""
    datagram = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    return datagram[:6] + checksum(_pseudo(source, target, UDP, len(datagram)) + datagram) + datagram[8:]


def icmp(kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    """An ICMP message, RFC 792. ``rest`` is the second word of its header."""
    message = struct.pack("!BBH", kind, code, 0) + rest + payload
    return message[:2] + checksum(message) + message[4:]


def ipv6(source: str, target: str, payload: bytes, following: int = 58, hops: int = 255) -> bytes:
    """An IPv6 packet, RFC 8200."""
    header = struct.pack("!IHBB", 6 << 28, len(payload), following, hops)
    return (
        header
        + socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, target)
        + payload
    )


def icmpv6(source: str, target: str, kind: int, rest: bytes) -> bytes:
    """An ICMPv6 message, RFC 4443, between these addresses."""
    message = struct.pack("!BBH", kind, 0, 0) + rest
    return message[:2] + checksum(_pseudo(source, target, ICMPV6, len(message)) + message) + message[4:]


def behind(packet: bytes, kind: int, rest: bytes) -> bytes:
    """An IPv6 packet with one more header before its payload. ``rest`` is that header without its first byte.

    Sources: RFC 8200, 4.3 to 4.6. A fragment header is 44, hop-by-hop options are 0, those for the
    destination 60, and a routing header is 43.
    """
    added = packet[6:7] + rest
    length = int.from_bytes(packet[4:6], "big") + len(added)
    return packet[:4] + length.to_bytes(2, "big") + bytes([kind]) + packet[7:40] + added + packet[40:]


def fragments6(packet: bytes, number: int, *cuts: int) -> list[bytes]:
    """The IPv6 packet in fragments that begin at these offsets of its payload, multiples of 8, and at 0."""
    payload, ends = packet[40:], (*cuts, None)
    return [
        behind(
            packet[:4] + len(payload[start:end]).to_bytes(2, "big") + packet[6:40] + payload[start:end],
            44,
            b"\0" + struct.pack("!HI", start | (end is not None), number),
        )
        for start, end in zip((0, *cuts), ends, strict=True)
    ]


def _pseudo(source: str, target: str, protocol: int, length: int) -> bytes:
    """The header over which a checksum goes too."""
    if ":" not in source:
        return socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, protocol, length)
    addresses = (socket.inet_pton(socket.AF_INET6, each) for each in (source, target))
    return b"".join(addresses) + struct.pack("!II", length, protocol)


def content(frame: bytes) -> bytes:
    """The protocol and what follows it, without the addresses and tags of a frame."""
    at = 12
    while int.from_bytes(frame[at : at + 2], "big") in TAGS:
        at += 4
    return frame[at:]
