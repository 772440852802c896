"""UDP services at fe80::a9fe:1009, for guests that have only IPv6 (docs/contract.md, IPv6)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.bridge.test_guards import mac_of
from tests.netns.datapath.test_datagram_programs import SERVER, start_unbound
from tests.netns.ipv6_guest import AT, add_ipv6_guest, link_local
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6
from tproxy.lab.hypervisor import Guest, Hypervisor

PATIENCE = 30.0  # seconds: an answer that comes late is no failure on a busy machine
FILE = "/run/tproxy.yaml"
NAMESPACE = "one_tproxy_br0"
ENTRIES = (
    f"{{service_port: 5353, remote_addr: {SERVER}, remote_port: 7000, protocol: udp, udp_idle_timeout: 600}}",
    f"{{service_port: 5354, remote_addr: {SERVER}, remote_port: 7001, protocol: udp}}",
    f"{{service_port: 5355, remote_addr: {SERVER}, remote_port: 7002, protocol: udp, proxy_protocol: v2}}",
    f"{{service_port: 5356, remote_addr: {SERVER}, remote_port: 7003, protocol: udp}}",
    f"{{service_port: 53, remote_addr: {SERVER}, remote_port: 53, protocol: [tcp, udp]}}",
    f"{{service_port: 54, remote_addr: {SERVER}, remote_port: 5353, protocol: [tcp, udp], "
    "proxy_protocol: v2}",
)


class Lab:
    """A bridge with a guest that has only IPv6, and one with both, and endpoints that speak UDP."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        host.ip(f"address replace {SERVER}/32 dev lo", "link set lo up")
        self.guest = add_ipv6_guest(host, "guest")
        self.both = add_ipv6_guest(host, "both")
        self.both.ip("address add 10.0.0.5/24 dev eth0", f"route add {SERVICE_ADDRESS} dev eth0")
        host.write(FILE, f"tproxy_ipv6: true\ntproxy: [{', '.join(ENTRIES)}]\n")
        host.tproxy("hook", "up", "--bridge", "br0", "--config", FILE)

    def start(self, behaviour: str, port: int) -> subprocess.Popen[str]:
        return self.host.add_endpoint(SERVER, port, program=program("datagram_endpoint", behaviour))

    def call(
        self, port: int, *lines: tuple[int, int | str, float], guest: Guest | None = None, at: str = AT
    ) -> list[str]:
        arguments = (at, str(port), json.dumps(lines))
        found = (guest or self.guest).run(*program("datagram_caller", *arguments), timeout=100)
        return found.stdout.splitlines()

    def service(self, port: int) -> dict[str, Any]:
        found = json.loads(self.host.tproxy("status", "--json").stdout)["daemon"]
        services = found["bridges"]["br0"]["services"]
        return next(each for each in services if (each["port"], each["protocol"]) == (port, "udp"))


@pytest.fixture(scope="module")
def lab(real_kernel: None) -> Iterator[Lab]:
    with Hypervisor() as host:
        yield Lab(host)


def test_dig_in_a_guest_with_ipv6_alone_gets_answers_of_unbound_and_unbound_learns_who_asks(
    lab: Lab,
) -> None:
    server = start_unbound(lab.host)

    def dig(*arguments: str) -> str:
        command = ("dig", f"@{AT}", "+time=30", "+tries=2", *arguments)
        return lab.guest.run(*command, timeout=100, check=False).stdout

    assert "192.0.2.7" in dig("+short", "host.example")
    assert "192.0.2.7" in dig("+short", "+tcp", "host.example")
    large = dig("+bufsize=32000", "+ignore", "large.example", "TXT")
    assert large.count("x" * 240) == 45
    assert "(UDP)" in large
    for way in ("+notcp", "+notcp", "+tcp"):
        assert "192.0.2.7" in dig("-p", "54", "+short", way, "host.example")
    server.terminate()
    assert server.stdout is not None
    assert server.stdout.read().count(f"info: {link_local(lab.guest)} host.example. A IN") == 3


