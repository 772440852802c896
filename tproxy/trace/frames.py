"""The frames of which a trace tells, taken apart: ARP, neighbour discovery, TCP, UDP, and ICMP errors. Pure.

A frame may be cut off behind its headers. What cannot be read is None, never an error: guests send anything.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

ARP, DISCOVERY, TCP, UDP, REFUSAL, OTHER = "arp", "nd", "tcp", "udp", "refusal", "other"

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_ETHER_ARP, _ETHER_IPV4, _ETHER_IPV6, _TAGS = 0x0806, 0x0800, 0x86DD, (0x8100, 0x88A8)
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_UNREACHABLE, _UNREACHABLE_IPV6, _SOLICITATION, _ADVERTISEMENT = 3, 1, 135, 136
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_REQUEST = 1
_ETHERNET = 14
_IPV6 = 40


class Frame(NamedTuple):
    """A frame. ``vlan`` is 0 without a tag, and with a priority tag.

    Of ARP and neighbour discovery, ``source`` is the address of the asker, or the one that is claimed, and
    ``target`` the one that is asked for, or that is told; ``asks`` says which. ``claimed`` is the MAC inside.

    Of a refusal (ICMP, unreachable) addresses and ports are those of a packet from service to guest, so that
    it belongs to the packets that it answers.
    """

    kind: str
    source: str
    target: str
    ports: tuple[int, int] = (0, 0)
    flags: int = 0
    asks: bool = False
    claimed: str = ""
    source_mac: str = ""
    target_mac: str = ""
    vlan: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it asks for a TCP connection."""
        return self.kind == TCP and self.flags & (SYN | ACK) == SYN

    @property
    def to_group(self) -> bool:
        """Whether it is for several receivers (the group bit of IEEE 802)."""
        return bool(self.target_mac) and bool(int(self.target_mac[:2], 16) & 1)


def decode(data: bytes, vlan: int = 0) -> Frame | None:
    """Take an Ethernet frame apart. ``vlan``: of the tag that the kernel keeps beside the frame."""
    if len(data) < _ETHERNET:
        return None
    kind, at = int.from_bytes(data[12:14], "big"), _ETHERNET
    while kind in _TAGS and len(data) >= at + 4:
        vlan = vlan or int.from_bytes(data[at : at + 2], "big") & 0x0FFF
        kind, at = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
    found = packet(data[at:], kind)
    if found is None:
        return None
    return found._replace(target_mac=data[:6].hex(":"), source_mac=data[6:12].hex(":"), vlan=vlan)


def packet(data: bytes, kind: int = 0) -> Frame | None:
    """Take a packet apart; ``kind`` is its EtherType, or 0: it is IP."""
    version = data[0] >> 4 if data else 0
    if kind == _ETHER_ARP:
        return _arp(data)
    if kind in (0, _ETHER_IPV4) and version == 4:
        return _ipv4(data)
    if kind in (0, _ETHER_IPV6) and version == 6:
        return _ipv6(data)
    return None


def _arp(data: bytes) -> Frame | None:
    if len(data) < _ARP.size:
        return None
    _, protocol, _, length, operation, mac, sender, _, target = _ARP.unpack_from(data)
    if (protocol, length) != (_ETHER_IPV4, 4):
        return None
    source, asked = socket.inet_ntoa(sender), socket.inet_ntoa(target)
    return Frame(ARP, source, asked, asks=operation == _ARP_REQUEST, claimed=mac.hex(":"))


def _ipv4(data: bytes) -> Frame | None:
    if len(data) < 20:
        return None
    length = (data[0] & 0x0F) * 4
    source, target = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    if int.from_bytes(data[6:8], "big") & 0x1FFF:  # not the first fragment: it has no ports
        return Frame(OTHER, source, target)
    return _above_ip(data[9], source, target, data[length:])


def _ipv6(data: bytes) -> Frame | None:
    if len(data) < _IPV6:
        return None
    source = socket.inet_ntop(socket.AF_INET6, data[8:24])
    target = socket.inet_ntop(socket.AF_INET6, data[24:40])
    following, content = data[6], data[_IPV6:]
    if following == _ICMPV6 and len(content) >= 24 and content[0] in (_SOLICITATION, _ADVERTISEMENT):
        about = socket.inet_ntop(socket.AF_INET6, content[8:24])
        if content[0] == _ADVERTISEMENT:
            return Frame(DISCOVERY, about, target, claimed=_link_address(content[24:], 2))
        return Frame(DISCOVERY, source, about, asks=True, claimed=_link_address(content[24:], 1))
    return _above_ip(following, source, target, content)


def _above_ip(protocol: int, source: str, target: str, content: bytes) -> Frame:
    if protocol in (_TCP, _UDP) and len(content) >= 4:
        ports = struct.unpack_from("!HH", content)
        if protocol == _UDP:
            return Frame(UDP, source, target, ports)
        if len(content) >= 14:
            return Frame(TCP, source, target, ports, content[13])
    refused = {_ICMP: _UNREACHABLE, _ICMPV6: _UNREACHABLE_IPV6}.get(protocol)
    if refused is not None and content[:1] == bytes([refused]):
        inner = packet(content[8:])
        if inner is not None and inner.kind in (TCP, UDP):
            return Frame(REFUSAL, inner.target, inner.source, (inner.ports[1], inner.ports[0]))
    return Frame(OTHER, source, target)


def _link_address(options: bytes, wanted: int) -> str:
    """The MAC in an option of neighbour discovery (RFC 4861, 4.6.1); "" without one."""
    while len(options) >= 8 and options[1]:
        if options[0] == wanted:
            return options[2:8].hex(":")
        options = options[options[1] * 8 :]
    return ""
