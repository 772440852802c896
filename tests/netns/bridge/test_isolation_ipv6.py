"""Isolation over IPv6, frame by frame: each row of that table in docs/security.md, see ``forged_ipv6``."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.contract import SECURITY, table
from tests.netns.bridge.forged import CLOSED, PORT, Cast
from tests.netns.bridge.forged_ipv6 import FRAMES_IPV6, LATE, SOLICITATION, packed
from tests.netns.bridge.frames import ICMPV6, IPV6, content, ethernet, ipv6, mac_bytes
from tests.netns.bridge.isolation import ENDPOINT, NAMESPACE, OTHER, Lab, wanted, wanted_behind_uplink
from tests.netns.ipv6_guest import AT, link_local
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.lab.hypervisor import Guest, Hypervisor

ROWS = table("Isolation over IPv6, frame by frame", "frames", page=SECURITY).by_first_column()

# A guest's kernel answers what it did not ask for; in another lab it has no route to do so.
SILENT = (
    "add table ip6 silent; add chain ip6 silent out { type filter hook output priority 0; };"
    f"add rule ip6 silent out ip6 daddr {SERVICE_ADDRESS_IPV6} meta l4proto != ipv6-icmp drop;"
    f"add rule ip6 silent out ip6 daddr {SERVICE_ADDRESS_IPV6} icmpv6 type != nd-neighbor-advert drop"
)
ADDRESS = slice(10, 26)  # of the source, in what ``content`` returns


class LabIPv6(Lab):
    """The bridges have IPv6 too, and a UDP service."""

    limits = ("known", "known6", "fresh")

    def __init__(self, host: Hypervisor) -> None:
        self.addresses: dict[Guest, str] = {}
        host.add_endpoint(ENDPOINT, 7000, program=program("datagram_endpoint", "echo"))
        super().__init__(host, "tproxy_ipv6: true\n", FRAMES_IPV6)

    def cast(self, row: str, sender: Guest) -> Cast:
        cast = super().cast(row, sender)
        me, neighbour, outside = (
            each._replace(address=self.addresses[guest])
            for each, guest in (
                (cast.me, sender),
                (cast.neighbour, self.neighbour),
                (cast.outside, self.outside),
            )
        )
        stranger = f"fe80::5:{cast.port:x}"
        return cast._replace(me=me, neighbour=neighbour, outside=outside, stranger=stranger)

    def patterns(self, cast: Cast) -> list[bytes]:
        ports = [struct.pack("!HH", cast.port, each) for each in (PORT, CLOSED, 53)]
        return [
            *(cast.mark, cast.mark[:6], cast.mark[:4], packed(cast.stranger)),
            *(each for ports_ in ports for each in (ports_, ports_[2:] + ports_[:2])),
            # Neighbour discovery of ours to the sender's MAC, with an option: 32 bytes.
            ethernet(cast.me.mac, SERVICE_MAC, IPV6, ipv6(SERVICE_ADDRESS_IPV6, "::", bytes(32))[:24]),
            packed(SERVICE_ADDRESS_IPV6) + packed("ff02::1:ff00:0")[:13],  # a neighbour solicitation of ours
        ]

    def kind(self, cast: Cast, sent: list[bytes], frame: bytes) -> str:
        inside = content(frame)
        if any(inside[: len(each)] == each[: len(inside)] for each in map(content, sent)):
            return "frame"
        if frame[6:12] != mac_bytes(SERVICE_MAC):
            return ""  # guests answer each other
        if inside[:2] == struct.pack("!H", IPV6) and (inside[8], inside[42]) == (ICMPV6, SOLICITATION):
            # It may ask for guests at any time.
            guests = {packed(cast.me.address), packed(cast.neighbour.address)}
            asked = {content(each)[ADDRESS] for each in sent} - guests
            return "question" if inside[50:66] in asked else ""
        return "answer"

    def check_ipv6(self) -> None:
        """Check that the namespaces have learnt no address and no route, and have forwarded nothing."""
        if not self.addresses:
            self.addresses = {guest: self._address(guest) for guest in self.mac}
        for namespace, link in ((NAMESPACE, "br0a"), (OTHER, "br1a")):
            shown = self.host.run("ip", "-6", "-o", "address", netns=namespace).stdout
            assert [line.split()[1:4] for line in shown.splitlines()] == [
                [link, "inet6", f"{SERVICE_ADDRESS_IPV6}/64"]
            ]
            routes = self.host.run("ip", "-6", "route", "show", "table", "all", netns=namespace).stdout
            assert "default" not in routes
            assert "2001" not in routes
            assert (
                "mtu 1280" not in self.host.run("ip", "-6", "route", "show", "cache", netns=namespace).stdout
            )
            counters = self.host.run("cat", "/proc/thread-self/net/snmp6", netns=namespace).stdout.split()
            assert counters[counters.index("Ip6OutForwDatagrams") + 1] == "0"
        assert self.neighbour.get(AT, PORT) == "hello"
        learnt = self.neighbour.run("ip", "-6", "neigh", "show", SERVICE_ADDRESS_IPV6, "dev", "eth0").stdout
        assert f"lladdr {SERVICE_MAC} " in learnt

    def _address(self, guest: Guest) -> str:
        """The address of a guest's link, when its kernel has made sure that nobody else has it."""
        for _ in eventually():
            shown = guest.run("ip", "-6", "-o", "address", "show", "dev", "eth0", "-tentative").stdout
            if "fe80:" in shown:
                break
        return link_local(guest)


@pytest.fixture(scope="module")
def lab(real_kernel: None) -> Iterator[LabIPv6]:
    with Hypervisor() as host:
        lab = LabIPv6(host)
        for guest in (lab.liar, lab.outside, lab.clock):
            guest.run("nft", SILENT)
        yield lab


@pytest.mark.parametrize("row", FRAMES_IPV6)
def test_the_ipv6_frames_of_a_guest_arrive_where_the_table_says_and_nowhere_else(
    lab: LabIPv6, row: str
) -> None:
    cast = lab.cast(row, lab.liar)
    frames = FRAMES_IPV6[row](cast)
    late = [struct.pack("!HH", PORT, cast.port)] if row in LATE else []
    heard = lab.send(lab.liar, cast, frames, late)
    assert lab.arrivals(cast, frames, heard) == wanted(ROWS[row])
    lab.check()


@pytest.mark.parametrize("row", FRAMES_IPV6)
def test_the_same_ipv6_frames_from_behind_an_uplink_reach_no_service(lab: LabIPv6, row: str) -> None:
    cast = lab.cast(row, lab.outside)
    frames = FRAMES_IPV6[row](cast)
    heard = lab.send(lab.outside, cast, frames)
    assert lab.arrivals(cast, frames, heard) == wanted_behind_uplink(ROWS[row])
    lab.check()
