"""The frames in the table of docs/security.md, Isolation over IPv6, frame by frame. Pure.

As in ``forged``, with a Cast whose addresses are those of IPv6.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable

from tests.netns.bridge.forged import CLOSED, PORT, PRIORITY_TAGS, STACKED_TAGS, Cast
from tests.netns.bridge.frames import (
    ACK,
    IPV6,
    SYN,
    TCP,
    UDP,
    Tags,
    behind,
    ethernet,
    fragments6,
    icmpv6,
    ipv6,
    mac_bytes,
    tcp,
    udp,
)
from tproxy.addresses import SERVICE_ADDRESS_IPV6 as AT
from tproxy.addresses import SERVICE_MAC

GROUP, GROUP_MAC = "ff02::1:fffe:1009", "33:33:ff:fe:10:09"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
UNREACHABLE, TOO_BIG, ECHO, ECHO_REPLY, LISTENERS = 1, 2, 128, 129, 130
ROUTER, SOLICITATION, ADVERTISEMENT, REDIRECT, NODE_QUESTION = 134, 135, 136, 137, 139
GLOBAL = "2001:db8::5"
HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT = 0, 60, 43, 44
_PADDING = b"\0\x01\x04\0\0\0\0"  # of a header of options: its length, and an option that means nothing
_ATOMIC = b"\0\0\0\0\0\0\x07"  # of a fragment header: the only fragment, RFC 6946


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


def to_us(cast: Cast, *packets: bytes, mac: str = SERVICE_MAC, tags: Tags = ()) -> list[bytes]:
    return [ethernet(mac, cast.me.mac, IPV6, each, tags) for each in packets]


def syn(cast: Cast, source: str = "", target: str = AT, port: int = PORT, flags: int = SYN) -> bytes:
    source = source or cast.me.address
    return ipv6(source, target, tcp(source, target, (cast.port, port), cast.mark, flags), TCP, 64)


def datagram(cast: Cast, source: str = "", port: int = PORT, data: bytes = b"") -> bytes:
    source = source or cast.me.address
    return ipv6(source, AT, udp(source, AT, (cast.port, port), cast.mark + data), UDP, 64)


def ping(cast: Cast, source: str = "", target: str = AT) -> bytes:
    return message(cast, ECHO, cast.mark[:4] + cast.mark, source, target)


def message(cast: Cast, kind: int, rest: bytes, source: str = "", target: str = AT, hops: int = 255) -> bytes:
    """A packet with a message of ICMPv6."""
    source = source or cast.me.address
    return ipv6(source, target, icmpv6(source, target, kind, rest), hops=hops)


def _nonce(cast: Cast) -> bytes:
    """An option of neighbour discovery that changes nothing (RFC 3971), with the Cast's mark."""
    return b"\x0e\x01" + cast.mark[:6]


def solicitation(cast: Cast, source: str = "", target: str = GROUP, hops: int = 255) -> bytes:
    """A packet that asks where the service is; from :: it is about to take the address."""
    link = b"" if source == "::" else b"\x01\x01" + mac_bytes(cast.me.mac)
    body = bytes(4) + packed(AT) + link + _nonce(cast)
    return message(cast, SOLICITATION, body, source, target, hops)


def advertisement(cast: Cast, source: str = "", target: str = ALL_NODES) -> bytes:
    """A packet that says: the service is at my MAC."""
    body = b"\xa0\0\0\0" + packed(AT) + b"\x02\x01" + mac_bytes(cast.me.mac) + _nonce(cast)
    return message(cast, ADVERTISEMENT, body, source, target)


def _asking(cast: Cast, tags: Tags = ()) -> list[bytes]:
    return [
        *to_us(cast, solicitation(cast), mac=GROUP_MAC, tags=tags),
        *to_us(cast, syn(cast), tags=tags),
        *to_us(cast, syn(cast), mac=cast.neighbour.mac, tags=tags),
    ]


def _claims(cast: Cast, change: Callable[[bytes], Iterable[bytes]] = lambda packet: [packet]) -> list[bytes]:
    """Each way to say that the service is at the sender's MAC, to everybody and to the neighbour."""
    packets = [
        advertisement(cast),
        advertisement(cast, AT),
        advertisement(cast, target=cast.neighbour.address),
        solicitation(cast, "::"),
        solicitation(cast, AT),
    ]
    return [
        frame
        for packet in packets
        for changed in change(packet)
        for mac in (ALL_NODES_MAC, cast.neighbour.mac)
        for frame in to_us(cast, changed, mac=mac)
    ]


