"""Service addresses other than 169.254.16.9: reached, guarded, and gone when nobody wants them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import takewhile

import pytest

from tests.netns.bridge.test_guards import arp, broadcast, hexip, hexmac, ipv4, mac_of, send
from tests.netns.conftest import ENDPOINTS
from tests.netns.program import program
from tests.netns.ruleset import await_guarded
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

METADATA = "169.254.169.254"
ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"
PLAIN = f"{{service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8080}}"
FURTHER = f"{{service_addr: {METADATA}, service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8081}}"


class Net:
    """Bridge br0 with two guests, and an uplink to a neighbour who really has the address METADATA."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        host.ip("address add 10.0.0.1/24 dev br0")
        self.guest = self.add_guest("guest", "br0", "10.0.0.5/24")
        self.other = self.add_guest("other", "br0", "10.0.0.6/24")
        self.neighbour = host.add_guest("neighbour", "br0", "10.0.0.7/24", route=False)
        for port, body in ((8080, "plain"), (8081, "metadata")):
            host.add_endpoint(ENDPOINT, port, body)
        self.configure(PLAIN, FURTHER)
        self.up()

    def add_guest(self, name: str, bridge: str, address: str) -> Guest:
        guest = self.host.add_guest(name, bridge, address)
        guest.ip(f"route add {METADATA} dev eth0")
        return guest

    def configure(self, *entries: str) -> None:
        self.host.write(FILE, f"tproxy: [{', '.join(entries)}]\n")

    def hook(self, verb: str, bridge: str, *options: str) -> list[str]:
        uplink = ("--uplink", self.neighbour.port)
        done = self.host.tproxy("hook", verb, "--bridge", bridge, "--config", FILE, *uplink, *options)
        return done.stdout.splitlines()

    def up(self, bridge: str = "br0", *options: str) -> list[str]:
        return self.hook("up", bridge, *options)

    def guards(self) -> list[str]:
        """The chains and sets of the guards, sorted, without what the limits note."""
        listed = self.host.run("nft", "list", "table", "bridge", "one_tproxy", check=False).stdout
        found = re.findall(r"^\t(?:chain|set) .*?^\t\}$", listed, flags=re.DOTALL | re.MULTILINE)
        return sorted(each for each in found if not re.match(r"\tset (known6?|fresh|syns|arps) ", each))

    def addresses(self) -> list[str]:
        shown = self.host.run("ip", "-br", "-4", "address", "show", "br0a", netns="one_tproxy_br0").stdout
        return sorted(shown.split()[2:])


