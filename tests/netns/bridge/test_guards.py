"""Which frames the guards at a bridge let through, with real frames."""

from __future__ import annotations

import struct
import subprocess
from itertools import takewhile

import pytest

from tests.netns.program import program
from tests.netns.ruleset import await_guarded
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"


class Net:
    """A bridge with two guests and an uplink to a neighbour, who stands for the rest of the network."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest = host.add_guest("guest", "br0", "10.0.0.5/24")
        self.other = host.add_guest("other", "br0", "10.0.0.6/24")
        self.neighbour = host.add_guest("neighbour", "br0", "10.0.0.7/24")
        host.add_endpoint(ENDPOINT, 8080, "hello")
        self.config = host.write(
            "/run/tproxy.yaml",
            f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n",
        )
        self.up()

    def up(self) -> None:
        self.host.tproxy(
            "hook", "up", "--bridge", "br0", "--config", self.config, "--uplink", self.neighbour.port
        )


@pytest.fixture
def net(hypervisor: Hypervisor) -> Net:
    return Net(hypervisor)


class Sniffer:
    """Records the frames at a guest's link that concern the service."""

    def __init__(self, guest: Guest, link: str = "eth0") -> None:
        self._process = guest.popen(
            *program("frame_sniffer", SERVICE_ADDRESS, SERVICE_MAC, link),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def seen(self, after: Guest) -> list[str]:
        """The frames that concern the service, up to one that the guest ``after`` sends now."""
        marker = broadcast(after)
        send(after, marker)
        return self.seen_before(marker)

    def seen_before(self, marker: str) -> list[str]:
        """The frames that concern the service, up to this one."""
        assert self._process.stdout is not None
        frames = map(str.strip, self._process.stdout)
        return list(takewhile(lambda frame: frame != marker, frames))


def mac_of(guest: Guest) -> str:
    return guest.run("ip", "-br", "link", "show", "eth0").stdout.split()[2]


def hexmac(mac: str) -> str:
    return mac.replace(":", "")


def hexip(address: str) -> str:
    return bytes(map(int, address.split("."))).hex()


def arp(operation: int, sender_mac: str, sender_ip: str, target_ip: str, *, source: str | None = None) -> str:
    """An ARP frame to everybody, RFC 826."""
    body = (
        f"0001080006040{operation:03x}" + hexmac(sender_mac) + hexip(sender_ip) + "0" * 12 + hexip(target_ip)
    )
    return "f" * 12 + hexmac(source or sender_mac) + "0806" + body + "00" * 18


def ipv4(source_mac: str, source_ip: str, target_mac: str, target_ip: str) -> str:
    """An IPv4 frame with an empty UDP datagram, RFC 791; br_netfilter checks the header's sum."""
    header = "4500001c000100004011{:04x}" + hexip(source_ip) + hexip(target_ip)
    words = struct.unpack("!10H", bytes.fromhex(header.format(0)))
    total = sum(words)
    checksum = 0xFFFF - (total % 0xFFFF)
    return (
        hexmac(target_mac)
        + hexmac(source_mac)
        + "0800"
        + header.format(checksum)
        + "1000138600080000"
        + "00" * 18
    )


def experiment(source_mac: str, target_mac: str) -> str:
    """A frame of a protocol that nobody speaks. It holds our MAC, so that sniffers record it."""
    return hexmac(target_mac) + hexmac(source_mac) + "88b5" + hexmac(SERVICE_MAC) + "00" * 40


def broadcast(sender: Guest) -> str:
    """A frame that every port of the bridge gets, and that no guard concerns."""
    return experiment(mac_of(sender), "ff:" * 6)


def send(guest: Guest, frame: str) -> None:
    guest.run(*program("frame_sender", frame))


def test_arp_requests_for_the_service_reach_only_our_veth(net: Net) -> None:
    sniffers = [Sniffer(net.other), Sniffer(net.neighbour)]
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"
    for sniffer in sniffers:
        # Both may see for which guests the service asks, but no request for the service.
        frames = sniffer.seen(net.guest)
        assert [frame for frame in frames if hexip(SERVICE_ADDRESS) == frame[76:84]] == []


def test_a_port_that_the_guards_do_not_know_yet_is_kept_from_the_service_and_cannot_claim_it(
    net: Net,
) -> None:
    """Without meta ibrname the guards match ports, and the daemon adds a new port a moment later."""
    if "meta ibrname" in ports_set(net):
        pytest.skip("the guards match bridges")
    assert net.other.get(SERVICE_ADDRESS, 5030) == "hello"
    net.host.run("pkill", "-STOP", "-fx", "one_tproxy")  # it would add the port again
    element = f'guarded {{ "{net.guest.port}" comment "bridge=br0" }}'
    net.host.run("nft", f"delete element bridge one_tproxy {element}")
    net.host.run("nft", "flush", "set", "bridge", "one_tproxy", "known")
    uplink, other = Sniffer(net.neighbour), Sniffer(net.other)
    mac = mac_of(net.guest)
    for claim in claims(mac, mac_of(net.other), net.other.address):
        send(net.guest, claim)
    with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
        net.guest.get(SERVICE_ADDRESS, 5030, timeout=4)
    # The service itself may ask whether this guest is still there.
    genuine = arp(1, SERVICE_MAC, SERVICE_ADDRESS, net.other.address)[12:84]
    assert uplink.seen(net.guest) == []
    assert [frame for frame in other.seen(net.guest) if frame[12:84] != genuine] == []
    net.host.run("nft", f"add element bridge one_tproxy {element}")
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"


def test_nothing_of_ours_leaves_through_an_uplink(net: Net) -> None:
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"
    sniffer = Sniffer(net.neighbour)
    net.host.run("ip", "neigh", "flush", "all", netns="one_tproxy_br0")  # so it asks for the guest
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert net.other.get(SERVICE_ADDRESS, 5030) == "hello"
    assert sniffer.seen(net.other) == []


def test_an_uplink_cannot_reach_the_service(net: Net) -> None:
    with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
        net.neighbour.get(SERVICE_ADDRESS, 5030, timeout=4)
    net.neighbour.ip(f"neigh replace {SERVICE_ADDRESS} lladdr {SERVICE_MAC} dev eth0")
    with pytest.raises(ProcessError, match=r"ETIMEDOUT"):
        net.neighbour.get(SERVICE_ADDRESS, 5030, timeout=1)
    # The request itself did not arrive either: the service has not learnt the neighbour's MAC.
    assert "10.0.0.7" not in net.host.run("ip", "neigh", netns="one_tproxy_br0").stdout


def addressed_to_the_service(sender: Guest) -> list[str]:
    """Frames that are for the service by their Ethernet header only."""
    mac = mac_of(sender)
    return [ipv4(mac, sender.address, SERVICE_MAC, "10.0.0.99"), experiment(mac, SERVICE_MAC)]


def test_no_frame_of_any_protocol_from_an_uplink_reaches_our_mac(net: Net) -> None:
    sniffer = Sniffer(Guest(net.host, "one_tproxy_br0", "br0", "br0b", SERVICE_ADDRESS), "br0a")
    for sender in (net.guest, net.neighbour):
        marker = broadcast(sender)
        frames = addressed_to_the_service(sender)
        for frame in (*frames, marker):
            send(sender, frame)
        seen = {frame[:84] for frame in sniffer.seen_before(marker)}  # br_netfilter cuts the padding off
        arrived = [frame for frame in frames if frame[:84] in seen]
        assert arrived == (frames if sender is net.guest else [])


def test_frames_for_our_mac_are_not_flooded_while_the_bridge_does_not_know_its_port(
    net: Net,
) -> None:
    sniffers = [Sniffer(net.other), Sniffer(net.neighbour)]
    marker = broadcast(net.guest)
    for frame in addressed_to_the_service(net.guest):
        net.host.run("bridge", "fdb", "del", SERVICE_MAC, "dev", "br0b", "master", check=False)
        send(net.guest, frame)
    send(net.guest, marker)
    for sniffer in sniffers:
        assert sniffer.seen_before(marker) == []


def test_an_uplink_that_is_also_named_for_other_bridges_stays_guarded(net: Net) -> None:
    """A site's hook may name the same uplinks for every bridge."""
    net.host.add_bridge("br1")
    listing = net.host.run("nft", "list", "set", "bridge", "one_tproxy", "uplinks").stdout
    hook = ("--bridge", "br1", "--config", net.config, "--uplink", net.neighbour.port)
    net.host.tproxy("hook", "up", *hook)
    net.host.tproxy("hook", "down", *hook)
    assert net.host.run("nft", "list", "set", "bridge", "one_tproxy", "uplinks").stdout == listing
    net.neighbour.ip(f"neigh replace {SERVICE_ADDRESS} lladdr {SERVICE_MAC} dev eth0")
    with pytest.raises(ProcessError, match=r"ETIMEDOUT"):
        net.neighbour.get(SERVICE_ADDRESS, 5030, timeout=1)


@pytest.mark.parametrize("sender", ["other", "neighbour"])
def test_nobody_else_can_claim_the_service(net: Net, sender: str) -> None:
    liar = {"other": net.other, "neighbour": net.neighbour}[sender]
    mac = mac_of(liar)
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"
    sniffer = Sniffer(net.guest)
    send(liar, arp(2, mac, SERVICE_ADDRESS, "10.0.0.5"))  # "I am the service"
    send(liar, arp(1, mac, SERVICE_ADDRESS, SERVICE_ADDRESS))  # gratuitous
    send(liar, arp(1, SERVICE_MAC, "10.0.0.6", "10.0.0.5", source=mac))  # our MAC inside only
    send(liar, arp(1, SERVICE_MAC, "10.0.0.6", "10.0.0.5"))  # our MAC outside
    send(liar, ipv4(SERVICE_MAC, "10.0.0.6", mac_of(net.guest), "10.0.0.5"))
    send(liar, ipv4(mac, SERVICE_ADDRESS, mac_of(net.guest), "10.0.0.5"))
    # The service itself may ask whether the guest is still there.
    genuine = arp(1, SERVICE_MAC, SERVICE_ADDRESS, "10.0.0.5")[12:84]
    assert [frame for frame in sniffer.seen(liar) if frame[12:84] != genuine] == []
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"


def claims(mac: str, target_mac: str, target: str) -> list[str]:
    """Frames in which this MAC says to the target that it is the service."""
    return [
        arp(2, mac, SERVICE_ADDRESS, target),
        arp(1, mac, SERVICE_ADDRESS, SERVICE_ADDRESS),  # gratuitous
        arp(1, SERVICE_MAC, "10.0.0.6", target, source=mac),  # our MAC inside only
        ipv4(mac, SERVICE_ADDRESS, target_mac, target),
    ]


def tagged(frame: str, tags: str) -> str:
    """The frame with these tags: a protocol and a VLAN each, in hexadecimal."""
    return frame[:24] + tags + frame[24:]


PRIORITY_TAGS = ["81000000", "88a80000", "81000000" * 2, "88a8000081000000", "88a80000" * 2, "81000000" * 3]


@pytest.mark.parametrize("restored", [False, True], ids=["loaded by a hook", "saved and restored"])
def test_nobody_can_claim_the_service_behind_priority_tags(net: Net, restored: bool) -> None:
    """Every receiver ignores tags with VLAN 0, so the guest would believe such a frame."""
    if restored:
        net.host.write("/run/saved.nft", "flush ruleset\n" + net.host.run("nft", "list", "ruleset").stdout)
        net.host.run("nft", "-f", "/run/saved.nft")
    mac = mac_of(net.other)
    sniffer = Sniffer(net.guest)
    for tags in PRIORITY_TAGS:
        for claim in claims(mac, mac_of(net.guest), net.guest.address):
            send(net.other, tagged(claim, tags))
    assert sniffer.seen(net.other) == []


@pytest.mark.parametrize("tags", PRIORITY_TAGS)
def test_an_uplink_cannot_reach_the_service_behind_priority_tags(net: Net, tags: str) -> None:
    sniffer = Sniffer(Guest(net.host, "one_tproxy_br0", "br0", "br0b", SERVICE_ADDRESS), "br0a")
    mac = mac_of(net.neighbour)
    send(net.neighbour, tagged(arp(1, mac, net.neighbour.address, SERVICE_ADDRESS), tags))
    send(net.neighbour, tagged(ipv4(mac, net.neighbour.address, SERVICE_MAC, SERVICE_ADDRESS), tags))
    assert sniffer.seen(net.neighbour) == [], "only the marker, which holds our MAC, and is the end"


def test_answers_never_reach_the_host_although_a_guest_names_it_as_the_source(net: Net) -> None:
    net.host.ip("address add 10.0.0.1/24 dev br0")
    host = net.host.run("ip", "-br", "link", "show", "br0").stdout.split()[2]
    mac = mac_of(net.guest)
    sniffer = Sniffer(Guest(net.host, "one_tproxy_br0", "br0", "br0b", SERVICE_ADDRESS), "br0a")
    net.host.ip(f"neigh replace 10.0.0.1 lladdr {host} dev br0a nud permanent", netns="one_tproxy_br0")
    before = received_by_the_host(net)
    net.guest.ip("address add 10.0.0.1/32 dev eth0", "route replace 169.254.16.9 dev eth0 src 10.0.0.1")
    with pytest.raises(ProcessError, match="ETIMEDOUT"):
        net.guest.get(SERVICE_ADDRESS, 5030, timeout=1)
    assert [frame for frame in sniffer.seen(net.other) if hexmac(mac) == frame[12:24]] != [], "it was asked"
    assert received_by_the_host(net) == before


def received_by_the_host(net: Net) -> int:
    """How many packets for 10.0.0.1 the host's TCP has seen, by its answers: resets of no connection."""
    names, values = (
        line.split() for line in net.host.run("grep", "^Tcp:", "/proc/net/snmp").stdout.splitlines()
    )
    return int(dict(zip(names, values, strict=True))["OutRsts"])


@pytest.mark.parametrize("group", ["01:80:c2:00:00:0e", "01:80:c2:00:00:03"], ids=["LLDP", "802.1X"])
def test_frames_that_no_bridge_forwards_do_not_lead_guests_away_from_the_service(
    net: Net, group: str
) -> None:
    """The bridge takes them for itself before any guard sees them, and learns their source."""
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"
    send(net.other, hexmac(group) + hexmac(SERVICE_MAC) + "88cc" + "00" * 46)
    Sniffer(net.guest).seen(net.other)  # that frame has been handled
    entries = net.host.run("bridge", "fdb", "show", "br", "br0").stdout
    assert f"{SERVICE_MAC} dev {net.other.port} " not in entries
    assert net.guest.get(SERVICE_ADDRESS, 5030) == "hello"


def test_without_guards_the_sniffer_sees_the_forged_frames(net: Net) -> None:
    net.host.run("nft", "delete", "table", "bridge", "one_tproxy")
    sniffer = Sniffer(net.guest)
    mac = mac_of(net.other)
    frames = [
        arp(2, mac, SERVICE_ADDRESS, "10.0.0.5"),
        arp(1, SERVICE_MAC, "10.0.0.6", "10.0.0.5", source=mac),
        ipv4(mac, SERVICE_ADDRESS, mac_of(net.guest), "10.0.0.5"),
    ]
    for frame in frames:
        send(net.other, frame)
    assert {frame[24:60] for frame in sniffer.seen(net.other)} >= {frame[24:60] for frame in frames}


def test_a_guest_with_only_a_default_gateway_reaches_the_service(net: Net) -> None:
    late = net.host.add_guest("late", "br0", "10.0.0.8/24", route=False, gateway="10.0.0.6")
    await_guarded(net.host, late)
    sniffer = Sniffer(net.other)  # the gateway
    assert late.get(SERVICE_ADDRESS, 5030) == "hello"
    assert [frame for frame in sniffer.seen(late) if hexip(SERVICE_ADDRESS) == frame[60:68]] == []


def test_a_default_gateway_that_nobody_answers_for_leads_to_the_service_only_by_a_fixed_entry(
    net: Net,
) -> None:
    """The guest asks for the MAC of its gateway, which is not ours to answer, and sends nothing before."""
    late = net.host.add_guest("late", "br0", "10.0.0.8/24", route=False, gateway="10.0.0.77")
    await_guarded(net.host, late)
    with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
        late.get(SERVICE_ADDRESS, 5030, timeout=4)
    late.ip("neigh replace 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
    assert late.get(SERVICE_ADDRESS, 5030) == "hello"


def test_ports_that_are_added_later_are_guarded_too(net: Net) -> None:
    late = net.host.add_guest("late", "br0", "10.0.0.8/24")
    await_guarded(net.host, late)
    sniffer = Sniffer(net.guest)
    send(late, arp(2, mac_of(late), SERVICE_ADDRESS, "10.0.0.5"))
    assert sniffer.seen(late) == []
    net.host.ip(f"link del {late.port}")
    for _ in eventually():
        if late.port not in ports_set(net):
            break


def test_other_bridges_are_not_touched(net: Net) -> None:
    """A network that we do not serve may use the service address itself."""
    net.host.add_bridge("br1")
    asking = net.host.add_guest("asking", "br1", "10.0.0.5/24")
    answering = net.host.add_guest("answering", "br1", f"{SERVICE_ADDRESS}/32", route=False)
    answering.ip("route add default dev eth0")
    net.host.add_endpoint(SERVICE_ADDRESS, 5030, "foreign", netns="answering")
    assert asking.get(SERVICE_ADDRESS, 5030) == "foreign"


def test_frames_between_guests_pass(net: Net) -> None:
    assert net.guest.run("ping", "-c1", "-W20", "10.0.0.6").returncode == 0
    assert net.guest.run("ping", "-c1", "-W20", "10.0.0.7").returncode == 0


def test_a_host_firewall_that_drops_bridged_packets_causes_a_warning(hypervisor: Hypervisor) -> None:
    switch = hypervisor.path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not switch.exists():
        pytest.skip("this kernel has no br_netfilter")
    hypervisor.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    hypervisor.run(
        "nft",
        "add table ip filter; add chain ip filter F { type filter hook forward priority 0; policy drop; }",
    )
    hypervisor.add_bridge("br0")
    config = hypervisor.write("/run/t.yaml", "tproxy: [{remote_addr: 127.0.0.1, remote_port: 80}]\n")
    done = hypervisor.tproxy("hook", "up", "--bridge", "br0", "--config", config)
    assert "bridge-nf-call-iptables" in done.stderr
    assert done.stderr.count("\n") == 1


def ports_set(net: Net) -> str:
    return net.host.run("nft", "list", "table", "bridge", "one_tproxy").stdout
