"""Two hypervisors on one layer 2: each guest is answered by its own host, and no frame of that crosses.

The uplinks are what hosts have: a port of any kind that is named to the hook (here a cable), or a tunnel,
which the hook recognises by itself. A tap on the uplink sees every frame that crosses.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor

ENDPOINT = "10.11.12.13"
UNDERLAY = {"left": "192.0.2.1", "right": "192.0.2.2"}


class Host(NamedTuple):
    """One of the two hypervisors, with its guest."""

    name: str
    hypervisor: Hypervisor
    uplink: str
    guest: Guest

    def hook(self, verb: str, *arguments: str) -> None:
        config = () if verb == "down" else ("--config", "/run/tproxy.yaml")
        done = self.hypervisor.tproxy("hook", verb, "--bridge", "br0", *config, *arguments, check=False)
        assert done.returncode in ((0, EXIT_IN_USE) if verb == "down" else (0,)), done.stderr


class Net(NamedTuple):
    left: Host
    right: Host
    named: bool  # whether the hook has to be told which port is the uplink

    def hook_up(self) -> None:
        for host in (self.left, self.right):
            host.hook("up", *(("--uplink", host.uplink) if self.named else ()))


@pytest.fixture(params=["cable, named", "tunnel, named", "tunnel, recognised"])
def net(real_kernel: None, request: pytest.FixtureRequest) -> Iterator[Net]:
    medium, _, known = request.param.partition(", ")
    with Hypervisor() as left, Hypervisor() as right:
        left.add_cable(right, "wire")
        hosts = {}
        for name, hypervisor in {"left": left, "right": right}.items():
            hypervisor.add_bridge("br0")
            number = 5 if name == "left" else 6
            guest = hypervisor.add_guest("guest", "br0", f"10.0.0.{number}/24")
            if medium == "tunnel":
                add_tunnel(hypervisor, name)
            uplink = "wire" if medium == "cable" else "tunnel"
            hypervisor.ip(f"link set dev {uplink} master br0")
            hypervisor.add_endpoint(ENDPOINT, 8080, name)
            hypervisor.add_endpoint(ENDPOINT, 9000, program=program("ticking_endpoint"))
            services = "".join(
                f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {remote}}}\n"
                for port, remote in {5030: 8080, 7: 9000}.items()
            )
            hypervisor.write("/run/tproxy.yaml", f"tproxy:\n{services}")
            hosts[name] = Host(name, hypervisor, uplink, guest)
        yield Net(hosts["left"], hosts["right"], known == "named")


def add_tunnel(hypervisor: Hypervisor, name: str) -> None:
    (other,) = UNDERLAY.keys() - {name}
    hypervisor.ip(
        f"address add {UNDERLAY[name]}/24 dev wire",
        f"link add tunnel type vxlan id 7 local {UNDERLAY[name]} remote {UNDERLAY[other]} dstport 4789",
        "link set dev tunnel up",
    )


class Tap:
    """A recorder of the frames at a link that contain one of some addresses."""

    def __init__(self, hypervisor: Hypervisor, link: str, *holding: bytes, netns: str | None = None) -> None:
        wanted = [each.hex() for each in holding or (ADDRESS, MAC)]
        self._process = hypervisor.popen(
            *program("frame_recorder", link, *wanted),
            netns=netns,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def seen(self, direction: str = "") -> list[str]:
        """End the recording; return the frames, or those of one direction, ``in`` or ``out``."""
        time.sleep(0.3)  # for frames that are under way: nothing tells that there are none
        out, _ = self._process.communicate()
        return [
            frame for way, frame in map(str.split, filter(None, out.splitlines())) if direction in ("", way)
        ]


ADDRESS = socket.inet_aton(SERVICE_ADDRESS)
MAC = bytes.fromhex(SERVICE_MAC.replace(":", ""))
EVERYBODY = b"\xff" * 6


def arp(operation: int, sender_mac: bytes, sender: bytes, target: bytes, *, source: bytes = b"") -> str:
    """Return an ARP frame to everybody in hexadecimal, RFC 826."""
    head = EVERYBODY + (source or sender_mac) + bytes.fromhex("0806000108000604")
    body = operation.to_bytes(2, "big") + sender_mac + sender + b"\0" * 6 + target
    return (head + body).ljust(60, b"\0").hex()


def learnt(guest: Guest) -> str:
    """Return the MAC that the guest has in its ARP cache for the service."""
    words = guest.run("ip", "neigh", "show", SERVICE_ADDRESS).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def exercise(host: Host) -> None:
    """Let guest and namespace of one host send everything that they ever say about the service."""
    flush = ("ip", "neigh", "flush", "all")
    for _ in range(3):
        host.guest.run(*flush)
        host.hypervisor.run(*flush, netns="one_tproxy_br0")
        assert host.guest.get(SERVICE_ADDRESS, 5030) == host.name
    namespace: dict[str, Any] = {"netns": "one_tproxy_br0", "stdout": subprocess.DEVNULL}
    # Gratuitous ARP, a request and a reply. Nobody answers, and each takes a second.
    gratuitous = [
        host.hypervisor.popen("arping", "-c", "1", kind, "-I", "br0a", SERVICE_ADDRESS, **namespace)
        for kind in ("-U", "-A")
    ]
    asked = host.guest.run("arping", "-c", "2", "-w", "20", "-I", "eth0", SERVICE_ADDRESS)
    assert "Received 2" in asked.stdout
    for each in gratuitous:
        each.wait(PATIENCE)
    host.guest.run("ping", "-c", "1", "-W", "20", SERVICE_ADDRESS)


def test_each_guest_is_answered_by_its_own_host_and_nothing_crosses(net: Net) -> None:
    net.hook_up()
    taps = [Tap(host.hypervisor, link) for host in (net.left, net.right) for link in {host.uplink, "wire"}]
    proof = Tap(net.left.hypervisor, net.left.uplink, socket.inet_aton("10.0.0.6"))
    for host in (net.left, net.right):
        exercise(host)
    assert [tap.seen() for tap in taps] == [[]] * len(taps)
    net.left.guest.run("ping", "-c", "1", "-W", "20", "10.0.0.6")
    assert len(proof.seen()) >= 4, "an ARP and a ping must have crossed, and been seen"


def test_without_guards_frames_about_the_service_cross(net: Net) -> None:
    """The proof that the taps would see such frames."""
    net.hook_up()
    for host in (net.left, net.right):
        host.hypervisor.run("nft", "delete", "table", "bridge", "one_tproxy")
    taps = [Tap(net.left.hypervisor, net.left.uplink), Tap(net.right.hypervisor, net.right.uplink)]
    net.left.guest.run("arping", "-c", "1", "-w", "1", "-I", "eth0", SERVICE_ADDRESS, check=False)
    left, right = (tap.seen() for tap in taps)
    assert left, "the guest's request leaves"
    assert right, "it arrives, and is answered from over there"


def test_a_gateway_on_the_other_host_gets_no_packet_for_the_service(net: Net) -> None:
    """A guest without a route for the service sends to the MAC of its gateway, which is on the other host."""
    net.hook_up()
    guest = net.left.hypervisor.add_guest("plain", "br0", "10.0.0.8/24", route=False, gateway="10.0.0.6")
    net.hook_up()  # as at every VM start
    guest.run("ping", "-c", "1", "-W", "20", "10.0.0.6")
    tap = Tap(net.left.hypervisor, net.left.uplink)
    assert guest.get(SERVICE_ADDRESS, 5030) == "left"
    assert tap.seen() == []


@pytest.mark.parametrize("pretender", ["without tproxy", "with tproxy"])
def test_a_flood_of_false_answers_from_the_other_host_changes_nothing(net: Net, pretender: str) -> None:
    """The other host's guests and operator may send anything: this host drops it at the uplink."""
    net.hook_up()
    right = net.right.hypervisor
    liar = right.add_guest("liar", "br0", f"{SERVICE_ADDRESS}/32", route=False)
    liar.ip("route add default dev eth0")
    right.add_endpoint(SERVICE_ADDRESS, 5030, "stolen", netns=liar.name)
    if pretender == "without tproxy":
        net.right.hook("down", "--force")
        sender, link = liar.name, "eth0"
    else:
        # From behind its guards, which would have stopped that guest: from the uplink itself.
        sender, link = None, net.right.uplink
    mac = bytes.fromhex(liar.run("ip", "-br", "link", "show", "eth0").stdout.split()[2].replace(":", ""))
    asked = socket.inet_aton("10.0.0.5")
    flood = [
        arp(2, mac, ADDRESS, asked),  # "I am the service"
        arp(1, mac, ADDRESS, ADDRESS),  # gratuitous
        arp(1, MAC, socket.inet_aton("10.0.0.9"), asked),  # our MAC: the bridge must not learn it there
        arp(2, MAC, ADDRESS, asked, source=mac),
    ]
    arrives = Tap(net.left.hypervisor, net.left.uplink)
    inside = Tap(net.left.hypervisor, "eth0", mac, netns=net.left.guest.name)
    with right.serve(*program("frame_flood", link, *flood), netns=sender) as flooding:
        for _ in range(10):
            net.left.guest.run("ip", "neigh", "flush", "all")
            assert net.left.guest.get(SERVICE_ADDRESS, 5030) == "left"
            assert learnt(net.left.guest) == SERVICE_MAC
        flooding.kill()
    frames = arrives.seen()
    assert len(frames) > 100, "the flood must have arrived"
    assert [frame for frame in inside.seen() if frame[24:28] in ("0806", "0800")] == []


