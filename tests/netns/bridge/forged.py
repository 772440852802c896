"""The frames in the table of docs/security.md, Isolation, frame by frame. Pure.

Each row of that table has an entry in FRAMES: a function from a Cast to frames. They hold the Cast's mark,
port or stranger, by which a test finds them and what they cause.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.netns.bridge.frames import (
    ACK,
    ARP,
    BROADCAST,
    EAPOL,
    EXPERIMENT,
    ICMP,
    IPV4,
    IPV6,
    LLDP,
    MORE_FRAGMENTS,
    NOBODY,
    SERVICE_TAG,
    SYN,
    TAG,
    TCP,
    UDP,
    Tags,
    arp,
    ethernet,
    icmp,
    icmpv6,
    ipv4,
    ipv6,
    mac_bytes,
    tcp,
    udp,
)
from tproxy.addresses import SERVICE_ADDRESS as SERVICE
from tproxy.addresses import SERVICE_MAC

PORT, CLOSED = 5030, 5031
STP_GROUP, EAPOL_GROUP, LLDP_GROUP = (f"01:80:c2:00:00:{last}" for last in ("00", "03", "0e"))
ALL_HOSTS = "01:00:5e:00:00:01"
ECHO, ECHO_REPLY, UNREACHABLE, REDIRECT, TIMESTAMP, ADDRESS_MASK = 8, 0, 3, 5, 13, 17
HOST_UNREACHABLE, FRAGMENTATION_NEEDED = 1, 4
LINK_LOCAL, ALL_NODES, SERVICE_LINK_LOCAL = "fe80::ff:fe00:1", "ff02::1", "fe80::400:a9ff:fefe:1009"

# Receivers ignore tags with VLAN 0, in any number.
PRIORITY_TAGS: tuple[Tags, ...] = (((TAG, 0),), ((SERVICE_TAG, 0),))
# The second tag has VLAN 0, so that guards cannot look behind it.
STACKED_TAGS: tuple[Tags, ...] = (
    *(
        ((outer, vlan), (inner, 0))
        for outer in (TAG, SERVICE_TAG)
        for inner in (TAG, SERVICE_TAG)
        for vlan in (0, 5)
    ),
    ((TAG, 0),) * 3,
    ((SERVICE_TAG, 0), (TAG, 0), (TAG, 0)),
)
# With the VLAN of another network: alone, or as the last of two tags.
VLAN_TAGS: tuple[Tags, ...] = (((TAG, 5),), ((SERVICE_TAG, 5),))
NESTED_TAGS: tuple[Tags, ...] = tuple(
    ((outer, vlan), (TAG, 6)) for outer in (TAG, SERVICE_TAG) for vlan in (0, 5)
)


class Host(NamedTuple):
    """A MAC and an address."""

    mac: str
    address: str


class Cast(NamedTuple):
    """Who takes part, and by what the frames of one row are known."""

    me: Host  # the sender
    neighbour: Host  # another guest
    outside: Host  # somebody behind the uplink
    host: Host  # the hypervisor, at the bridge
    mark: bytes  # 8 bytes
    port: int  # from which the row's segments come
    stranger: str  # an address that nobody has

    def to_service(self, packet: bytes, *, tags: Tags = (), mac: str = SERVICE_MAC) -> bytes:
        return ethernet(mac, self.me.mac, IPV4, packet, tags)

    def syn(self, source: str = "", target: str = SERVICE, port: int = PORT, **more: int) -> bytes:
        """An IPv4 packet that asks for a connection."""
        source = source or self.me.address
        return ipv4(source, target, TCP, tcp(source, target, (self.port, port), self.mark, **more))

    def echo(self, source: str = "", target: str = SERVICE, options: bytes = b"") -> bytes:
        """An IPv4 packet that asks for an echo."""
        message = icmp(ECHO, 0, self.mark[:4], self.mark)
        return ipv4(source or self.me.address, target, ICMP, message, options=options)

    def error(self, kind: int, code: int, rest: bytes, about: bytes, source: str = "") -> bytes:
        """An IPv4 packet with an ICMP error about another packet."""
        return ipv4(source or self.me.address, SERVICE, ICMP, icmp(kind, code, rest, about[:28] + self.mark))

    def asking(self, sender: str = "", *, hardware: int = 1) -> bytes:
        """An ARP request for the service."""
        sender_host = (self.me.mac, sender or self.me.address)
        return arp(1, sender_host, (NOBODY, SERVICE), hardware) + self._filling

    def claim(self, operation: int = 2, *, mac: str = "", hardware: int = 1) -> bytes:
        """ARP to the neighbour that says: the service address is at this MAC, by default the sender's."""
        return arp(operation, (mac or self.me.mac, SERVICE), self.neighbour, hardware) + self._filling

    def announcement(self, operation: int) -> bytes:
        return arp(operation, (self.me.mac, SERVICE), (BROADCAST, SERVICE)) + self._filling

    @property
    def _filling(self) -> bytes:
        """Return the padding that makes the frame of an ARP packet as long as Ethernet wants it."""
        return self.mark + bytes(10)

    @property
    def experiment(self) -> bytes:
        """A payload of a protocol that nobody speaks."""
        return self.mark + bytes(38)


