"""The host on which the tables of frames in docs/security.md are tested, with sniffers at all interfaces.

The tables say where the frames of a row arrive, and what they cause. The kernel handles the frames that one
processor sends in order. So when a last one has arrived, those before it have.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import subprocess
from collections.abc import Collection, Sequence
from typing import Any

from tests.netns.bridge.forged import CLOSED, FRAMES, PORT, Cast, Host
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
    """A host with two bridges that are served. The first one has an address of the host, and an uplink.

    ``settings`` go before the services in the configuration file. ``rows`` are all rows of the table.
    """

    limits: tuple[str, ...] = ("known", "fresh")  # sets of the guards

    def __init__(self, host: Hypervisor, settings: str = "", rows: Collection[str] = FRAMES) -> None:
        self.host = host
        self._rows = sorted(rows)
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
        entry = f"service_port: {PORT}, remote_addr: {ENDPOINT}"
        udp = f", {{{entry}, remote_port: 7000, protocol: udp}}" if settings else ""
        host.write(CONFIG, f"{settings}tproxy: [{{{entry}, remote_port: 8080}}{udp}]\n")
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
        number = 1 + 2 * self._rows.index(row) + (sender is self.outside)
        people = (sender, self.neighbour, self.outside)
        me, neighbour, outside = (Host(self.mac[each], each.address) for each in people)
        host = self.host.path("/sys/class/net/br0/address").read_text().strip()
        mark = hashlib.sha256(f"{row} {sender.name}".encode()).digest()[:8]
        return Cast(me, neighbour, outside, Host(host, "10.0.0.1"), mark, 30000 + number, f"10.0.1.{number}")

    def send(self, sender: Guest, cast: Cast, frames: list[bytes], late: Sequence[bytes] = ()) -> list[Heard]:
        """Send frames; return those, and what they caused, wherever they came by.

        ``late`` are parts of answers to the sender that the service's processes send, and not the kernel.
        """
        self.host.ip("neigh flush all", "route flush cache", netns=NAMESPACE)  # from a row that failed
        # New sources are limited (docs/security.md, Limits of a port), which is the matter of other tests.
        for each in self.limits:
            self.host.run("nft", "flush", "set", "bridge", "one_tproxy", each)
        parts = self.patterns(cast)
        last = ethernet(BROADCAST, cast.me.mac, EXPERIMENT, b"the last frame of the sender" + bytes(20))
        self.forge(sender, [*frames, last])
        places = {NAMESPACE, "host", *(each.name for each in self.mac if each is not self.elsewhere)}
        until = [(place, content(last)) for place in places - {sender.name}]
        heard = self.listen([*until, *((sender.name, each) for each in late)], parts)
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
        self.check_ipv6()
        for namespace in (None, NAMESPACE, OTHER):
            assert self._forwarded(namespace) == 0

    def check_ipv6(self) -> None:
        """Check that the namespace has no IPv6."""
        assert self.host.run("ip", "-6", "neigh", netns=NAMESPACE).stdout == ""

    def _forwarded(self, namespace: str | None) -> int:
        """How many packets IP has forwarded."""
        lines = self.host.run("cat", "/proc/thread-self/net/snmp", netns=namespace).stdout.splitlines()
        names, values = (line.split() for line in lines[:2])
        return int(values[names.index("ForwDatagrams")])

    def patterns(self, cast: Cast) -> list[bytes]:
        """Parts that the frames of a row have, or those that they cause."""
        ports = [struct.pack("!HH", cast.port, each) for each in (PORT, CLOSED, 22, 53, 80, 8080)]
        ours = mac_bytes(SERVICE_MAC) + SERVICE
        return [
            *(cast.mark, cast.mark[:4], socket.inet_aton(cast.stranger)),
            *ports,
            *(each[2:] + each[:2] for each in ports),
            *(ours + bytes(6), ours + mac_bytes(cast.me.mac)),  # ARP of the service
        ]

    def arrivals(self, cast: Cast, sent: list[bytes], heard: list[Heard]) -> dict[str, set[str]]:
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
            what = self.kind(cast, sent, frame)
            if what and way == "in":
                place = places.get((namespace, link), f"{link} of {namespace}")
                found.setdefault(place, set()).add(what)
        return found

    def kind(self, cast: Cast, sent: list[bytes], frame: bytes) -> str:
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


def wanted_behind_uplink(row: dict[str, str]) -> dict[str, set[str]]:
    """Likewise, when the frames come from behind an uplink."""
    cell = row[BEHIND_UPLINK]
    return {place: {"frame"} for place in cell.split(", ") if cell != NOTHING}
