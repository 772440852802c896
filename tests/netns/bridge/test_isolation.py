"""Isolation, frame by frame: each row of that table in docs/security.md, with sniffers at all interfaces.

The table says where the frames of a row arrive, and what they cause. ``forged`` makes them. The kernel
handles the frames that one processor sends in order. So when a last one has arrived, those before it have.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.contract import SECURITY, table
from tests.netns.bridge.forged import CLAIMS, CLOSED, FRAMES, PORT, Cast, Host
from tests.netns.bridge.frames import (
    ARP,
    BROADCAST,
    EXPERIMENT,
    IPV4,
    NOBODY,
    arp,
    content,
    ethernet,
    mac_bytes,
)
from tests.netns.bridge.test_guards import mac_of
from tests.netns.program import program
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
CONFIG = "/run/tproxy.yaml"
NAMESPACE, OTHER = "one_tproxy_br0", "one_tproxy_br1"
SERVICE = socket.inet_aton(SERVICE_ADDRESS)

TABLE = table("Isolation, frame by frame", "frames", page=SECURITY)
ROWS = TABLE.by_first_column()
NOTHING = "-"
PLACES = ("service", "sender", "neighbours", "uplink", "host")
BEHIND_UPLINK = "from behind an uplink"  # the places at which the frames arrive then

Heard = tuple[str, str, str, bytes]  # namespace, link, in or out, frame


class Program:
    """A program below tests/netns/programs that reads a line of JSON, and answers with a line."""

    def __init__(self, host: Hypervisor, name: str, *arguments: str, netns: str | None = None) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._process = host.popen(*program(name, *arguments), netns=netns, **pipes)
        assert self._read() == "ready"

    def ask(self, what: object) -> str:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Lab:
    """A host with two bridges that are served. The first one has an address of the host, and an uplink."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        for bridge in ("br0", "br1"):
            host.add_bridge(bridge)
        # Without a route to the service, so that the guest's kernel sends nothing there by itself.
        self.liar = host.add_guest("liar", "br0", "10.0.0.5/24", route=False)
        self.neighbour = host.add_guest("neighbour", "br0", "10.0.0.6/24")
        self.clock = host.add_guest(
            "clock", "br0", "10.0.0.8/24", route=False
        )  # sends the last frame of a row
        self.outside = host.add_guest("outside", "br0", "10.0.0.200/24")
        self.elsewhere = host.add_guest("elsewhere", "br1", "10.1.0.7/24")
        host.ip(
            "address add 10.0.0.1/24 dev br0",
            "address add 10.1.0.1/24 dev br1",
            "netns add network",
            "link add out type veth peer name eth0 netns network",
            "link set out up",
            "address add 192.0.2.254/24 dev out",
        )
        host.ip("link set eth0 up", "address add 192.0.2.1/24 dev eth0", netns="network")
        host.add_endpoint(ENDPOINT, 8080, "hello")
        host.write(
            CONFIG, f"tproxy: [{{service_port: {PORT}, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n"
        )
        for bridge in ("br0", "br1"):
            host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG, "--uplink", self.outside.port)
        guests = self.liar, self.neighbour, self.clock, self.outside, self.elsewhere
        self.mac = {each: mac_of(each) for each in guests}
        namespaces = (NAMESPACE, OTHER, "network", *(each.name for each in guests))
        self._witness = Program(host, "witness", "host:br0,br1,out,lo", *namespaces)
        self._forgers = {
            guest: Program(host, "forger", "eth0", netns=guest.name)
            for guest in (self.liar, self.clock, self.outside)
        }
        self.check()

    def cast(self, row: str, sender: Guest) -> Cast:
        """Who takes part in a row. Each row has numbers of its own, by which its frames are known."""
        number = 1 + 2 * sorted(FRAMES).index(row) + (sender is self.outside)
        people = (sender, self.neighbour, self.outside)
        me, neighbour, outside = (Host(self.mac[each], each.address) for each in people)
        host = self.host.path("/sys/class/net/br0/address").read_text().strip()
        mark = hashlib.sha256(f"{row} {sender.name}".encode()).digest()[:8]
        return Cast(me, neighbour, outside, Host(host, "10.0.0.1"), mark, 30000 + number, f"10.0.1.{number}")

    def send(self, sender: Guest, cast: Cast, frames: list[bytes]) -> list[Heard]:
        """Send frames; return those, and what they caused, wherever they came by."""
        self.host.ip("neigh flush all", "route flush cache", netns=NAMESPACE)  # from a row that failed
        # New sources are limited (docs/security.md, Limits of a port), which is the matter of other tests.
        for each in ("known", "fresh"):
            self.host.run("nft", "flush", "set", "bridge", "one_tproxy", each)
        parts = patterns(cast)
        last = ethernet(BROADCAST, cast.me.mac, EXPERIMENT, b"the last frame of the sender" + bytes(20))
        self.forge(sender, [*frames, last])
        places = {NAMESPACE, "host", *(each.name for each in self.mac if each is not self.elsewhere)}
        heard = self.listen([(place, content(last)) for place in places - {sender.name}], parts)
        # The service answers this when it has answered all that came before.
        clock = self.mac[self.clock], self.clock.address
        request = ethernet(BROADCAST, clock[0], ARP, arp(1, clock, (NOBODY, SERVICE_ADDRESS)) + bytes(18))
        self.forge(self.clock, [request])
        answer = content(ethernet(clock[0], SERVICE_MAC, ARP, arp(2, (SERVICE_MAC, SERVICE_ADDRESS), clock)))
        return heard + self.listen([("clock", answer)], parts)

    def forge(self, sender: Guest, frames: list[bytes]) -> None:
        assert self._forgers[sender].ask([each.hex() for each in frames]) == "sent"

    def listen(self, until: Sequence[tuple[str, bytes]], parts: list[bytes]) -> list[Heard]:
        """Wait until each of these has come in at its place; return the frames with one of the parts."""
        request = {
            "until": [[place, part.hex()] for place, part in until],
            "with": [each.hex() for each in parts],
        }
        return [(*where, bytes.fromhex(frame)) for *where, frame in json.loads(self._witness.ask(request))]

    def check(self) -> None:
        """Check that both bridges are served, and that no table was changed that leads packets."""
        self.host.ip("neigh flush all", netns=NAMESPACE)
        for guest in (self.neighbour, self.elsewhere):
            assert guest.get(SERVICE_ADDRESS, PORT) == "hello"
        learnt = self.neighbour.run("ip", "neigh", "show", SERVICE_ADDRESS).stdout
        assert f"lladdr {SERVICE_MAC} " in learnt
        entries = self.host.run("bridge", "fdb", "show", "br", "br0").stdout.splitlines()
        assert {each.split()[2] for each in entries if each.startswith(SERVICE_MAC)} == {"br0b"}
        route = self.host.run("ip", "route", "get", self.neighbour.address, netns=NAMESPACE).stdout
        assert route.split()[:3] == [self.neighbour.address, "dev", "br0a"]
        assert "mtu" not in route
        assert self.host.run("ip", "-6", "neigh", netns=NAMESPACE).stdout == ""
        for namespace in (None, NAMESPACE, OTHER):
            assert self._forwarded(namespace) == 0

    def _forwarded(self, namespace: str | None) -> int:
        """How many packets IP has forwarded."""
        lines = self.host.run("cat", "/proc/thread-self/net/snmp", netns=namespace).stdout.splitlines()
        names, values = (line.split() for line in lines[:2])
        return int(values[names.index("ForwDatagrams")])


