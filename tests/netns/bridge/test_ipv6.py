"""Services at fe80::a9fe:1009, for guests that may have no IPv4 at all."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile

import pytest

from tests.netns.bridge.frames import IPV6, TCP, ethernet, icmpv6, ipv6, mac_bytes, tcp
from tests.netns.bridge.test_guards import broadcast, mac_of
from tests.netns.conftest import ENDPOINTS
from tests.netns.ipv6_guest import AT, add_ipv6_guest, link_local
from tests.netns.program import program
from tests.netns.ruleset import await_guarded
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

GROUP, GROUP_MAC = "ff02::1:fffe:1009", "33:33:ff:fe:10:09"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
ECHO_REPLY, ROUTER, SOLICITATION, ADVERTISEMENT, REDIRECT = 129, 134, 135, 136, 137
ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"
NAMESPACE = "one_tproxy_br0"
ENTRIES = (
    f"{{service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8080}}",
    f"{{service_port: 81, remote_addr: {ENDPOINT}, remote_port: 8082, proxy_protocol: v2}}",
    f"{{service_addr: 169.254.169.254, service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8081}}",
    f"{{service_addr: 169.254.169.254, service_port: 82, remote_addr: {ENDPOINT}, remote_port: 8081}}",
    f"{{service_port: 7, remote_addr: {ENDPOINT}, remote_port: 9000, max_connections_per_guest: 1}}",
    f"{{service_port: 53, remote_addr: {ENDPOINT}, remote_port: 53, protocol: udp}}",
)


class Net:
    """Bridge br0 with two guests that have only IPv6, and an uplink to somebody else."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        for port, body in ((8080, "hello"), (8081, "metadata")):
            host.add_endpoint(ENDPOINT, port, body)
        host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
        self.endpoint = host.add_endpoint(ENDPOINT, 8082, program=program("introduced"))
        self.guest, self.other, self.outside = (
            add_ipv6_guest(host, name) for name in ("guest", "other", "outside")
        )
        self.configure()
        self.up()

    def configure(self, *, ipv6: bool = True) -> None:
        self.host.write(FILE, f"tproxy_ipv6: {str(ipv6).lower()}\ntproxy: [{', '.join(ENTRIES)}]\n")

    def up(self, *options: str) -> list[str]:
        hook = ("--bridge", "br0", "--config", FILE, "--uplink", self.outside.port)
        return self.host.tproxy("hook", "up", *hook, *options).stdout.splitlines()

    def inside(self, *argv: str) -> str:
        return self.host.run(*argv, netns=NAMESPACE).stdout

    def send(self, guest: Guest, *frames: bytes) -> None:
        for frame in frames:
            guest.run(*program("frame_sender", frame.hex()))