def _stacked(cast: Cast, stacks: Iterable[Tags]) -> list[bytes]:
    packets = advertisement(cast), solicitation(cast, "::"), ping(cast, AT, cast.neighbour.address)
    return [frame for tags in stacks for frame in to_us(cast, *packets, mac=cast.neighbour.mac, tags=tags)]


def _from_service(cast: Cast) -> list[bytes]:
    target = cast.neighbour.address
    answer = ipv6(AT, target, tcp(AT, target, (PORT, cast.port), cast.mark, SYN | ACK), TCP, 64)
    reply = message(cast, ECHO_REPLY, cast.mark[:4] + cast.mark, AT, target)
    sent = ipv6(AT, target, udp(AT, target, (PORT, cast.port), cast.mark), UDP, 64)
    return to_us(cast, answer, reply, sent, syn(cast, AT, target), mac=cast.neighbour.mac)


def _from(*sources: str) -> Callable[[Cast], list[bytes]]:
    return lambda cast: to_us(
        cast, *(packet for each in sources for packet in (syn(cast, each), ping(cast, each)))
    )


def _about(cast: Cast) -> bytes:
    """What an error says of a packet that the service has sent to the neighbour."""
    target = cast.neighbour.address
    return ipv6(AT, target, tcp(AT, target, (PORT, cast.port), flags=ACK), TCP, 64) + cast.mark


def _router(cast: Cast) -> list[bytes]:
    """A router's advertisement, to everybody and to us, with a prefix and an MTU."""
    prefix = b"\x03\x04\x40\xc0" + b"\xff" * 8 + bytes(4) + packed("2001:db8::")
    mtu = b"\x05\x01\0\0" + struct.pack("!I", 1280)
    body = b"\x40\0\xff\xff" + bytes(8) + b"\x01\x01" + mac_bytes(cast.me.mac) + prefix + mtu + _nonce(cast)
    packet = message(cast, ROUTER, body, target=ALL_NODES)
    return [*to_us(cast, packet, mac=ALL_NODES_MAC), *to_us(cast, packet)]


def _overlapping(cast: Cast) -> list[bytes]:
    """The second fragment says again what the first one said, and more."""
    first, _ = fragments6(datagram(cast, data=bytes(24)), cast.port, 16)
    _, second = fragments6(datagram(cast, data=bytes(24)), cast.port, 8)
    return to_us(cast, first, second)


def _behind_fragment(cast: Cast) -> list[bytes]:
    """UDP to a service port, but behind options that only the first fragment has."""
    return to_us(cast, *fragments6(behind(datagram(cast), DESTINATION, _PADDING), cast.port, 16))