def behind(
    stacks: Iterable[Tags], make: Callable[[Cast, Tags], list[bytes]]
) -> Callable[[Cast], list[bytes]]:
    """Frames behind each of these stacks of tags."""
    return lambda cast: [frame for tags in stacks for frame in make(cast, tags)]


def _claims(cast: Cast, tags: Tags) -> list[bytes]:
    packet = ipv4(SERVICE, cast.neighbour.address, ICMP, icmp(ECHO, 0, cast.mark[:4], cast.mark))
    return [
        ethernet(cast.neighbour.mac, cast.me.mac, ARP, cast.claim(2), tags),
        ethernet(BROADCAST, cast.me.mac, ARP, cast.announcement(1), tags),
        ethernet(cast.neighbour.mac, cast.me.mac, IPV4, packet, tags),
        ethernet(cast.neighbour.mac, SERVICE_MAC, EXPERIMENT, cast.experiment, tags),
    ]


def _asking(cast: Cast, tags: Tags) -> list[bytes]:
    return [
        ethernet(BROADCAST, cast.me.mac, ARP, cast.asking(), tags),
        cast.to_service(cast.syn(), tags=tags),
        cast.to_service(cast.syn(), tags=tags, mac=cast.neighbour.mac),
    ]


def _other(cast: Cast, *protocols: int) -> list[bytes]:
    return [cast.to_service(ipv4(cast.me.address, SERVICE, each, cast.mark * 3)) for each in protocols]


def _to(target: str, *ports: int) -> Callable[[Cast], list[bytes]]:
    """To our MAC, with another address."""
    return lambda cast: [
        cast.to_service(cast.echo(target=target)),
        *(cast.to_service(cast.syn(target=target, port=each)) for each in ports),
    ]


def _from(source: str) -> Callable[[Cast], list[bytes]]:
    return lambda cast: [cast.to_service(cast.syn(source)), cast.to_service(cast.echo(source))]


def _tiny_fragments(cast: Cast) -> list[bytes]:
    segment = tcp(cast.me.address, SERVICE, (cast.port, PORT), cast.mark)
    pieces = [segment[at : at + 8] for at in range(0, len(segment), 8)]
    return [
        cast.to_service(ipv4(cast.me.address, SERVICE, TCP, piece, number=cast.port, fragment=at | more))
        for at, piece in enumerate(pieces)
        for more in [MORE_FRAGMENTS if at < len(pieces) - 1 else 0]
    ]


def _overlapping_fragments(cast: Cast) -> list[bytes]:
    """The second one says that the first one's port was another."""
    first = tcp(cast.me.address, SERVICE, (cast.port, CLOSED), cast.mark)
    second = tcp(cast.me.address, SERVICE, (cast.port, PORT), cast.mark)
    return [
        cast.to_service(ipv4(cast.me.address, SERVICE, TCP, piece, number=cast.port, fragment=where))
        for piece, where in ((first[:24], MORE_FRAGMENTS), (second[:16], MORE_FRAGMENTS), (second[24:], 3))
    ]


def _answer_of_the_service(cast: Cast, protocol: int = TCP) -> bytes:
    """A packet that the service could have sent to the neighbour."""
    target = cast.neighbour.address
    payload = {
        TCP: tcp(SERVICE, target, (PORT, cast.port), flags=SYN | ACK),
        UDP: udp(SERVICE, target, (PORT, cast.port), cast.mark),
        ICMP: icmp(ECHO_REPLY, 0, cast.mark[:4], cast.mark),
    }[protocol]
    return ipv4(SERVICE, target, protocol, payload)


def _too_large(cast: Cast) -> list[bytes]:
    mtu = struct.pack("!HH", 0, 600)
    return [
        cast.to_service(
            cast.error(UNREACHABLE, FRAGMENTATION_NEEDED, mtu, _answer_of_the_service(cast, protocol))
        )
        for protocol in (TCP, UDP, ICMP)
    ]


def _stp(source: str, cast: Cast) -> bytes:
    """A bridge's message of the spanning tree, IEEE 802.1D, that it is the root."""
    return ethernet(STP_GROUP, source, 0x0026, b"\x42\x42\x03" + bytes(5) + cast.mark + bytes(27))


