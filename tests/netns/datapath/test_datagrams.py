"""UDP services as guests and endpoints see them: sessions, large datagrams, failures and limits.

docs/contract.md, What guests see.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS

HERE, THERE = "10.11.12.13", "10.11.12.14"
PATIENCE = 30.0  # seconds: an answer that comes late is no failure on a busy machine


class Lab:
    """A bridge with a guest, and endpoints that speak UDP."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.guest: Guest = host.add_guest("guest", "br0") if host.add_bridge("br0") is None else None

    def start(self, behaviour: str, address: str, port: int) -> subprocess.Popen[str]:
        return self.host.add_endpoint(
            address, port, program=program("datagram_endpoint", behaviour)
        )

    def serve(self, *entries: str) -> None:
        lines = "".join(f"- {{{each}, protocol: udp}}\n" for each in entries)
        config = self.host.write("/run/tproxy.yaml", f"tproxy:\n{lines}")
        self.host.tproxy("hook", "up", "--bridge", "br0", "--config", config)

    def call(self, port: int, *lines: tuple[int, int | str, float], guest: Guest | None = None) -> list[str]:
        arguments = (SERVICE_ADDRESS, str(port), json.dumps(lines))
        found = (guest or self.guest).run(*program("datagram_caller", *arguments), timeout=100)
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
    lab.serve(f"remote_addr: {HERE}, remote_port: 5353")
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