@pytest.fixture(scope="module")
def lab(real_kernel: None) -> Iterator[Lab]:
    with Hypervisor() as host:
        yield Lab(host)


def patterns(cast: Cast) -> list[bytes]:
    """Parts that the frames of a row have, or those that they cause."""
    ports = [struct.pack("!HH", cast.port, each) for each in (PORT, CLOSED, 22, 53, 80, 8080)]
    ours = mac_bytes(SERVICE_MAC) + SERVICE
    return [
        *(cast.mark, cast.mark[:4], socket.inet_aton(cast.stranger)),
        *ports,
        *(each[2:] + each[:2] for each in ports),
        *(ours + bytes(6), ours + mac_bytes(cast.me.mac)),  # ARP of the service
    ]


def arrivals(cast: Cast, sent: list[bytes], heard: list[Heard]) -> dict[str, set[str]]:
    """Return what arrived at each place: "frame", or, from the service, "question" (ARP) or "answer"."""
    behind_uplink = cast.me.address == cast.outside.address
    places = {
        (NAMESPACE, "br0a"): "service",
        ("host", "br0"): "host",
        ("neighbour", "eth0"): "neighbours",
        ("clock", "eth0"): "neighbours",
        ("liar", "eth0"): "neighbours" if behind_uplink else "sender",
        ("outside", "eth0"): "sender" if behind_uplink else "uplink",
    }
    found: dict[str, set[str]] = {}
    for namespace, link, way, frame in heard:
        what = kind(cast, sent, frame)
        if what and way == "in":
            place = places.get((namespace, link), f"{link} of {namespace}")
            found.setdefault(place, set()).add(what)
    return found