def _for_itself(source: str) -> Callable[[Cast], list[bytes]]:
    """Frames that no bridge forwards, from this MAC."""
    return lambda cast: [
        ethernet(LLDP_GROUP, source or cast.me.mac, LLDP, b"\x02\x09\x04" + cast.mark + bytes(38)),
        ethernet(EAPOL_GROUP, source or cast.me.mac, EAPOL, b"\x01\x01\0\0" + cast.mark + bytes(38)),
    ]


def _router(cast: Cast) -> list[bytes]:
    """A router's and a neighbour's IPv6 advertisements."""
    router = icmpv6(LINK_LOCAL, ALL_NODES, 134, b"\x40\x00\x00\xff" + cast.mark)
    claim = icmpv6(
        LINK_LOCAL, ALL_NODES, 136, b"\xa0\0\0\0" + socket.inet_pton(socket.AF_INET6, SERVICE_LINK_LOCAL)
    )
    link = b"\x02\x01" + mac_bytes(cast.me.mac)
    return [
        ethernet(SERVICE_MAC, cast.me.mac, IPV6, ipv6(LINK_LOCAL, ALL_NODES, each + link + cast.mark))
        for each in (router, claim)
    ]


FRAMES: dict[str, Callable[[Cast], list[bytes]]] = {
    # What guests do all the time.
    "ask-arp": lambda cast: [ethernet(BROADCAST, cast.me.mac, ARP, cast.asking())],
    "ask-tcp": lambda cast: [cast.to_service(cast.syn())],
    "ask-ping": lambda cast: [cast.to_service(cast.echo())],
    "ask-gateway": lambda cast: [
        cast.to_service(cast.syn(), mac=mac) for mac in (cast.neighbour.mac, cast.host.mac)
    ],
    "ask-priority": behind(PRIORITY_TAGS, _asking),
    "ask-stacked": behind(STACKED_TAGS, _asking),
    "ask-vlan": behind(VLAN_TAGS, _asking),
    "ask-nested": behind(NESTED_TAGS, _asking),
    "other-unicast": lambda cast: [
        ethernet(cast.neighbour.mac, cast.me.mac, EXPERIMENT, cast.experiment),
    ],
    "other-broadcast": lambda cast: [ethernet(BROADCAST, cast.me.mac, EXPERIMENT, cast.experiment)],
    "other-self": _for_itself(""),
    "other-stp": lambda cast: [_stp(cast.me.mac, cast)],
    "other-nested": behind(NESTED_TAGS, _claims),
    # Claims to be the service.
    "claim-arp-reply": lambda cast: [
        ethernet(target, cast.me.mac, ARP, cast.claim()) for target in (BROADCAST, cast.neighbour.mac)
    ],
    "claim-arp-request": lambda cast: [
        ethernet(target, cast.me.mac, ARP, cast.claim(1)) for target in (BROADCAST, cast.neighbour.mac)
    ],
    "claim-announcement": lambda cast: [
        ethernet(BROADCAST, cast.me.mac, ARP, cast.announcement(operation)) for operation in (1, 2)
    ],
    "claim-hardware": lambda cast: [
        ethernet(cast.neighbour.mac, cast.me.mac, ARP, cast.claim(operation, hardware=6))
        for operation in (1, 2)
    ],
    "claim-mac-inside": lambda cast: [
        ethernet(
            BROADCAST,
            cast.me.mac,
            ARP,
            arp(2, (SERVICE_MAC, cast.stranger), cast.neighbour) + cast.experiment,
        )
    ],
    "claim-ip": lambda cast: [
        ethernet(cast.neighbour.mac, cast.me.mac, IPV4, packet)
        for packet in (
            cast.echo(SERVICE, cast.neighbour.address),
            cast.syn(SERVICE, cast.neighbour.address),
            _answer_of_the_service(cast),
        )
    ],
    "claim-mac": lambda cast: [
        ethernet(target, SERVICE_MAC, EXPERIMENT, cast.experiment)
        for target in (cast.neighbour.mac, BROADCAST, ALL_HOSTS)
    ],
    "claim-mac-ipv6": lambda cast: [
        ethernet(cast.neighbour.mac, SERVICE_MAC, IPV6, ipv6(LINK_LOCAL, ALL_NODES, cast.mark * 2))
    ],
    "claim-mac-self": _for_itself(SERVICE_MAC),
    "claim-mac-stp": lambda cast: [_stp(SERVICE_MAC, cast)],
    "claim-priority": behind(PRIORITY_TAGS, _claims),
    "claim-stacked": behind(STACKED_TAGS, _claims),
    "claim-vlan": behind(VLAN_TAGS, _claims),
    # To our MAC, but not for the service.
    "to-endpoint": _to("10.11.12.13", PORT, 8080),
    "to-host": lambda cast: _to(cast.host.address, 22)(cast),
    "to-neighbour": lambda cast: _to(cast.neighbour.address, 22)(cast),
    "to-uplink": lambda cast: _to(cast.outside.address, 22)(cast),
    "to-internet": _to("192.0.2.1", 80),
    "to-other-bridge": _to("10.1.0.7", 22),
    "to-loopback": _to("127.0.0.1", PORT),
    "to-broadcast": _to("255.255.255.255"),
    "to-closed-port": lambda cast: [cast.to_service(cast.syn(port=CLOSED))],
    "to-udp": lambda cast: [
        cast.to_service(
            ipv4(cast.me.address, SERVICE, UDP, udp(cast.me.address, SERVICE, (cast.port, port), cast.mark))
        )
        for port in (53, PORT)
    ],
    # SCTP, GRE, ESP, IP in IP, IPv6 in IP, IGMP, PIM
    "to-protocols": lambda cast: _other(cast, 132, 47, 50, 4, 41, 2, 103),
    "to-no-connection": lambda cast: [cast.to_service(cast.syn(flags=ACK))],
    "to-other-ethernet": lambda cast: [ethernet(SERVICE_MAC, cast.me.mac, EXPERIMENT, cast.experiment)],
    "to-ipv6": lambda cast: [
        ethernet(
            SERVICE_MAC,
            cast.me.mac,
            IPV6,
            ipv6(LINK_LOCAL, target, icmpv6(LINK_LOCAL, target, 128, cast.mark[:4] + cast.mark)),
        )
        for target in (SERVICE_LINK_LOCAL, "::ffff:169.254.16.9")
    ],
    "to-ipv6-router": _router,
    # Sources
    "from-service": _from(SERVICE),
    "from-loopback": _from("127.0.0.1"),
    "from-broadcast": lambda cast: [
        cast.to_service(packet)
        for source in ("255.255.255.255", "0.0.0.0", "224.0.0.1")
        for packet in (cast.syn(source), cast.echo(source))
    ],
    "from-host": lambda cast: _from(cast.host.address)(cast),
    "from-neighbour": lambda cast: _from(cast.neighbour.address)(cast),
    "from-uplink": lambda cast: _from(cast.outside.address)(cast),
    "from-stranger": lambda cast: _from(cast.stranger)(cast),
    # Options
    "option-route": lambda cast: [
        cast.to_service(cast.echo(options=kind + b"\x07\x04" + socket.inet_aton(via)))
        for kind in (b"\x83", b"\x89")
        for via in ("10.11.12.13", cast.neighbour.address)
    ],
    "option-record": lambda cast: [
        cast.to_service(cast.echo(options=options))
        for options in (b"\x07\x0b\x04" + bytes(8), b"\x44\x0c\x05\x00" + bytes(8))
    ],
    "option-alert": lambda cast: [
        cast.to_service(
            ipv4(
                cast.me.address,
                "224.0.0.22",
                2,
                b"\x11\0\xee\xff" + cast.mark,
                options=b"\x94\x04\0\0",
                ttl=1,
            )
        )
    ],
    # Fragments
    "fragment-tiny": _tiny_fragments,
    "fragment-overlap": _overlapping_fragments,
    "fragment-first": lambda cast: [
        cast.to_service(
            ipv4(cast.me.address, SERVICE, UDP, cast.mark * 4, number=cast.port, fragment=MORE_FRAGMENTS)
        )
    ],
    # ICMP
    "icmp-redirect": lambda cast: [
        cast.to_service(
            cast.error(
                REDIRECT,
                1,
                socket.inet_aton(cast.me.address),
                _answer_of_the_service(cast),
                cast.host.address,
            )
        )
    ],
    "icmp-too-large": _too_large,
    "icmp-unreachable": lambda cast: [
        cast.to_service(cast.error(UNREACHABLE, HOST_UNREACHABLE, bytes(4), _answer_of_the_service(cast)))
    ],
    "icmp-questions": lambda cast: [
        cast.to_service(
            ipv4(cast.me.address, SERVICE, ICMP, icmp(kind, 0, cast.mark[:4], cast.mark + bytes(8)))
        )
        for kind in (TIMESTAMP, ADDRESS_MASK)
    ],
    # In another guest's name
    "arp-neighbour": lambda cast: [
        ethernet(
            SERVICE_MAC,
            cast.me.mac,
            ARP,
            arp(1, (cast.me.mac, cast.neighbour.address), (NOBODY, SERVICE)) + cast.mark + bytes(10),
        )
    ],
}

CLAIMS = [row for row in FRAMES if row.startswith("claim-")]