def test_sessions_of_guests_and_of_both_kinds_of_ip_are_kept_apart(lab: Lab) -> None:
    lab.start("who", 7000)
    lines = [(number, "hello", PATIENCE) for number in (0, 1, 0)]
    places = ((lab.guest, AT), (lab.both, AT), (lab.both, SERVICE_ADDRESS))
    answers = [lab.call(5353, *lines, guest=guest, at=at) for guest, at in places]
    assert [[each.split()[2] for each in some] for some in answers] == [["1", "1", "2"]] * 3
    ports = {each.split()[1] for some in answers for each in some}
    assert len(ports) == 6
    found = lab.service(5353)
    assert (found["open"], found["total"], found["bytes_to_endpoint"]) == (6, 6, 45)


def test_datagrams_of_all_sizes_arrive_whole_in_both_directions(lab: Lab) -> None:
    lab.start("echo", 7001)
    sizes = [1, 1452, 1453, 9000, 65507]
    assert lab.call(5354, *((0, size, PATIENCE) for size in sizes)) == [f"echo {size}" for size in sizes]


def test_the_endpoint_learns_the_address_the_mac_and_the_port_of_the_guest(lab: Lab) -> None:
    lab.start("header", 7002)
    for _ in eventually():  # the daemon hears of the guest's port a moment after its first frame
        first, second = (json.loads(each) for each in lab.call(5355, (0, "a", PATIENCE), (0, "b", PATIENCE)))
        if second["values"].get("e4") == lab.guest.port:
            break
    for each in (first, second):
        assert each["transport"] == 2
        assert each["source"][0] == link_local(lab.guest)
        assert each["destination"] == [SERVICE_ADDRESS_IPV6, 5355]
        assert each["values"]["e2"] == "br0"
    assert first["values"]["05"] == second["values"]["05"]
    assert second["values"]["e3"] == mac_of(lab.guest)


def test_guests_are_refused_by_icmp_while_no_endpoint_can_be_reached(lab: Lab) -> None:
    for _ in eventually():  # the first datagrams are lost; the kernel refuses those that come later
        if lab.call(5356, (0, "b", 0.5)) == ["ECONNREFUSED"]:
            break
    lab.start("who", 7003)
    for _ in eventually():
        if lab.call(5356, (0, "c", 2.0))[0].startswith(SERVER):
            break


def test_only_the_ports_of_services_are_open_to_datagrams_also_in_fragments(lab: Lab) -> None:
    # In the namespace, a program of a relay that was taken over.
    stranger = program("datagram_endpoint", "echo", f"{SERVICE_ADDRESS_IPV6}%br0a", "5999")
    other = lab.host.popen(*stranger, netns=NAMESPACE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    assert lab.call(5999, (0, "a", 0.3), (0, 9000, 0.3)) == ["silent", "silent"]


def test_a_restart_and_the_death_of_a_worker_lose_no_service(lab: Lab) -> None:
    endpoint = lab.start("who", 7004)
    entry = f"{{service_port: 5357, remote_addr: {SERVER}, remote_port: 7004, protocol: udp}}"
    lab.host.write(FILE, f"tproxy_ipv6: true\ntproxy: [{', '.join((*ENTRIES, entry))}]\n")
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", FILE)
    assert lab.call(5357, (0, "a", PATIENCE))[0].startswith(SERVER)
    lab.host.tproxy("restart")
    assert lab.call(5357, (0, "b", PATIENCE))[0].startswith(SERVER)
    for worker in json.loads(lab.host.tproxy("status", "--json").stdout)["daemon"]["workers"]:
        lab.host.run("kill", "-KILL", str(worker["pid"]), check=False)
    assert lab.call(5357, (0, "c", PATIENCE))[0].startswith(SERVER)  # it waits for the next worker
    endpoint.kill()
    endpoint.wait()


def test_udp_and_ipv6_work_on_a_host_without_the_names_of_protocols(real_kernel: None) -> None:
    """A bare Debian has no /etc/protocols, which is in package netbase; there nft lists numbers."""
    with Hypervisor() as host:
        host.run("mount", "--bind", "/dev/null", "/etc/protocols")
        lab = Lab(host)
        lab.start("echo", 7001)
        lab.host.tproxy("reload")
        for at in (AT, SERVICE_ADDRESS):
            assert lab.call(5354, (0, 9, PATIENCE), guest=lab.both, at=at) == ["echo 9"]