def test_answers_to_a_flood_of_requests_do_not_leave_the_host(net: Net) -> None:
    net.hook_up()
    mac = bytes.fromhex("0200000000aa")
    request = arp(1, mac, socket.inet_aton("10.0.0.9"), ADDRESS)
    tap = Tap(net.left.hypervisor, net.left.uplink)
    flood = program("frame_flood", net.right.uplink, request)
    with net.right.hypervisor.serve(*flood) as flooding:
        exercise(net.left)
        flooding.kill()
    assert tap.seen("out") == []


class Migration:
    """A guest of the left host that moves to the right one while it runs."""

    def __init__(self, net: Net) -> None:
        self.net, self.guest = net, net.left.guest
        # A virtual network card stays up while its machine moves. The one of our guest loses its carrier for
        # a moment, and the kernel would forget its neighbours.
        self.guest.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_evict_nocarrier=0")

    def go(self) -> None:
        """Call the hook on the target and move the guest, as drivers do."""
        left, right = self.net.left, self.net.right
        self.net.hook_up()
        self.guest = right.hypervisor.take_over(self.guest, left.hypervisor, "br0")

    def finish(self) -> None:
        """Call the hooks that drivers call after a migration, on the source and on the target."""
        self.net.left.hook("down", *(("--uplink", self.net.left.uplink) if self.net.named else ()))
        self.net.hook_up()


