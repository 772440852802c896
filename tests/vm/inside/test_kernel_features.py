"""Features that small kernels lack and distributions' kernels have: tproxy uses them, or is not confused."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tests.netns.ruleset import lasting
from tests.netns.test_two_hosts import ADDRESS, MAC, Tap
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.process import table

ENDPOINT = "10.11.12.13"
CONFIG = "/run/tproxy.yaml"
LOG = "/var/log/one_tproxy.log"


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    """A hypervisor with an endpoint, and a configuration for all networks."""
    return configured(hypervisor, "hello")


def configured(host: Hypervisor, body: str) -> Hypervisor:
    host.add_endpoint(ENDPOINT, 8080, body)
    host.write(CONFIG, f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n")
    return host


def up(host: Hypervisor, bridge: str) -> str:
    """Run the hook, and return what it printed to stderr."""
    return host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG).stderr


def ask(guest: Guest) -> str:
    return guest.get(SERVICE_ADDRESS, 5030, timeout=60)


def ruleset(host: Hypervisor) -> str:
    """Return the rules with handles, which change when a rule is loaded again."""
    return lasting(host.run("nft", "-a", "list", "ruleset").stdout)


def test_guards_match_by_the_bridges_name_and_need_no_change_when_ports_come(host: Hypervisor) -> None:
    for bridge in ("br0", "br1", "foreign"):
        host.add_bridge(bridge)
    gateway = host.add_guest("gateway", "br0", "10.0.0.1/24")
    for bridge in ("br0", "br1"):
        assert up(host, bridge) == ""
    loaded = ruleset(host)
    assert "meta ibrname != @guarded" in loaded
    for bridge in ("br0", "br1"):
        assert f'oifname != "{bridge}b" meta ibrname "{bridge}" drop' in loaded
    assert "match by port names" not in host.path(LOG).read_text()

    plain = host.add_guest("plain", "br0", "10.0.0.8/24", route=False, gateway=gateway.address)
    assert ask(plain) == "hello", "rules on the bridge redirect its frames for the gateway"
    other = host.add_guest("other", "br1", "10.0.0.8/24")
    assert ask(other) == "hello"

    # A network that is not served may use the address for itself.
    asking = host.add_guest("asking", "foreign", "10.0.0.5/24")
    answering = host.add_guest("answering", "foreign", f"{SERVICE_ADDRESS}/32", route=False)
    answering.ip("route add default dev eth0")
    host.add_endpoint(SERVICE_ADDRESS, 5030, "foreign", netns=answering.name)
    assert ask(asking) == "foreign"

    assert up(host, "br0") == ""
    assert ruleset(host) == loaded, "neither ports nor a second hook change a rule or an element"

    host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert '"br0"' not in ruleset(host)
    assert ask(other) == "hello"
    host.tproxy("hook", "down", "--bridge", "br1", "--force")
    assert "one_tproxy" not in ruleset(host)


def test_no_guest_can_claim_the_service_on_a_bridge_that_guards_match_by_name(host: Hypervisor) -> None:
    """Not from a port that came a moment ago either: these guards have no list of ports to keep current."""
    host.add_bridge("br0")
    guest = host.add_guest("guest", "br0", "10.0.0.5/24")
    up(host, "br0")
    assert ask(guest) == "hello"
    liar = host.add_guest("liar", "br0", f"{SERVICE_ADDRESS}/32", route=False)
    liar.ip("route add default dev eth0")
    tap = Tap(host, "eth0", ADDRESS, netns=guest.name)
    for gratuitous in ("-U", "-A"):
        liar.run("arping", "-c", "2", gratuitous, "-I", "eth0", SERVICE_ADDRESS, check=False)
    # Only the liar sends with this address and another MAC.
    assert [frame for frame in tap.seen("in") if frame[12:24] != MAC.hex()] == []
    assert ask(guest) == "hello"


@pytest.mark.parametrize("vlan", ["default", "by the driver"])
def test_a_guest_is_served_on_a_bridge_that_filters_vlans(host: Hypervisor, vlan: str) -> None:
    """Our port gets the bridge's default VLAN. A driver that puts guests on another adds our port to it."""
    default = 1 if vlan == "default" else 0
    host.ip(
        f"link add name br0 type bridge vlan_filtering 1 vlan_default_pvid {default}",
        "link set dev br0 up",
    )
    guest = host.add_guest("guest", "br0")
    up(host, "br0")
    if vlan == "by the driver":
        with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
            guest.get(SERVICE_ADDRESS, 5030, timeout=1)
        for port in (guest.port, "br0b"):
            host.run("bridge", "vlan", "add", "dev", port, "vid", "100", "pvid", "untagged")
    assert ask(guest) == "hello"
    up(host, "br0")
    assert ask(guest) == "hello", "a second hook leaves VLANs as they are"