def kind(cast: Cast, sent: list[bytes], frame: bytes) -> str:
    """Return the kind of a frame; "" if the frame has nothing to do with those that were sent."""
    inside = content(frame)
    if any(inside[: len(each)] == each[: len(inside)] for each in map(content, sent)):
        return "frame"
    if frame[6:12] != mac_bytes(SERVICE_MAC):
        return ""  # guests answer each other
    if inside[:2] != struct.pack("!H", ARP) or inside[8:10] != b"\0\1":
        return "answer"
    target = inside[26:30]
    # It may ask for guests at any time.
    guests = {socket.inet_aton(each) for each in (cast.me.address, cast.neighbour.address)}
    return "question" if target in {source(each) for each in sent} - guests else ""


def source(frame: bytes) -> bytes:
    """The address from which a packet says that it comes."""
    inside = content(frame)
    protocol = int.from_bytes(inside[:2], "big")
    return inside[14:18] if protocol == IPV4 else inside[16:20] if protocol == ARP else b""


def wanted(row: dict[str, str]) -> dict[str, set[str]]:
    """Return what the row of the table expects at each place."""
    return {place: set(row[place].split(", ")) for place in PLACES if row[place] != NOTHING}


@pytest.mark.parametrize("row", FRAMES)
def test_the_frames_of_a_guest_arrive_where_the_table_says_and_nowhere_else(lab: Lab, row: str) -> None:
    cast = lab.cast(row, lab.liar)
    frames = FRAMES[row](cast)
    heard = lab.send(lab.liar, cast, frames)
    assert arrivals(cast, frames, heard) == wanted(ROWS[row])
    lab.check()


@pytest.mark.parametrize("row", FRAMES)
def test_the_same_frames_from_behind_an_uplink_reach_no_service(lab: Lab, row: str) -> None:
    cast = lab.cast(row, lab.outside)
    frames = FRAMES[row](cast)
    heard = lab.send(lab.outside, cast, frames)
    cell = ROWS[row][BEHIND_UPLINK]
    places = [] if cell == NOTHING else cell.split(", ")
    assert arrivals(cast, frames, heard) == {place: {"frame"} for place in places}
    lab.check()


def test_a_port_that_was_attached_a_moment_ago_can_claim_nothing(lab: Lab) -> None:
    """Where guards match ports, the daemon tells them the new port some milliseconds later.

    Until then it may claim to the host, which has no use for the service.
    """
    host = lab.host
    host.ip("netns add late", "link add late0 type veth peer name eth0 netns late", "link set late0 up")
    host.ip("link set eth0 up", netns="late")
    mac = mac_of(Guest(host, "late", "br0", "late0", "10.0.0.9"))
    cast = lab.cast(CLAIMS[0], lab.liar)
    cast = cast._replace(me=Host(mac, "10.0.0.9"), mark=b"newclaim")
    claims = [frame for row in CLAIMS for frame in FRAMES[row](cast)]
    honest = [ethernet(BROADCAST, mac, EXPERIMENT, word + bytes(40)) for word in (b"honest 1", b"honest 2")]
    for each in honest:
        flood = [frame.hex() for frame in (*claims, each)]
        flooding = host.serve(*program("frame_flood", "eth0", *flood), netns="late")
        if each is honest[0]:
            host.ip("link set late0 master br0")
        heard = lab.listen([("neighbour", content(each))], patterns(cast))
        flooding.kill()
        assert arrivals(cast, claims, heard).keys() <= {"host"}
    host.ip("link del late0")
    lab.check()


def test_without_guards_the_same_sniffers_see_the_claims(hypervisor: Hypervisor) -> None:
    lab = Lab(hypervisor)
    hypervisor.run("nft", "delete", "table", "bridge", "one_tproxy")
    row = "claim-ip"
    cast = lab.cast(row, lab.liar)
    frames = FRAMES[row](cast)
    last = ethernet(BROADCAST, cast.me.mac, EXPERIMENT, b"the last frame of the sender" + bytes(20))
    lab.forge(lab.liar, [*frames, last])
    heard = lab.listen([("neighbour", content(last))], patterns(cast))
    assert arrivals(cast, frames, heard)["neighbours"] == {"frame"}
