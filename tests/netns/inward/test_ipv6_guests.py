"""Routes to guests that have only IPv6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.inward.streams import ask, await_in_log, connect, everything
from tests.netns.ipv6_guest import add_ipv6_guest, link_local
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.names import BridgeNames

FILE = "/run/tproxy.yaml"
ABSENT = "fe80::77"


@pytest.fixture(scope="module")
def guest(real_kernel: None) -> Iterator[Guest]:
    """A guest without IPv4 that serves a page, and routes to it."""
    with Hypervisor() as host:
        host.add_bridge("br0")
        guest = add_ipv6_guest(host, "six")
        address = link_local(guest)
        mac = guest.run("ip", "-br", "link", "show", "eth0").stdout.split()[2]
        for number, page in ((80, "six"), (81, "seven")):
            program = ("python3", "-m", "tproxy.lab.inside", "answer", f"{address}%eth0", str(number), page)
            host.serve(*program, netns="six")
        to = f"network: blue, guest_addr: '{address}'"
        host.write(
            FILE,
            "tproxy_ipv6: true\n"
            "tproxy_routes:\n"
            f"- {{id: page, {to}, port: 80}}\n"
            f"- {{id: mine, {to}, guest_mac: '{mac}', port: 80}}\n"
            f"- {{id: other, {to}, guest_mac: '02:00:00:00:00:01', port: 80}}\n"
            f"- {{id: closed, {to}, port: 82}}\n"
            f"- {{id: told, {to}, port: 80, proxy_protocol: v2}}\n"
            f"- {{id: gone, network: blue, guest_addr: '{ABSENT}', port: 80}}\n",
        )
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "blue", "--config", FILE)
        yield guest


def test_a_client_of_ipv4_reaches_a_guest_of_ipv6(guest: Guest) -> None:
    host = guest.hypervisor
    assert [ask(host, route) for route in ("page", "mine")] == ["six"] * 2
    assert ask(host, "page", client=("2001:db8::7", 1)) == "six"
    await_in_log(host, f"route=page bridge=br0 client=198.51.100.7:40000 guest=[{link_local(guest)}]:80 ")
    shown = host.tproxy("route", "test", "page", env={"TPROXY_CONFIG": FILE}).stdout
    assert f"good  guest: accepts at [{link_local(guest)}]:80" in shown


@pytest.mark.parametrize(
    ("route", "why"),
    [("closed", "refused"), ("gone", "not_there"), ("other", "another_guest")],
)
def test_the_log_says_why_a_guest_of_ipv6_cannot_be_reached(guest: Guest, route: str, why: str) -> None:
    with connect(guest.hypervisor, route) as stream:
        assert everything(stream) == b""
    await_in_log(guest.hypervisor, f"end={why}")


def test_routes_to_ipv6_survive_a_restart_and_a_lost_table(guest: Guest) -> None:
    host = guest.hypervisor
    host.tproxy("restart")
    assert ask(host, "page") == "six"
    host.run("nft", "delete", "table", "ip", "one_tproxy")
    host.tproxy("hook", "up", "--bridge", "br0", "--network", "blue", "--config", FILE)
    for _ in eventually():
        if ask(host, "page") == "six":
            break


def test_nothing_else_of_ipv6_can_be_dialled_from_the_namespace(guest: Guest) -> None:
    host = guest.hypervisor
    dial = (
        "import socket; s = socket.socket(socket.AF_INET6); s.settimeout(2); "
        "print(s.connect_ex(('{address}', {port}, 0, socket.if_nametoindex('{link}'))))"
    )
    link = BridgeNames("br0").veth_namespace
    found = {}
    for port in (80, 81):
        code = dial.format(address=link_local(guest), port=port, link=link)
        found[port] = host.run("python3", "-c", code, netns="one_tproxy_br0").stdout
    assert found[80] == "0\n"
    assert found[81] != "0\n"
