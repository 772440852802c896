"""A guest that reads nothing, and the kernel's memory for TCP, which the host and all namespaces share.

Its limit is the third number of net.ipv4.tcp_mem, in pages, which the kernel derives from the host's memory.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.asking import Asking
from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

ENDPOINT = "10.11.12.13"
CONFIG = "/run/tproxy.yaml"
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")
LOW, PRESSURE, FULL = 2000, 3000, 4000  # pages: 8, 12 and 16 MB
READERS = 100


def used() -> int:
    """Return how many pages TCP has, in all namespaces."""
    (line,) = (
        each for each in Path("/proc/net/sockstat").read_text().splitlines() if each.startswith("TCP:")
    )
    words = line.split()
    return int(words[words.index("mem") + 1])


@pytest.fixture
def scarce() -> Iterator[None]:
    before = TCP_MEM.read_text()
    TCP_MEM.write_text(f"{LOW} {PRESSURE} {FULL}")
    yield
    TCP_MEM.write_text(before)


@pytest.mark.usefixtures("scarce")
def test_others_are_served_while_a_guest_that_reads_nothing_has_all_memory_for_tcp(
    hypervisor: Hypervisor, start_endpoint: StartEndpoint
) -> None:
    start_endpoint("echo", ENDPOINT, 5030)
    start_endpoint("source", ENDPOINT, 5031, "--bytes", str(1 << 50))
    services = (
        f"{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 5030}}",
        f"{{service_port: 5031, remote_addr: {ENDPOINT}, remote_port: 5031, user_timeout: 5}}",
    )
    hypervisor.write(CONFIG, f"tproxy: [{', '.join(services)}]\n")
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
        hypervisor.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG)
    greedy = hypervisor.add_guest("greedy", "br0", "10.0.0.5/24")
    guests = [
        hypervisor.add_guest("same", "br0", "10.0.0.6/24"),
        hypervisor.add_guest("other", "br1", "10.0.0.6/24"),
    ]
    askers = [Asking(guest, 5030) for guest in guests]
    argv = program("holder", SERVICE_ADDRESS, "5031", str(READERS))
    holder = greedy.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in eventually():
        if used() >= PRESSURE:
            break
    for asker in askers:
        asker.go_on(20)
    # Its window is closed, and the kernel gives such a peer up (TCP_USER_TIMEOUT, Linux 5.11).
    for _ in eventually():
        if used() < LOW:
            break
    assert [asker.end() for asker in askers] == [[], []]
    assert holder.poll() is None  # it still holds what has been reset
    holder.kill()