class Sniffer:
    """Records the frames at a guest's link that concern an address or our MAC."""

    def __init__(self, guest: Guest, address: str) -> None:
        self._process = guest.popen(
            *program("frame_sniffer", address, SERVICE_MAC, "eth0"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def seen(self, after: Guest) -> list[str]:
        """The frames that concern the service, up to one that the guest ``after`` sends now."""
        marker = broadcast(after)
        send(after, marker)
        assert self._process.stdout is not None
        return list(takewhile(lambda frame: frame != marker, map(str.strip, self._process.stdout)))


@pytest.fixture
def net(hypervisor: Hypervisor) -> Net:
    return Net(hypervisor)


def test_a_service_at_another_address_is_another_service(net: Net) -> None:
    assert net.guest.get(SERVICE_ADDRESS, 80) == "plain"
    assert net.guest.get(METADATA, 80) == "metadata"
    assert net.addresses() == [f"{SERVICE_ADDRESS}/32", f"{METADATA}/32"]
    listed = net.host.run("nft", "list", "map", "ip", "one_tproxy", "sv_br0").stdout
    assert f"{METADATA} . tcp . 80 . 0x00000000 : {ENDPOINT} . 8081" in listed
    assert METADATA not in net.host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
    shown = net.host.tproxy("status", "--verbose").stdout
    assert f"{METADATA}:80" in shown


def test_a_guest_with_only_a_default_gateway_reaches_it_too(net: Net) -> None:
    late = net.host.add_guest("late", "br0", "10.0.0.8/24", route=False, gateway="10.0.0.6")
    await_guarded(net.host, late)
    assert late.get(METADATA, 80) == "metadata"


def test_an_address_that_no_entry_wants_goes_with_all_its_rules(net: Net) -> None:
    net.configure(PLAIN)
    net.hook("down", "br0", "--force")
    net.up()
    plain, wall = net.guards(), net.host.run("nft", "list", "ruleset", netns="one_tproxy_br0").stdout
    net.configure(PLAIN, FURTHER)
    assert net.up() == []
    assert net.guest.get(METADATA, 80) == "metadata"
    assert net.guards() != plain
    further = net.guards()
    net.up()
    assert net.guards() == further
    assert net.up("br0", "--dry-run") == []
    net.configure(PLAIN)
    assert len(net.up("br0", "--dry-run")) == 4
    net.up()
    assert net.guards() == plain
    assert net.host.run("nft", "list", "ruleset", netns="one_tproxy_br0").stdout == wall
    assert net.addresses() == [f"{SERVICE_ADDRESS}/32"]
    assert net.guest.get(SERVICE_ADDRESS, 80) == "plain"
    assert "sv_br0" not in net.host.run("nft", "list", "table", "ip", "one_tproxy").stdout


def test_a_dry_run_names_the_address_the_guards_and_the_port(net: Net) -> None:
    net.configure(PLAIN)
    net.up()
    net.configure(PLAIN, FURTHER)
    assert net.up("br0", "--dry-run") == [
        "load guards of br0",
        f"configure br0a: address {SERVICE_ADDRESS}/32, address {METADATA}/32, MAC {SERVICE_MAC}, MTU 1500, "
        "default route, up",
        "load service map of br0",
        f"port {METADATA}:80 leads to {ENDPOINT}:8081",
    ]


def test_connections_go_on_while_addresses_come_and_go(net: Net) -> None:
    net.configure(PLAIN)
    net.up()
    net.host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
    echo = f"{{service_port: 7, remote_addr: {ENDPOINT}, remote_port: 9000}}"
    net.configure(PLAIN, echo)
    net.up()
    talk = Talk(net.guest, 7)
    for entries in ((PLAIN, echo, FURTHER), (PLAIN, echo)):
        net.configure(*entries)
        net.up()
        assert talk.say("still there") == "still there"
    talk.end()


def test_connections_at_an_address_that_is_taken_away_are_reset(net: Net) -> None:
    net.host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
    echo = f"{{service_port: 7, remote_addr: {ENDPOINT}, remote_port: 9000}}"
    net.configure(PLAIN, echo, echo.replace("{", f"{{service_addr: {METADATA}, ", 1))
    net.up()
    stays, goes = Talk(net.guest, 7), Talk(net.guest, 7, METADATA)
    net.configure(PLAIN, echo)
    net.up()
    for _ in eventually():
        if not net.guest.run("ss", "-Htn", "state", "established", "dst", METADATA).stdout:
            break
    assert stays.say("still there") == "still there"
    assert "end=address_removed" in net.host.path("/var/log/one_tproxy.log").read_text()
    stays.end()
    goes.end()


def test_only_our_port_can_claim_the_address(net: Net) -> None:
    mac = mac_of(net.other)
    assert net.guest.get(METADATA, 80) == "metadata"
    sniffer = Sniffer(net.guest, METADATA)
    send(net.other, arp(2, mac, METADATA, net.guest.address))
    send(net.other, arp(1, mac, METADATA, METADATA))  # gratuitous
    send(net.other, ipv4(mac, METADATA, mac_of(net.guest), net.guest.address))
    genuine = arp(1, SERVICE_MAC, METADATA, net.guest.address)[12:84]
    assert [frame for frame in sniffer.seen(net.other) if frame[12:84] != genuine] == []
    assert net.guest.get(METADATA, 80) == "metadata"


def test_requests_for_the_address_go_to_our_port_alone(net: Net) -> None:
    sniffers = [Sniffer(net.other, METADATA), Sniffer(net.neighbour, METADATA)]
    assert net.guest.get(METADATA, 80) == "metadata"
    for sniffer in sniffers:
        assert [frame for frame in sniffer.seen(net.guest) if hexip(METADATA) == frame[76:84]] == []


def test_a_bridge_without_the_address_is_left_alone(net: Net) -> None:
    net.host.add_bridge("br1")
    asking = net.add_guest("asking", "br1", "10.0.0.5/24")
    answering = net.host.add_guest("answering", "br1", f"{METADATA}/32", route=False)
    answering.ip("route add default dev eth0")
    net.host.add_endpoint(METADATA, 80, "foreign", netns="answering")
    net.configure(PLAIN, FURTHER.replace("{", "{networks: blue, ", 1))
    net.up("br0", "--network", "blue")
    net.up("br1", "--network", "red")
    await_guarded(net.host, asking)
    assert asking.get(METADATA, 80) == "foreign"
    assert asking.get(SERVICE_ADDRESS, 80) == "plain"
    assert net.guest.get(METADATA, 80) == "metadata"


def test_two_bridges_have_the_address_and_one_of_them_goes(net: Net) -> None:
    net.host.add_bridge("br1")
    before = net.guards()
    net.up("br1")
    late = net.add_guest("late", "br1", "10.0.0.5/24")
    await_guarded(net.host, late)
    assert late.get(METADATA, 80) == "metadata"
    net.hook("down", "br1", "--force")
    assert net.guards() == before
    assert net.guest.get(METADATA, 80) == "metadata"


def test_the_host_reaches_its_own_neighbour_of_that_address_through_an_uplink(net: Net) -> None:
    """A hypervisor that is a virtual machine in a cloud has its metadata there."""
    net.neighbour.ip(f"address add {METADATA}/32 dev eth0")
    net.host.add_endpoint(METADATA, 80, "the cloud's own", netns="neighbour")
    net.host.ip(f"route add {METADATA} dev br0")
    assert net.host.get(METADATA, 80) == "the cloud's own"
    assert net.guest.get(METADATA, 80) == "metadata"
    net.host.ip("neigh flush all")
    assert net.host.get(METADATA, 80) == "the cloud's own"
    learnt = net.host.run("ip", "neigh", "show", METADATA).stdout
    assert mac_of(net.neighbour) in learnt
    # That neighbour reaches guests as little as they reach it.
    sniffer = Sniffer(net.guest, METADATA)
    mac = mac_of(net.neighbour)
    send(net.neighbour, arp(2, mac, METADATA, net.guest.address))
    send(net.neighbour, ipv4(mac, METADATA, mac_of(net.guest), net.guest.address))
    assert [frame for frame in sniffer.seen(net.neighbour) if hexmac(mac) == frame[12:24]] == []


def test_somebody_behind_an_uplink_does_not_reach_the_service(net: Net) -> None:
    net.neighbour.ip(f"route add {METADATA} dev eth0")
    with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
        net.neighbour.get(METADATA, 80, timeout=4)
    net.neighbour.ip(f"neigh replace {METADATA} lladdr {SERVICE_MAC} dev eth0")
    with pytest.raises(ProcessError, match="ETIMEDOUT"):
        net.neighbour.get(METADATA, 80, timeout=1)
    assert "10.0.0.7" not in net.host.run("ip", "neigh", netns="one_tproxy_br0").stdout


def test_an_address_of_the_host_itself_stays_the_hosts(hypervisor: Hypervisor) -> None:
    """Nothing is put into the root namespace."""
    hypervisor.ip(f"address add {METADATA}/32 dev lo")
    hypervisor.add_endpoint(METADATA, 80, "the host's own")
    net = Net(hypervisor)
    assert hypervisor.get(METADATA, 80) == "the host's own"
    assert net.guest.get(METADATA, 80) == "metadata"
    assert hypervisor.run("ip", "-br", "address", "show", "br0b").stdout.split()[2:] == []


def test_the_wall_opens_the_ports_of_each_address_there_alone(net: Net) -> None:
    net.configure(PLAIN.replace("80,", "81,", 1), FURTHER)
    net.up()
    assert net.guest.get(SERVICE_ADDRESS, 81) == "plain"
    assert net.guest.get(METADATA, 80) == "metadata"
    for address, port in ((SERVICE_ADDRESS, 80), (METADATA, 81)):
        with pytest.raises(ProcessError, match="ECONNREFUSED"):
            net.guest.get(address, port)
    assert net.guest.run("ping", "-c1", "-W20", METADATA).returncode == 0
    services = net.host.run("nft", "list", "set", "inet", "one_tproxy", "services", netns="one_tproxy_br0")
    assert f"elements = {{ {METADATA} . tcp . 80 }}" in services.stdout


def test_a_port_brings_in_so_many_sources_over_all_addresses(net: Net) -> None:
    known = net.host.run("nft", "list", "set", "bridge", "one_tproxy", "known").stdout
    assert net.guest.get(METADATA, 80) == "metadata"
    assert f'"{net.guest.port}" . {net.guest.address}' not in known
    known = net.host.run("nft", "list", "set", "bridge", "one_tproxy", "known").stdout
    assert f'"{net.guest.port}" . {net.guest.address}' in known


def test_guards_and_address_are_repaired_by_the_next_hook(net: Net) -> None:
    before = net.guards()
    for damage in (
        "flush chain bridge one_tproxy guard_prerouting",
        f"flush set bridge one_tproxy at_{METADATA}",
        "flush chain bridge one_tproxy guard_at_asking",
        "flush chain bridge one_tproxy ch_br0",
        "delete table bridge one_tproxy",
    ):
        net.host.run("nft", damage)
        net.up()
        assert net.guards() == before
    net.host.run("ip", "address", "del", f"{METADATA}/32", "dev", "br0a", netns="one_tproxy_br0")
    net.up()
    assert net.addresses() == [f"{SERVICE_ADDRESS}/32", f"{METADATA}/32"]
    assert net.guest.get(METADATA, 80) == "metadata"


def test_a_watcher_repairs_them_too(net: Net) -> None:
    net.host.popen(sys.executable, "-m", "tproxy", "watch", "--config", FILE)
    for _ in eventually():
        if net.host.run("pgrep", "-fx", "tproxy-watch", check=False).stdout:
            break
    before = net.guards()
    for damage in (f"flush set bridge one_tproxy at_{METADATA}", "flush ruleset"):
        net.host.run("nft", damage)
        for _ in eventually():
            if net.guards() == before:
                break
        assert net.guest.get(METADATA, 80) == "metadata"


def test_after_a_flush_the_next_hook_restores_them_from_the_daemons_memory(net: Net) -> None:
    net.host.add_bridge("br1")
    net.up("br1")
    before = net.guards()
    net.host.run("nft", "flush ruleset")
    net.up("br1")
    assert net.guards() == before
    assert net.guest.get(METADATA, 80) == "metadata"


def test_a_new_port_of_the_bridge_is_guarded_there_too(net: Net) -> None:
    late = net.add_guest("late", "br0", "10.0.0.8/24")
    await_guarded(net.host, late)
    assert late.get(METADATA, 80) == "metadata"
    net.host.ip(f"link del {late.port}")
    for _ in eventually():
        if f'"{late.port}"' not in "".join(net.guards()):
            break


def test_a_restart_and_a_new_daemon_serve_both_addresses(net: Net) -> None:
    net.host.tproxy("restart")
    assert net.guest.get(METADATA, 80) == "metadata"
    net.host.run("pkill", "-KILL", "-fx", "one_tproxy")
    assert net.guest.get(METADATA, 80) == "metadata"
    net.hook("down", "br0", "--force")
    assert net.host.run("nft", "list", "ruleset").stdout == ""


def test_the_endpoint_learns_at_which_address_the_guest_called(net: Net) -> None:
    endpoint = net.host.add_endpoint(ENDPOINT, 8082, program=program("introduced"))
    net.configure(FURTHER.replace("8081", "8082, proxy_protocol: v2"))
    net.up()
    net.guest.run(*program("caller", "say_and_end", METADATA, "80", "hi"))
    assert endpoint.stdout is not None
    said = json.loads(endpoint.stdout.readline())
    assert said["destination"] == [METADATA, 80]
    assert said["source"][0] == net.guest.address