@pytest.fixture
def migration(net: Net) -> Migration:
    net.hook_up()
    return Migration(net)


def test_a_migrated_guest_is_answered_at_once_without_an_arp_request(migration: Migration) -> None:
    guest, net = migration.guest, migration.net
    assert guest.get(SERVICE_ADDRESS, 5030) == "left"
    assert learnt(guest) == SERVICE_MAC
    taps = [Tap(host.hypervisor, host.uplink) for host in (net.left, net.right)]
    asked = Tap(guest.hypervisor, "eth0", EVERYBODY, netns=guest.name)
    migration.go()
    assert learnt(guest) == SERVICE_MAC, "the ARP cache came along"
    assert guest.get(SERVICE_ADDRESS, 5030) == "right"
    assert learnt(guest) == SERVICE_MAC
    assert [frame for frame in asked.seen("out") if ADDRESS.hex() in frame] == []
    assert [tap.seen() for tap in taps] == [[], []]
    migration.finish()
    assert guest.get(SERVICE_ADDRESS, 5030) == "right"


def test_migration_resets_open_connections_and_the_old_host_sends_nothing_of_them_out(
    migration: Migration,
) -> None:
    guest, net = migration.guest, migration.net
    talker = guest.popen(
        *program("ticking_guest", SERVICE_ADDRESS, "7"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert talker.stdout is not None
    assert talker.stdin is not None
    assert talker.stdout.readline() == "ready tick\n"
    taps = [Tap(host.hypervisor, host.uplink) for host in (net.left, net.right)]
    migration.go()
    # The old host still sends to a guest that is not there any more.
    print("hello?", file=talker.stdin, flush=True)
    assert talker.stdout.readline() == "ECONNRESET\n"
    assert [tap.seen() for tap in taps] == [[], []]


def test_a_guest_that_comes_back_is_answered_by_the_first_host_again(migration: Migration) -> None:
    net = migration.net
    migration.go()
    assert migration.guest.get(SERVICE_ADDRESS, 5030) == "right"
    back = net.left.hypervisor.take_over(migration.guest, net.right.hypervisor, "br0")
    assert back.get(SERVICE_ADDRESS, 5030) == "left"


def test_taking_the_bridge_down_ends_the_open_connection_of_a_migrated_guest(
    migration: Migration,
) -> None:
    """A driver calls ``down`` on the source, where this was the last guest: no connection hangs there."""
    guest, net = migration.guest, migration.net
    talker = guest.popen(
        *program("ticking_guest", SERVICE_ADDRESS, "7"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert talker.stdout is not None
    assert talker.stdout.readline() == "ready tick\n"
    migration.go()
    assert net.left.hypervisor.run("ss", "-Htn", "dport = :9000").stdout != ""
    net.left.hook("down", "--uplink", net.left.uplink)
    for _ in eventually():
        if net.left.hypervisor.run("ss", "-Htn", "dport = :9000").stdout == "":
            break
    with pytest.raises(ProcessError, match=r"No such file"):
        net.left.hypervisor.run("ip", "netns", "exec", "one_tproxy_br0", "true")
