"""One guest can use up only a part of what the host and all networks share (table in docs/security.md)."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.netns.conftest import ENDPOINTS
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.kernel.tcp import UNSENT
from tproxy.lab.hypervisor import Guest, Hypervisor

CONFIG = "/run/tproxy.yaml"
ONE, TWO = "10.99.0.2", "10.99.0.3"  # endpoints on a network of the host: not on lo, where TIME_WAIT is short


class Lab:
    """Two bridges with a guest each, one of them greedy, and two endpoints that echo: port 5030, and 5031."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.ip(
            "netns add network",
            "link add out type veth peer name eth0 netns network",
            "link set out up",
            "address add 10.99.0.1/24 dev out",
        )
        host.ip("link set lo up", "link set eth0 up", netns="network")
        services = []
        for port, address in ((5030, ONE), (5031, TWO)):
            host.ip(f"address add {address}/24 dev eth0", netns="network")
            host.serve(sys.executable, str(ENDPOINTS), "echo", address, "7000", netns="network")
            services.append(f"{{service_port: {port}, remote_addr: {address}, remote_port: 7000}}")
        host.write(CONFIG, f"tproxy: [{', '.join(services)}]\n")
        for bridge in ("br0", "br1"):
            host.add_bridge(bridge)
        self.greedy = host.add_guest("greedy", "br0", "10.0.0.5/24")
        self.other = host.add_guest("other", "br1", "10.0.0.5/24")
        for bridge in ("br0", "br1"):
            host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG)

    def tracked(self) -> int:
        """How many connections the host tracks."""
        # Without the kernel's module there is no such file, and nothing that could track.
        count = self.host.run("sysctl", "-n", "net.netfilter.nf_conntrack_count", check=False).stdout
        return int(count or 0)


@pytest.fixture
def lab(hypervisor: Hypervisor) -> Lab:
    return Lab(hypervisor)


def connect(guest: Guest, port: int, count: int) -> tuple[int, dict[str, int]]:
    """Make connections that the guest closes first; return how many were served, and why others failed."""
    argv = program("closing_first", SERVICE_ADDRESS, str(port), str(count))
    outcome = json.loads(guest.run(*argv).stdout)
    return outcome["served"], outcome["failed"]


def test_local_ports_towards_an_endpoint_run_out_for_that_endpoint_only(lab: Lab) -> None:
    """A guest that closes first leaves the connection to the endpoint in TIME_WAIT, with its local port."""
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40099")
    served, failed = connect(lab.greedy, 5030, 150)
    assert served <= 100
    assert failed
    assert connect(lab.other, 5031, 20) == (20, {})
    # The host's other programs, too.
    lab.host.run(sys.executable, "-c", f"import socket; socket.create_connection(('{TWO}', 7000))")
    # What docs/security.md tells the operator to do.
    lab.host.run("sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1")
    for _ in eventually():
        if connect(lab.other, 5030, 1) == (1, {}):
            break


READERS, RECEIVE_BUFFER = 30, 1 << 20  # connections; bytes


def held(host: Hypervisor, netns: str | None, peer: str) -> list[int]:
    """Return how much memory of the kernel each connection with the peer holds, in bytes (ss(8), skmem)."""
    shown = host.run("ss", "-Htnm", "state", "established", "dst", peer, netns=netns).stdout
    return [sum(map(int, each)) for each in re.findall(r"skmem:\(r(\d+),.*?,f(\d+),w(\d+),", shown)]


def test_connections_that_a_guest_does_not_read_hold_no_more_memory_than_the_host_allows(lab: Lab) -> None:
    # What docs/security.md tells the operator to do. This kernel's own value may be 32 MB.
    lab.host.run("sysctl", "-qw", f"net.ipv4.tcp_rmem=4096 131072 {RECEIVE_BUFFER}")
    endless = ("source", ONE, "7001", "--bytes", str(1 << 50))
    lab.host.serve(sys.executable, str(ENDPOINTS), *endless, netns="network")
    service = f"{{service_port: 5032, remote_addr: {ONE}, remote_port: 7001}}"
    lab.host.write(CONFIG, f"tproxy: [{service}]\n")
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG)
    argv = program("holder", SERVICE_ADDRESS, "5032", str(READERS))
    greedy = lab.greedy.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in eventually():
        from_endpoint = held(lab.host, None, f"{ONE}:7001")
        if sum(each > RECEIVE_BUFFER // 2 for each in from_endpoint) == READERS:
            break
    to_guest = held(lab.host, "one_tproxy_br0", "10.0.0.5")
    assert len(to_guest) == READERS
    # A pipe of 512 KiB is not part of it.
    assert max(from_endpoint) < 2 * RECEIVE_BUFFER
    assert max(to_guest) < 4 * UNSENT
    assert connect(lab.other, 5031, 20) == (20, {})
    greedy.kill()


TRACKING = """
table inet tracking {
    chain arriving { type filter hook input priority filter; ct state established,related accept; }
    chain leaving { type filter hook output priority filter; ct state invalid drop; }
}
"""

NOT_TRACKED = f"""
table inet untracked {{
    chain leaving {{ type filter hook output priority raw; meta skuid 1900000000-1904194304 notrack; }}
    chain arriving {{ type filter hook prerouting priority raw; ip saddr {ONE} tcp sport 7000 notrack; }}
}}
"""


def test_no_connection_is_tracked_because_of_our_rules(lab: Lab) -> None:
    assert connect(lab.greedy, 5030, 50) == (50, {})
    lab.host.run(*program("source_flood", "eth0", "syn", "200"), netns="greedy")
    assert lab.tracked() == 0


def test_a_host_that_tracks_connections_tracks_those_to_endpoints_and_none_of_guests(lab: Lab) -> None:
    # Otherwise it tracks what the bridge forwards.
    lab.host.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", check=False)
    lab.host.run("nft", "-f", "-", input=TRACKING)
    lab.host.run(*program("source_flood", "eth0", "arp,syn,ping,udp", "200"), netns="greedy")
    assert lab.tracked() == 0
    assert connect(lab.greedy, 5030, 50) == (50, {})
    assert 1 <= lab.tracked() <= 60  # one for each, and what else the host does
    # What docs/security.md tells the operator to do.
    before = lab.tracked()
    lab.host.run("nft", "-f", "-", input=NOT_TRACKED)
    assert connect(lab.greedy, 5030, 50) == (50, {})
    assert lab.tracked() <= before
