"""UDP services as guests and endpoints see them: sessions, large datagrams, failures and limits.

docs/contract.md, What guests see.
"""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.netns.ending import end
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor

HERE, THERE = "10.11.12.13", "10.11.12.14"


class Lab:
    """A bridge with a guest, and endpoints that speak UDP."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")

    def start(self, behaviour: str, address: str, port: int) -> subprocess.Popen[str]:
        return self.host.add_endpoint(address, port, program=program("datagram_endpoint", behaviour))

    def serve(self, *entries: str) -> None:
        lines = "".join(f"- {{{each}, protocol: udp}}\n" for each in entries)
        config = self.host.write("/run/tproxy.yaml", f"tproxy:\n{lines}")
        self.host.tproxy("hook", "up", "--bridge", "br0", "--config", config)

    def call(self, port: int, *lines: tuple[int, int | str, float], guest: Guest | None = None) -> list[str]:
        arguments = (SERVICE_ADDRESS, str(port), json.dumps(lines))
        found = (guest or self.guest).run(*program("datagram_caller", *arguments), timeout=2 * PATIENCE)
        return found.stdout.splitlines()

    def service(self, port: int) -> dict[str, Any]:
        found = json.loads(self.host.tproxy("status", "--json").stdout)["daemon"]
        services = found["bridges"]["br0"]["services"]
        return next(each for each in services if (each["port"], each["protocol"]) == (port, "udp"))


@pytest.fixture
def lab(hypervisor: Hypervisor) -> Lab:
    return Lab(hypervisor)


def test_each_guest_port_has_a_session_and_an_endpoint_port_of_its_own(lab: Lab) -> None:
    lab.start("who", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353, udp_idle_timeout: 600")
    answers = lab.call(5353, *((number, "hello", PATIENCE) for number in (0, 1, 0, 1, 1)))
    ports = [each.split()[1] for each in answers]
    assert [each.split()[2] for each in answers] == ["1", "1", "2", "2", "3"]
    assert ports[0] == ports[2] != ports[1] == ports[3] == ports[4]
    found = lab.service(5353)
    assert (found["open"], found["total"], found["bytes_to_endpoint"]) == (2, 2, 25)
    assert found["bytes_to_guest"] == sum(map(len, answers))


def test_datagrams_of_all_sizes_arrive_whole_in_both_directions(lab: Lab) -> None:
    lab.start("echo", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353")
    sizes = [1, 1472, 1473, 9000, 65507]
    assert lab.call(5353, *((0, size, PATIENCE) for size in sizes)) == [f"echo {size}" for size in sizes]


def test_a_session_goes_on_with_the_next_endpoint_when_one_refuses_and_nothing_is_lost(lab: Lab) -> None:
    first = lab.start("who", HERE, 5353)
    lab.start("who", THERE, 5353)
    lab.serve(f"remote_addr: [{HERE}, {THERE}], remote_port: 5353")
    assert lab.call(5353, (0, "a", PATIENCE))[0].split()[0] == HERE
    end(first)
    answers = lab.call(5353, (0, "b", PATIENCE), (1, "c", PATIENCE), (0, "d", PATIENCE))
    assert [each.split()[0] for each in answers] == [THERE] * 3
    assert [each["state"] for each in lab.service(5353)["endpoints"]] == ["failed", "good"]
    lab.start("who", HERE, 5353)
    for _ in eventually():  # the worker checks it in the background
        if lab.call(5353, (0, "e", PATIENCE))[0].split()[0] == HERE:
            break


def test_guests_are_refused_by_icmp_while_no_endpoint_can_be_reached(lab: Lab) -> None:
    endpoint = lab.start("who", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353")
    assert lab.call(5353, (0, "a", PATIENCE))[0].startswith(HERE)
    end(endpoint)
    for _ in eventually():  # the first datagram is lost; the kernel refuses those that come later
        if lab.call(5353, (0, "b", 0.5)) == ["ECONNREFUSED"]:
            break
    assert lab.service(5353)["endpoints"][0]["why"] == "refused"
    lab.start("who", HERE, 5353)
    for _ in eventually():
        if lab.call(5353, (0, "c", 2.0))[0].startswith(HERE):
            break


def test_a_guest_with_too_many_sessions_loses_the_one_that_was_used_least_recently(lab: Lab) -> None:
    lab.start("who", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353, max_connections_per_guest: 3, udp_idle_timeout: 600")
    calls = [(number, "x", PATIENCE) for number in (0, 1, 2, 0, 3, 0, 1)]
    counts = [each.split()[2] for each in lab.call(5353, *calls)]
    assert counts == ["1", "1", "1", "2", "1", "3", "1"]  # that of 1 was ended for 3
    found = lab.service(5353)
    assert (found["open"], found["total"]) == (3, 5)
    assert found["limited"]["max_connections_per_guest"] == 2


def test_a_silent_session_is_forgotten(lab: Lab) -> None:
    lab.start("who", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353, udp_idle_timeout: 1")
    lab.call(5353, (0, "x", PATIENCE))
    for _ in eventually():
        if lab.service(5353)["open"] == 0:
            break


def test_each_datagram_tells_the_endpoint_who_is_calling(lab: Lab) -> None:
    lab.start("header", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353, proxy_protocol: v2")
    answers = [json.loads(each) for each in lab.call(5353, (0, "a", PATIENCE), (0, "b", PATIENCE))]
    assert [each["data"] for each in answers] == ["a", "b"]
    for each in answers:
        assert each["transport"] == 2
        assert each["source"][0] == lab.guest.address
        assert each["destination"] == [SERVICE_ADDRESS, 5353]
        assert each["values"]["e2"] == "br0"
    first, second = answers
    assert first["source"] == second["source"]
    assert first["values"]["05"] == second["values"]["05"]
    assert f"link/ether {second['values']['e3']} " in lab.guest.run("ip", "link", "show", "eth0").stdout


def test_a_restart_and_the_death_of_a_worker_lose_no_service(lab: Lab) -> None:
    lab.start("who", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353")
    assert lab.call(5353, (0, "a", PATIENCE))[0].startswith(HERE)
    lab.host.tproxy("restart")
    assert lab.call(5353, (0, "b", PATIENCE))[0].startswith(HERE)
    status = json.loads(lab.host.tproxy("status", "--json").stdout)["daemon"]
    for worker in status["workers"]:  # one that only finishes its sessions may end meanwhile
        lab.host.run("kill", f"-{signal.SIGKILL.name[3:]}", str(worker["pid"]), check=False)
    assert lab.call(5353, (0, "c", PATIENCE))[0].startswith(HERE)  # it waits for the next worker


def test_only_the_ports_of_services_are_open_to_datagrams_also_in_fragments(lab: Lab) -> None:
    lab.start("echo", HERE, 5353)
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353")
    # In the namespace, a program of a relay that was taken over.
    stranger = program("datagram_endpoint", "echo", SERVICE_ADDRESS, "5354")
    other = lab.host.popen(*stranger, netns="one_tproxy_br0", stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    assert lab.call(5354, (0, "a", 0.3), (0, 9000, 0.3)) == ["silent", "silent"]
    assert lab.call(5353, (0, "a", PATIENCE), (0, 9000, PATIENCE)) == ["a", "echo 9000"]


def test_tcp_and_udp_at_one_port_are_two_services(lab: Lab) -> None:
    lab.host.add_endpoint(HERE, 5353, "by tcp")
    lab.start("who", HERE, 5353)
    entry = f"- {{remote_addr: {HERE}, remote_port: 5353, protocol: [tcp, udp]}}\n"
    config = lab.host.write("/run/tproxy.yaml", f"tproxy:\n{entry}")
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", config)
    assert lab.guest.get(SERVICE_ADDRESS, 5353) == "by tcp"
    assert lab.call(5353, (0, "a", PATIENCE))[0].startswith(HERE)
    assert "5353/udp" in lab.host.tproxy("status", "--verbose").stdout