class Sniffer:
    """Records the frames that come in at a link and have our IPv6 address or our MAC."""

    def __init__(self, guest: Guest, link: str = "eth0") -> None:
        self._process = guest.popen(
            *program("frame_sniffer", SERVICE_ADDRESS_IPV6, SERVICE_MAC, link),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def seen(self, after: Guest, of: str) -> list[str]:
        """The frames of this MAC, up to one that the guest ``after`` sends now."""
        marker = broadcast(after)
        after.run(*program("frame_sender", marker))
        assert self._process.stdout is not None
        frames = list(takewhile(lambda frame: frame != marker, map(str.strip, self._process.stdout)))
        return [frame for frame in frames if frame[12:24] == of.replace(":", "")]


@pytest.fixture(scope="module")
def net(real_kernel: None) -> Iterator[Net]:
    with Hypervisor() as host:
        yield Net(host)


@pytest.fixture
def own(hypervisor: Hypervisor) -> Net:
    return Net(hypervisor)


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


def advertisement(mac: str, source: str, target: str = ALL_NODES) -> bytes:
    """A packet that says: the service is at this MAC."""
    body = b"\xa0\0\0\0" + packed(SERVICE_ADDRESS_IPV6) + b"\x02\x01" + mac_bytes(mac)
    return ipv6(source, target, icmpv6(source, target, ADVERTISEMENT, body))


def solicitation(mac: str, source: str) -> bytes:
    """A packet that asks where the service is; from :: it is about to take the address."""
    option = b"" if source == "::" else b"\x01\x01" + mac_bytes(mac)
    body = bytes(4) + packed(SERVICE_ADDRESS_IPV6) + option
    return ipv6(source, GROUP, icmpv6(source, GROUP, SOLICITATION, body))


def behind_options(packet: bytes) -> bytes:
    """The packet with destination options before its ICMPv6, which change nothing."""
    options = bytes([packet[6], 0, 1, 4, 0, 0, 0, 0])
    return (
        packet[:4]
        + (len(packet) - 40 + 8).to_bytes(2, "big")
        + b"\x3c"
        + packet[7:40]
        + options
        + packet[40:]
    )


def test_a_guest_with_ipv6_alone_reaches_all_services(net: Net) -> None:
    assert net.guest.get(AT, 80) == "hello", "of two services with that port, the one at 169.254.16.9"
    assert net.guest.get(AT, 82) == "metadata"
    assert net.guest.run("ping", "-6", "-c1", "-W20", AT).returncode == 0
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        net.guest.get(AT, 8080)
    learnt = net.guest.run("ip", "-6", "neigh", "show", SERVICE_ADDRESS_IPV6, "dev", "eth0").stdout
    assert f"lladdr {SERVICE_MAC} " in learnt


def test_the_endpoint_learns_who_is_calling(net: Net) -> None:
    for _ in eventually():
        net.guest.run(*program("caller", "say_and_end", AT, "81", "hi"))
        assert net.endpoint.stdout is not None
        said = json.loads(net.endpoint.stdout.readline())
        net.endpoint.stdout.readline()
        if said["values"].get("0xe4") == net.guest.port:
            break
    assert said["source"][0] == link_local(net.guest)
    assert said["destination"] == [SERVICE_ADDRESS_IPV6, 81]
    assert said["values"]["0xe3"] == mac_of(net.guest)
    log, line = net.host.path("/var/log/one_tproxy.log"), f"guest=[{link_local(net.guest)}]:"
    await_equal(lambda: line in log.read_text(), True)


def test_the_mac_is_known_under_syn_cookies_too(net: Net) -> None:
    """The namespace's neighbour table is the fall-back, as over IPv4."""
    net.inside("sysctl", "-qw", "net.ipv4.tcp_syncookies=2")
    net.guest.run(*program("caller", "say_and_end", AT, "81", "hi"))
    net.inside("sysctl", "-qw", "net.ipv4.tcp_syncookies=1")
    assert net.endpoint.stdout is not None
    said = json.loads(net.endpoint.stdout.readline())
    net.endpoint.stdout.readline()
    assert said["source"][0] == link_local(net.guest)
    assert said["values"]["0xe3"] == mac_of(net.guest)
    assert int(net.inside("nstat", "-asz", "TcpExtSyncookiesRecv").split()[-2])


def test_a_guest_has_as_many_connections_as_it_may(net: Net) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
    talk = net.guest.popen(*program("talker", AT, "7"), **pipes)
    assert talk.stdin is not None
    assert talk.stdout is not None
    assert talk.stdout.readline() == "ready\n"
    print("one", file=talk.stdin, flush=True)
    assert talk.stdout.readline() == "one\n"
    second = net.guest.run(*program("caller", "say_and_end", AT, "7", "two"), check=False)
    assert "two" not in second.stdout
    talk.stdin.close()
    talk.wait()


def test_the_namespace_has_that_address_alone_and_believes_no_router(net: Net) -> None:
    shown = net.inside("ip", "-6", "-o", "address")
    assert [line.split()[1:4] for line in shown.splitlines()] == [
        ["br0a", "inet6", f"{SERVICE_ADDRESS_IPV6}/64"]
    ]
    assert "tentative" not in shown
    router = icmpv6(link_local(net.other), ALL_NODES, ROUTER, b"\x40\0\xff\xff" + bytes(8) + PREFIX)
    packet = ipv6(link_local(net.other), ALL_NODES, router)
    mac = mac_of(net.other)
    net.send(net.other, *(ethernet(to, mac, IPV6, packet) for to in (ALL_NODES_MAC, SERVICE_MAC)))
    assert net.guest.get(AT, 80) == "hello"
    assert net.inside("ip", "-6", "-o", "address") == shown
    assert "default" not in net.inside("ip", "-6", "route")
    for name in ("forwarding", "accept_ra", "autoconf", "accept_redirects"):
        assert net.inside("cat", f"/proc/sys/net/ipv6/conf/br0a/{name}").strip() == "0"


PREFIX = b"\x03\x04\x40\xc0" + b"\xff" * 8 + bytes(4) + packed("2001:db8::")


@pytest.mark.parametrize("sender", ["other", "outside"])
def test_nobody_else_can_claim_the_address(net: Net, sender: str) -> None:
    liar = {"other": net.other, "outside": net.outside}[sender]
    assert net.guest.get(AT, 80) == "hello"
    mac, source, target = mac_of(liar), link_local(liar), link_local(net.guest)
    sniffer = Sniffer(net.guest)
    claims = [
        advertisement(mac, source),
        advertisement(mac, source, target),
        behind_options(advertisement(mac, source, target)),
        advertisement(mac, SERVICE_ADDRESS_IPV6),
        solicitation(mac, "::"),
        behind_options(solicitation(mac, "::")),
        solicitation(mac, SERVICE_ADDRESS_IPV6),
        ipv6(SERVICE_ADDRESS_IPV6, target, icmpv6(SERVICE_ADDRESS_IPV6, target, ECHO_REPLY, bytes(8))),
        ipv6(SERVICE_ADDRESS_IPV6, target, tcp("0.0.0.0", "0.0.0.0", (80, 5000)), TCP),
    ]
    tags = ((), ((0x8100, 0),), ((0x88A8, 0), (0x8100, 0)))
    for claim in claims:
        for to in (ALL_NODES_MAC, GROUP_MAC, mac_of(net.guest)):
            net.send(liar, *(ethernet(to, mac, IPV6, claim, each) for each in tags))
    assert sniffer.seen(liar, mac) == []
    learnt = net.guest.run("ip", "-6", "neigh", "show", SERVICE_ADDRESS_IPV6, "dev", "eth0").stdout
    assert f"lladdr {SERVICE_MAC} " in learnt
    assert net.guest.get(AT, 80) == "hello"


def test_solicitations_go_to_our_port_alone(net: Net) -> None:
    sniffers = [Sniffer(each) for each in (net.other, net.outside)]
    net.guest.ip("neigh flush all dev eth0")
    assert net.guest.get(AT, 80) == "hello"
    mac = mac_of(net.guest)
    net.send(
        net.guest, ethernet(GROUP_MAC, mac, IPV6, behind_options(solicitation(mac, link_local(net.guest))))
    )
    for sniffer in sniffers:
        assert sniffer.seen(net.guest, mac) == []


def test_somebody_behind_an_uplink_does_not_reach_the_service(net: Net) -> None:
    sniffer = Sniffer(Guest(net.host, NAMESPACE, "br0", "br0b", ""), "br0a")
    with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
        net.outside.get(AT, 80, timeout=4)
    net.outside.ip(f"neigh replace {SERVICE_ADDRESS_IPV6} lladdr {SERVICE_MAC} dev eth0")
    with pytest.raises(ProcessError, match="ETIMEDOUT"):
        net.outside.get(AT, 80, timeout=1)
    assert sniffer.seen(net.guest, mac_of(net.outside)) == []
    net.outside.ip(f"neigh del {SERVICE_ADDRESS_IPV6} dev eth0")


def test_our_port_sends_no_router_advertisement_no_redirect_and_nothing_from_another_address(
    net: Net,
) -> None:
    """Not even if somebody in the namespace has all rights there."""
    sniffers = [Sniffer(net.guest), Sniffer(net.outside)]
    target = link_local(net.guest)
    packets = [
        ipv6(source, to, icmpv6(source, to, kind, bytes(40)))
        for source in (SERVICE_ADDRESS_IPV6, "fe80::1")
        for to in (ALL_NODES, target)
        for kind in (ROUTER, REDIRECT)
    ]
    packets.append(ipv6("fe80::1", target, icmpv6("fe80::1", target, ECHO_REPLY, bytes(8))))
    for packet in packets:
        for to in (ALL_NODES_MAC, mac_of(net.guest)):
            frame = ethernet(to, SERVICE_MAC, IPV6, packet).hex()
            net.inside(*program("frame_sender", frame, "br0a"))
    for sniffer in sniffers:
        unwanted = [ipv6_of(each) for each in sniffer.seen(net.other, SERVICE_MAC)]
        assert [each for each in unwanted if each.hex() in {packet.hex()[:92] for packet in packets}] == []


def ipv6_of(frame: str) -> bytes:
    """The packet in a frame that a sniffer printed, which has its first 46 bytes."""
    return bytes.fromhex(frame[28:])


def test_the_wall_drops_what_is_no_service_over_ipv6(net: Net) -> None:
    """UDP, ICMPv6 errors and echo requests from addresses beyond the link get no answer."""
    mac, source = mac_of(net.guest), link_local(net.guest)
    sniffer = Sniffer(net.guest)
    at = SERVICE_ADDRESS_IPV6
    packets = [
        ipv6(source, at, b"\x13\x88\0\x50\0\x08\0\0", 17),
        ipv6("2001:db8::5", at, icmpv6("2001:db8::5", at, 128, bytes(8))),
        ipv6(source, at, icmpv6(source, at, 128, bytes(8)), hops=1)[:6] + b"\x2c",
        ipv6(source, ALL_NODES, icmpv6(source, ALL_NODES, 128, bytes(8))),
    ]
    net.send(net.guest, *(ethernet(SERVICE_MAC, mac, IPV6, each) for each in packets))
    answers = [frame for frame in sniffer.seen(net.other, SERVICE_MAC) if frame[40:42] != "3a"]
    assert answers == []
    assert "2001:db8" not in net.inside("ip", "-6", "neigh")


def test_a_warm_hook_changes_nothing_and_shows_nothing(net: Net) -> None:
    assert net.up("--dry-run") == []


def test_the_address_goes_when_the_file_says_so_and_comes_back(own: Net) -> None:
    own.host.tproxy("hook", "down", "--bridge", "br0", "--force", "--config", FILE)
    own.configure(ipv6=False)
    own.up()
    plain = own.host.run("nft", "list", "chain", "bridge", "one_tproxy", "guard_prerouting").stdout
    with pytest.raises(ProcessError):
        own.guest.get(AT, 80, timeout=2)
    own.configure()
    own.up()
    assert own.guest.get(AT, 80) == "hello"
    assert 'comment "ipv6=yes"' in own.host.run("nft", "list", "map", "ip", "one_tproxy", "sv_br0").stdout
    own.host.tproxy("restart")
    assert own.guest.get(AT, 80) == "hello"
    own.configure(ipv6=False)
    own.host.tproxy("refresh", env={"TPROXY_CONFIG": FILE})
    assert own.inside("ip", "-6", "address") == ""
    assert own.host.run("nft", "list", "chain", "bridge", "one_tproxy", "guard_prerouting").stdout == plain
    assert "ipv6=yes" not in own.host.run("nft", "list", "table", "ip", "one_tproxy").stdout
    assert "fe80" not in own.inside("ss", "-Hltun")
    assert own.up("--dry-run") == []


def test_a_bridge_without_ipv6_is_left_alone(own: Net) -> None:
    own.host.add_bridge("br1")
    own.configure(ipv6=False)
    own.host.tproxy("hook", "up", "--bridge", "br1", "--config", FILE)
    asking, answering = (add_ipv6_guest(own.host, name, "br1") for name in ("asking", "answering"))
    answering.ip(f"address add {SERVICE_ADDRESS_IPV6}/64 dev eth0 nodad")
    assert asking.run("ping", "-6", "-c1", "-W20", AT).returncode == 0
    learnt = asking.run("ip", "-6", "neigh", "show", SERVICE_ADDRESS_IPV6, "dev", "eth0").stdout
    assert mac_of(answering) in learnt
    assert own.host.run("ip", "-6", "address", netns="one_tproxy_br1").stdout == ""
    assert own.guest.get(AT, 80) == "hello"


def test_a_guest_with_both_reaches_both(own: Net) -> None:
    guest = own.host.add_guest("both", "br0", "10.0.0.5/24")
    await_guarded(own.host, guest)
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    for _ in eventually():  # its own address is checked first, for a second
        if guest.run("ping", "-6", "-c1", "-W1", AT, check=False).returncode == 0:
            break
    assert guest.get(AT, 80) == "hello"