@pytest.fixture
def neighbour(real_kernel: None) -> Iterator[Hypervisor]:
    with Hypervisor() as other:
        yield configured(other, "neighbour")


def test_networks_on_vlans_of_one_cable_are_served_by_their_hosts(
    host: Hypervisor, neighbour: Hypervisor
) -> None:
    """802.1Q as drivers build it: a bridge for each VLAN, with a VLAN link as uplink."""
    host.add_cable(neighbour, "wire")
    guests = {}
    for number, side in enumerate((host, neighbour)):
        side.ip("link add link wire name wire.100 type vlan id 100", "link set dev wire.100 up")
        side.add_bridge("onebr.100")
        side.ip("link set dev wire.100 master onebr.100")
        guests[side] = side.add_guest("guest", "onebr.100", f"10.0.0.{5 + number}/24")
        assert up(side, "onebr.100") == ""
    assert '"wire.100"' in ruleset(host), "recognised as an uplink"
    taps = [Tap(host, "wire"), Tap(host, "wire.100")]
    proof = Tap(host, "wire", bytes([10, 0, 0, 6]))
    assert ask(guests[host]) == "hello"
    assert ask(guests[neighbour]) == "neighbour"
    guests[host].run("ping", "-c", "1", "-W", "60", "10.0.0.6")
    assert proof.seen() != [], "the taps see frames that cross"
    assert [tap.seen() for tap in taps] == [[], []]


HARDENED = {"arp_ignore": 2, "arp_announce": 2, "arp_filter": 1, "rp_filter": 1, "log_martians": 1}


@pytest.fixture
def hardened(real_kernel: None) -> Iterator[None]:
    """Set sysctls as a hardened host has them. Every new namespace inherits the values of the machine."""
    before = {}
    for scope in ("all", "default"):
        for key, value in HARDENED.items():
            file = Path(f"/proc/sys/net/ipv4/conf/{scope}/{key}")
            before[file] = file.read_text()
            file.write_text(str(value))
    yield
    for file, text in before.items():
        file.write_text(text)


def test_a_guest_is_served_on_a_host_with_hardened_sysctls(hardened: None, hypervisor: Hypervisor) -> None:
    host = configured(hypervisor, "hello")
    host.add_bridge("br0")
    guest = host.add_guest("guest", "br0")
    host.run("ip", "netns", "add", "fresh")
    assert host.run("sysctl", "-n", "net.ipv4.conf.all.arp_ignore", netns="fresh").stdout == "2\n"
    up(host, "br0")
    assert ask(guest) == "hello"


def test_terminate_takes_a_process_for_ended_although_its_session_goes_on() -> None:
    """A daemon and its relays are such a session; pidfd_open(2) then fails with EINVAL on these kernels."""
    with subprocess.Popen(program("session_leader"), stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"ready\n"
        process = psutil.Process(leader.pid)
        (child,) = process.children()
        leader.kill()
        leader.wait()
        try:
            with pytest.raises(OSError, match="Invalid argument"):
                os.pidfd_open(leader.pid)
            table.terminate([process])
        finally:
            child.kill()


def test_a_stream_arrives_whole_over_a_bad_line(
    hypervisor: Hypervisor, start_endpoint: StartEndpoint
) -> None:
    blocks = 32
    size = blocks << 16
    start_endpoint("digest", ENDPOINT, 7001)
    start_endpoint("source", ENDPOINT, 7002, "--bytes", str(size))
    hypervisor.write(
        CONFIG,
        "tproxy:" + "".join(f"\n- {{remote_addr: {ENDPOINT}, remote_port: {p}}}" for p in (7001, 7002)),
    )
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    up(hypervisor, "br0")
    bad = "root netem delay 5ms 2ms loss 2% duplicate 1% reorder 10%"
    guest.run("tc", "-batch", "-", input=f"qdisc add dev eth0 {bad}\n")
    hypervisor.run("tc", "-batch", "-", input=f"qdisc add dev {guest.port} {bad}\n")
    digest = hashlib.sha256(bytes(range(256)) * 256 * blocks).hexdigest()
    uploaded = guest.run(*program("bulk", "upload", SERVICE_ADDRESS, "7001", str(blocks)))
    assert uploaded.stdout.strip() == f"{size} {digest}"
    downloaded = guest.run(*program("bulk", "download", SERVICE_ADDRESS, "7002"))
    assert downloaded.stdout.strip() == str(size)
    dropped = guest.run("tc", "-s", "qdisc", "show", "dev", "eth0").stdout
    assert "dropped 0," not in dropped, "the line has lost packets"
