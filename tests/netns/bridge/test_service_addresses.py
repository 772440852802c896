"""Service addresses other than 169.254.16.9: reached, guarded, and gone when nobody wants them."""

from __future__ import annotations

import re

import pytest

from tests.netns.bridge.test_guards import arp, hexip, hexmac, ipv4, mac_of, send
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS, SERVICE_MAC

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
        host.ip("address add 10.0.0.1/24 dev br0", f"route add {METADATA} dev br0")
        self.guest = self.add_guest("guest", "br0", "10.0.0.5/24")
        self.other = self.add_guest("other", "br0", "10.0.0.6/24")
        self.neighbour = host.add_guest("neighbour", "br0", "10.0.0.7/24", route=False)
        self.neighbour.ip(f"address add {METADATA}/32 dev eth0")
        for port, body in ((8080, "plain"), (8081, "metadata")):
            host.add_endpoint(ENDPOINT, port, body)
        host.add_endpoint(METADATA, 80, "the cloud's own", netns="neighbour")
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

    def guards(self) -> str:
        """The rules and sets of the guards, without what the limits note."""
        listed = self.host.run("nft", "list", "table", "bridge", "one_tproxy").stdout
        return re.sub(r"\tset (known6?|fresh|syns|arps) \{.*?\n\t\}\n", "", listed, flags=re.DOTALL)

    def addresses(self) -> list[str]:
        shown = self.host.run("ip", "-br", "-4", "address", "show", "br0a", netns="one_tproxy_br0").stdout
        return sorted(shown.split()[2:])

    def await_port(self, guest: Guest) -> None:
        """Wait until the guards know a guest's port, if they match ports."""
        for _ in eventually():
            if "meta ibrname" in (listed := self.guards()) or f'"{guest.port}"' in listed:
                return


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
    net.await_port(late)
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


def test_open_connections_at_the_other_address_go_on_when_one_comes(net: Net) -> None:
    net.configure(PLAIN)
    net.up()
    net.host.add_endpoint(ENDPOINT, 8082, program=program("stoppable_echo"))
