"""A guest that moves to another host: the route there leads to it, and the one it left says where it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.inward.streams import ask, await_in_log, connect, start
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Guest, Hypervisor

FILE = "/run/tproxy.yaml"
MAC = "02:00:0a:00:00:05"
CONFIG = f"""
tproxy_routes:
- {{id: page, network: blue, guest_addr: 10.0.0.5, guest_mac: '{MAC}', port: 80}}
- {{id: echo, network: blue, guest_addr: 10.0.0.5, guest_mac: '{MAC}', port: 7}}
"""


@pytest.fixture
def hosts(real_kernel: None) -> Iterator[tuple[Hypervisor, Hypervisor, Guest]]:
    """Two hosts with one layer 2 and the same configuration, and a guest on the first one."""
    with Hypervisor() as left, Hypervisor() as right:
        left.add_cable(right, "wire")
        for host in (left, right):
            host.add_bridge("br0")
            host.ip("link set dev wire master br0")
            host.write(FILE, CONFIG)
        guest = left.add_guest("guest", "br0")
        guest.ip(f"link set dev eth0 address {MAC}")
        left.serve("python3", "-m", "tproxy.lab.inside", "answer", "10.0.0.5", "80", "page", netns="guest")
        start(guest, "echo", 7)
        for host in (left, right):
            host.tproxy(
                *("hook", "up", "--bridge", "br0", "--network", "blue", "--uplink", "wire", "--config", FILE)
            )
        yield left, right, guest


def test_the_route_of_the_new_host_leads_to_a_guest_that_has_moved(
    hosts: tuple[Hypervisor, Hypervisor, Guest],
) -> None:
    left, right, guest = hosts
    assert ask(left, "page") == "page"
    assert ask(right, "page") == ""  # nothing of ours leaves a host
    with connect(left, "echo", b"x") as held:
        assert held.recv(1) == b"x"
        right.take_over(guest, left, "br0")
        for _ in eventually():
            if ask(right, "page") == "page":
                break
    assert ask(left, "page") == ""
    for _ in eventually():  # the guest has told the bridges where it is
        guest.run("true")
        right.run("ping", "-c1", "-W1", "-b", "10.0.0.255", check=False)
        shown = left.tproxy("route", "test", "page", check=False, env={"TPROXY_CONFIG": FILE}).stdout
        if f"moved: {MAC} is behind the uplink wire, on another host" in shown:
            break
    await_in_log(left, "route=page bridge=br0 the guest is not there: ")
