"""Programs of classic BPF (socket(7), SO_ATTACH_FILTER): which frames the kernel shows to a trace. Pure.

Theory of operation. A trace must not see the bytes of connections, only what begins and ends them. So a
program lets pass what concerns a service address and is ARP, neighbour discovery, UDP, ICMP, or a TCP segment
with SYN, FIN or RST. With guests it lets only theirs pass: what has one of their MACs in its Ethernet
header, or one of their addresses where the service has the other. The kernel keeps an outer VLAN tag beside a
frame, so that all offsets are those of an untagged one; frames with two tags are not shown.

The program decides coarsely, for speed. Who reads the frames looks again.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

# The longest headers: Ethernet, IP with options or IPv6, TCP; and for ICMP the packet that it is about.
SNAP = 160

# BPF_LD|W|ABS, LD|H|ABS, LD|B|ABS, LD|B|IND, LDX|B|MSH, ST, LD|MEM, JMP|JA, JMP|JEQ|K, JMP|JSET|K, RET|K
_WORD, _HALF, _BYTE, _BYTE_AT, _HEADER = 0x20, 0x28, 0x30, 0x50, 0xB1
_STORE, _RECALL, _JUMP, _EQUAL, _ANY_BIT, _RETURN = 0x02, 0x60, 0x05, 0x15, 0x45, 0x06

_ENDS = 0x07  # FIN, SYN, RST
_IP = 14  # where the packet begins


class _Step(NamedTuple):
    """An instruction. ``yes`` and ``no`` are labels, and "" is the next one; a jump goes to ``yes``."""

    code: int
    value: int = 0
    yes: str = ""
    no: str = ""


_Code = list[_Step | str]  # a text is a label


def program(addresses: Collection[str], guests: Collection[str] = (), macs: Collection[str] = ()) -> bytes:
    """The program for these service addresses, and guests' addresses and MACs; without any, all pass."""
    service = [_ipv4(each) for each in sorted(addresses) if ":" not in each]
    ipv6 = [socket.inet_pton(socket.AF_INET6, each) for each in sorted(addresses) if ":" in each]
    others = [_ipv4(each) for each in sorted(guests) if ":" not in each]
    code: _Code = [
        _Step(_HALF, 12),
        _Step(_EQUAL, 0x0806, "arp"),
        _Step(_EQUAL, 0x0800, "ipv4"),
        _Step(_EQUAL, 0x86DD, "ipv6", "reject"),
        "arp",
        *_either(_IP + 24, _IP + 14, service, "arp-guest"),
        "arp-guest",
        *_guest("arp-theirs", others, macs),
        "arp-theirs",
        _Step(_JUMP, yes="pass"),
        "ipv4",
        *_either(_IP + 16, _IP + 12, service, "ipv4-guest"),
        "ipv4-guest",
        *_guest("ipv4-theirs", others, macs),
        "ipv4-theirs",
        _Step(_BYTE, _IP + 9),
        _Step(_EQUAL, socket.IPPROTO_TCP, "", "pass"),
        _Step(_HALF, _IP + 6),
        _Step(_ANY_BIT, 0x1FFF, "pass"),  # a later fragment
        _Step(_HEADER, _IP),
        _Step(_BYTE_AT, _IP + 13),
        _Step(_ANY_BIT, _ENDS, "pass", "reject"),
        "ipv6",
        *_ipv6_code(ipv6),
        "ipv6-guest",
        *_guest("ipv6-theirs", [], macs, anybody=bool(guests)),
        "ipv6-theirs",
        _Step(_BYTE, _IP + 6),
        _Step(_EQUAL, socket.IPPROTO_TCP, "", "pass"),
        _Step(_BYTE, _IP + 40 + 13),
        _Step(_ANY_BIT, _ENDS, "pass", "reject"),
        "pass",
        _Step(_RETURN, SNAP),
        "reject",
        _Step(_RETURN, 0),
    ]
    return _assemble(code)


def _either(target: int, source: int, addresses: list[int], there: str) -> _Code:
    """Go on where one of two words is a service address, with the other one in the memory."""
    code: _Code = []
    for here, other in ((target, source), (source, target)):
        label = f"{there}-{here}"
        code.append(_Step(_WORD, here))
        code += [_Step(_EQUAL, each, label) for each in addresses]
        code += [_Step(_JUMP, yes=f"{label}-not"), label, _Step(_WORD, other), _Step(_STORE, 0)]
        code += [_Step(_JUMP, yes=there), f"{label}-not"]
    return [*code, _Step(_JUMP, yes="reject")]


def _guest(there: str, guests: list[int], macs: Collection[str], *, anybody: bool = False) -> _Code:
    """Go on where the frame is of one of the guests; their address is in the memory."""
    if anybody or not (guests or macs):
        return [_Step(_JUMP, yes=there)]
    # The kernel refuses a program that reads the memory where nothing was stored.
    code: _Code = [_Step(_RECALL, 0)] if guests else []
    code += [_Step(_EQUAL, each, there) for each in guests]
    for number, mac in enumerate(sorted(macs)):
        packed = bytes.fromhex(mac.replace(":", ""))
        for at in (6, 0):  # from it, to it
            label = f"{there}-{number}-{at}"
            code += [
                _Step(_WORD, at),
                _Step(_EQUAL, int.from_bytes(packed[:4], "big"), "", label),
                _Step(_HALF, at + 4),
                _Step(_EQUAL, int.from_bytes(packed[4:], "big"), there),
                label,
            ]
    return [*code, _Step(_JUMP, yes="reject")]


def _ipv6_code(addresses: list[bytes]) -> _Code:
    """Go on where the last word of target, source, or what neighbour discovery is about is a service's."""
    code: _Code = []
    for number, each in enumerate(addresses):
        last, label = int.from_bytes(each[12:], "big"), f"ipv6-{number}"
        code += [
            _Step(_WORD, _IP + 36),
            _Step(_EQUAL, last, "ipv6-guest"),
            _Step(_WORD, _IP + 20),
            _Step(_EQUAL, last, "ipv6-guest"),
            _Step(_BYTE, _IP + 6),
            _Step(_EQUAL, socket.IPPROTO_ICMPV6, "", label),
            _Step(_WORD, _IP + 60),
            _Step(_EQUAL, last, "ipv6-guest"),
            label,
        ]
    return [*code, _Step(_JUMP, yes="reject")]


def _assemble(code: _Code) -> bytes:
    """The instructions. Conditions jump by a JA behind them, which reaches farther than their 255 steps."""
    labels: dict[str, int] = {}
    steps: list[tuple[int, int, int, int | str]] = []
    for each in code:
        if isinstance(each, str):
            labels[each] = len(steps)
        elif each.code == _JUMP:
            steps.append((_JUMP, 0, 0, each.yes))
        elif each.code in (_EQUAL, _ANY_BIT):
            steps.append((each.code, 0 if each.yes else 1, 1 if each.yes else 0, each.value))
            steps += [(_JUMP, 0, 0, name) for name in (each.yes, each.no) if name]
        else:
            steps.append((each.code, 0, 0, each.value))
    return b"".join(
        struct.pack("HBBI", kind, yes, no, labels[value] - at - 1 if isinstance(value, str) else value)
        for at, (kind, yes, no, value) in enumerate(steps)
    )


def _ipv4(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")