FRAMES_IPV6: dict[str, Callable[[Cast], list[bytes]]] = {
    # What guests do all the time.
    "ask-neighbour": lambda cast: [
        *to_us(cast, solicitation(cast), mac=GROUP_MAC),
        *to_us(cast, solicitation(cast, target=AT)),
    ],
    "ask-tcp": lambda cast: to_us(cast, syn(cast)),
    "ask-udp": lambda cast: to_us(cast, datagram(cast)),
    "ask-fragments": lambda cast: to_us(cast, *fragments6(datagram(cast, data=bytes(24)), cast.port, 16)),
    "ask-ping": lambda cast: to_us(cast, ping(cast)),
    "ask-elsewhere": lambda cast: [
        frame for mac in (cast.neighbour.mac, cast.host.mac) for frame in to_us(cast, syn(cast), mac=mac)
    ],
    "ask-priority": lambda cast: [frame for tags in PRIORITY_TAGS for frame in _asking(cast, tags)],
    "ask-stacked": lambda cast: [frame for tags in STACKED_TAGS for frame in _asking(cast, tags)],
    # Claims to be the service.
    "claim-discovery": _claims,
    "claim-options": lambda cast: _claims(
        cast, lambda packet: [behind(packet, each, _PADDING) for each in (HOP_BY_HOP, DESTINATION)]
    ),
    "claim-fragment": lambda cast: _claims(cast, lambda packet: [behind(packet, FRAGMENT, _ATOMIC)]),
    "claim-pieces": lambda cast: to_us(
        cast, *fragments6(advertisement(cast), cast.port, 8), mac=cast.neighbour.mac
    ),
    "claim-source": _from_service,
    "claim-priority": lambda cast: _stacked(cast, PRIORITY_TAGS),
    "claim-stacked": lambda cast: _stacked(cast, STACKED_TAGS),
    # To our MAC, but not for a service.
    "to-closed-port": lambda cast: to_us(cast, syn(cast, port=CLOSED)),
    "to-no-connection": lambda cast: to_us(cast, syn(cast, flags=ACK)),
    "to-udp": lambda cast: to_us(cast, *(datagram(cast, port=each) for each in (53, CLOSED))),
    # SCTP, GRE, ESP, IPv6 in IPv6, IPv4 in IPv6, nothing
    "to-protocols": lambda cast: to_us(
        cast, *(ipv6(cast.me.address, AT, cast.mark * 3, each) for each in (132, 47, 50, 41, 4, 59))
    ),
    "to-others": lambda cast: to_us(
        cast,
        *(
            make(cast, target=target)
            for make in (syn, ping)
            for target in (cast.neighbour.address, cast.outside.address, GLOBAL, "::1", "::ffff:169.254.16.9")
        ),
    ),
    "to-all-nodes": lambda cast: to_us(cast, ping(cast, target=ALL_NODES)),
    # Sources
    "from-service": _from(AT),
    "from-nowhere": _from("::", "::1", "ff02::1", "::ffff:10.0.0.5"),
    "from-global": _from(GLOBAL),
    "from-neighbour": lambda cast: _from(cast.neighbour.address)(cast),
    "from-uplink": lambda cast: _from(cast.outside.address)(cast),
    "from-stranger": lambda cast: _from(cast.stranger)(cast),
    # Further headers, and fragments
    "header-options": lambda cast: to_us(
        cast,
        *(
            behind(packet, each, _PADDING)
            for packet in (syn(cast), datagram(cast), ping(cast), solicitation(cast))
            for each in (HOP_BY_HOP, DESTINATION)
        ),
    ),
    "header-routing": lambda cast: to_us(
        cast,
        *(
            behind(packet, ROUTING, bytes([2, kind, 1]) + bytes(4) + packed(cast.neighbour.address))
            for packet in (syn(cast), ping(cast))
            for kind in (0, 2, 4)
        ),
    ),
    "fragment-tiny": lambda cast: to_us(cast, *fragments6(syn(cast), cast.port, 8, 16)),
    "fragment-ping": lambda cast: to_us(cast, *fragments6(ping(cast), cast.port, 8)),
    "fragment-other-port": lambda cast: to_us(
        cast, *fragments6(datagram(cast, port=CLOSED, data=bytes(24)), cast.port, 16)
    ),
    "fragment-overlap": _overlapping,
    "fragment-options": _behind_fragment,
    "fragment-later": lambda cast: to_us(
        cast, *fragments6(datagram(cast, data=cast.mark * 3), cast.port, 16)[1:]
    ),
    # ICMPv6
    "icmp-redirect": lambda cast: to_us(
        cast,
        message(
            cast, REDIRECT, bytes(4) + packed(cast.me.address) + packed(cast.neighbour.address) + _nonce(cast)
        ),
    ),
    "icmp-too-big": lambda cast: to_us(cast, message(cast, TOO_BIG, struct.pack("!I", 1280) + _about(cast))),
    "icmp-unreachable": lambda cast: to_us(cast, message(cast, UNREACHABLE, bytes(4) + _about(cast))),
    "icmp-questions": lambda cast: to_us(
        cast,
        message(cast, LISTENERS, b"\0\x0a\0\0" + packed("::") + cast.mark, hops=1),
        message(cast, NODE_QUESTION, b"\0\x02\0\0" + cast.mark + packed(AT)),
    ),
    "icmp-router": _router,
    "discovery-far": lambda cast: to_us(cast, solicitation(cast, hops=254)),
    # In another guest's name
    "discovery-neighbour": lambda cast: to_us(cast, solicitation(cast, cast.neighbour.address)),
}

# Rows whose answers come from the service's processes, and not from the kernel.
LATE = frozenset({"ask-udp", "ask-fragments"})
