"""Asks for an IPv6 address by neighbour solicitations (RFC 4861), and hears all answers, as ``arp`` does."""

from __future__ import annotations

import socket
import struct

from tproxy.doctor.probe.arp import Answers, question_and_answers
from tproxy.doctor.probe.ping import checksum

_ETH_P_IPV6 = 0x86DD
_ETHERNET = struct.Struct("!6s6sH")
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6, _SOLICITATION, _ADVERTISEMENT = 58, 135, 136
_SOURCE_LINK, _TARGET_LINK = 1, 2  # options
_HOPS = 255  # no router has forwarded it


def link_local(mac: str) -> str:
    """The address of a link with this MAC (RFC 4291, appendix A)."""
    parts = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([parts[0] ^ 2]) + parts[1:3] + b"\xff\xfe" + parts[3:]
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + identifier)


def solicitation(own_mac: str, own: str, wanted: str) -> bytes:
    """The frame that asks who has ``wanted``, from ``own``."""
    mac, source, target = bytes.fromhex(own_mac.replace(":", "")), _packed(own), _packed(wanted)
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]
    body = bytes(4) + target + bytes([_SOURCE_LINK, 1]) + mac
    head = struct.pack("!BBH", _SOLICITATION, 0, 0)
    pseudo = source + group + struct.pack("!II", len(head + body), _ICMPV6)
    message = struct.pack("!BBH", _SOLICITATION, 0, checksum(pseudo + head + body)) + body
    return (
        _ETHERNET.pack(b"\x33\x33" + group[12:], mac, _ETH_P_IPV6)
        + _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOPS, source, group)
        + message
    )


def answerer(frame: bytes, own: str, wanted: str) -> str:
    """The MAC that the frame says ``wanted`` is at, in answer to ``own``; "" for any other frame."""
    at = _ETHERNET.size + _IPV6.size
    if len(frame) < at + 32:
        return ""
    _, _, protocol = _ETHERNET.unpack_from(frame)
    _, _, following, hops, _, target = _IPV6.unpack_from(frame, _ETHERNET.size)
    kind, about, option = frame[at], frame[at + 8 : at + 24], frame[at + 24 : at + 26]
    fits = (protocol, following, hops, kind) == (_ETH_P_IPV6, _ICMPV6, _HOPS, _ADVERTISEMENT)
    if not fits or (target, about) != (_packed(own), _packed(wanted)) or option != bytes([_TARGET_LINK, 1]):
        return ""
    return frame[at + 26 : at + 32].hex(":")


def ask(link: str, own_mac: str, own: str, wanted: str) -> Answers:
    """Ask on a link of this thread's namespace, up to three times. Raises OSError."""
    question = solicitation(own_mac, own, wanted)
    return question_and_answers(link, _ETH_P_IPV6, question, lambda frame: answerer(frame, own, wanted))


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)
