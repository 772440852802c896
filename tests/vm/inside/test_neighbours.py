"""A flood from one guest, and the kernel's neighbour table, which the host and all namespaces share.

The table's limit is net.ipv4.neigh.default.gc_thresh3, 1,024 entries unless an operator raises it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.asking import Asking
from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
CONFIG = "/run/tproxy.yaml"
SOURCES = 2500  # of SYNs, and as many of ARP requests
NEIGHBOURS = [f"10.99.0.{number}" for number in range(2, 102)]


@pytest.fixture
def host(hypervisor: Hypervisor, start_endpoint: StartEndpoint) -> Hypervisor:
    """A hypervisor with an endpoint, a link to a network with many hosts, and two bridges."""
    assert Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3").read_text() == "1024\n"
    start_endpoint("echo", ENDPOINT, 5030)
    hypervisor.write(CONFIG, f"tproxy: [{{remote_addr: {ENDPOINT}, remote_port: 5030}}]\n")
    hypervisor.ip(
        "netns add network",
        "link add out type veth peer name eth0 netns network",
        "link set out up",
        "address add 10.99.0.1/24 dev out",
    )
    addresses = [f"address add {address}/24 dev eth0" for address in NEIGHBOURS]
    hypervisor.ip("link set eth0 up", *addresses, netns="network")
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
    return hypervisor


@pytest.fixture
def flooding(host: Hypervisor) -> Guest:
    return host.add_guest("flooding", "br0", "10.0.0.5/24")


def flood(host: Hypervisor, guest: Guest) -> None:
    """Start a flood that goes on, and return when each source has sent something."""
    host.serve(*program("source_flood", "eth0", "arp,syn", str(SOURCES), "--again"), netns=guest.name)


def without_room(host: Hypervisor) -> list[str]:
    """The host's neighbours, none of which it has talked to, for which there is no entry."""
    refused: list[str] = json.loads(host.run(*program("fresh_neighbours", *NEIGHBOURS)).stdout)
    return refused


def test_a_flood_from_one_bridge_harms_neither_the_host_nor_guests(host: Hypervisor, flooding: Guest) -> None:
    for bridge in ("br0", "br1"):
        host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG)
    assert "@known" in host.run("nft", "list", "table", "bridge", "one_tproxy").stdout, "limits are loaded"
    guests = [host.add_guest("same", "br0", "10.0.0.6/24"), host.add_guest("other", "br1", "10.0.0.6/24")]
    askers = [Asking(guest, 5030) for guest in guests]
    flood(host, flooding)
    assert without_room(host) == []
    for asker in askers:
        asker.go_on(20)
    late = [host.add_guest("late", "br0", "10.0.0.7/24"), host.add_guest("later", "br1", "10.0.0.7/24")]
    for guest in late:
        Asking(guest, 5030).end()
    assert [asker.end() for asker in askers] == [[], []]
    # Not even by those that have been given up: the kernel keeps these while there is room.
    assert len(host.run("ip", "neigh", netns="one_tproxy_br0").stdout.splitlines()) < 512


def test_without_limits_the_same_flood_fills_the_table(host: Hypervisor, flooding: Guest) -> None:
    host.run(*program("hook_without_limits", "hook", "up", "--bridge", "br0", "--config", CONFIG))
    flood(host, flooding)
    assert without_room(host) != []


def test_a_guest_that_answers_arp_slowly_is_served(host: Hypervisor) -> None:
    """Its answers take 200 ms here. For one that has not answered after 600 ms its next SYN asks again."""
    host.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG)
    slow = host.add_guest("slow", "br0", "10.0.0.5/24")
    slow.run("tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "200ms")
    asker = Asking(slow, 5030)
    for _ in range(3):
        host.run("ip", "neigh", "flush", "all", netns="one_tproxy_br0")
        asker.go_on(1)
    assert asker.end() == []
    assert SERVICE_ADDRESS in slow.run("ip", "neigh").stdout
