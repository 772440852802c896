"""How many new connections and ARP requests a port of a bridge may bring in, with real frames.

A guest cannot forge its port. docs/security.md, Limits of a port, has the numbers.
"""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.bridge.guard_rules import ARP_BURST, ARP_RATE, SYN_BURST, SYN_RATE
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
ECHO = 5032
NAMESPACE = "one_tproxy_br0"


@pytest.fixture
def host(hypervisor: Hypervisor, start_endpoint: StartEndpoint) -> Hypervisor:
    """A hypervisor with a bridge that is up."""
    hypervisor.add_bridge("br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    start_endpoint("echo", ENDPOINT, ECHO)
    endpoints = ", ".join(
        f"{{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {remote}}}"
        for port, remote in ((5031, 8080), (ECHO, ECHO))
    )
    config = hypervisor.write("/run/tproxy.yaml", f"tproxy: [{endpoints}]\n")
    hypervisor.tproxy("hook", "up", "--bridge", "br0", "--config", config)
    return hypervisor


@pytest.fixture
def greedy(host: Hypervisor) -> Guest:
    guest = host.add_guest("greedy", "br0", "10.0.0.5/24")
    assert guest.get(SERVICE_ADDRESS, 5031) == "hello"  # its address is known, and its port, to the guards
    return guest


def arrived(host: Hypervisor) -> int:
    """How many frames the namespace's link has received."""
    listed = host.run("ip", "-j", "-s", "link", "show", "br0a", netns=NAMESPACE).stdout
    packets: int = json.loads(listed)[0]["stats64"]["rx"]["packets"]
    return packets


def repeat(guest: Guest, kind: str, count: int) -> float:
    """Send a frame of the guest's own address so many times; return the seconds that it took."""
    since = time.monotonic()
    guest.run(*program("source_flood", "eth0", kind, str(count), f"--from={guest.address}"))
    return time.monotonic() - since


@pytest.mark.parametrize(
    ("kind", "rate", "burst"), [("syn", SYN_RATE, SYN_BURST), ("arp", ARP_RATE, ARP_BURST)]
)
def test_a_port_brings_in_a_burst_and_then_so_many_a_second(
    host: Hypervisor, greedy: Guest, kind: str, rate: int, burst: int
) -> None:
    sent = 2 * burst
    before = arrived(host)
    took = repeat(greedy, kind, sent)
    for _ in eventually():  # on a busy machine the kernel may not have handled the last ones yet
        found = arrived(host) - before
        if found >= burst * 0.9:
            break
    # Both may ask for the other's address meanwhile.
    assert found <= burst + rate * (took + 1) + 20
    if found >= sent:
        pytest.skip(f"this machine needed {took:.0f} s to send the frames, which is slower than the limit")


def test_a_guest_that_has_used_up_its_port_keeps_its_connections_and_others_are_served(
    host: Hypervisor, greedy: Guest
) -> None:
    other = host.add_guest("other", "br0", "10.0.0.6/24")
    talker = greedy.popen(
        *program("talker", SERVICE_ADDRESS, str(ECHO)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert talker.stdout is not None
    assert talker.stdout.readline() == "ready\n"
    repeat(greedy, "syn", SYN_BURST + 1000)
    assert talker.communicate("still there\n")[0] == "still there\n"
    assert other.get(SERVICE_ADDRESS, 5031) == "hello"
    # The guest's own SYN is lost at most, and it sends another one a second later.
    assert greedy.get(SERVICE_ADDRESS, 5031) == "hello"


def test_other_packets_are_not_counted(host: Hypervisor, greedy: Guest) -> None:
    before = arrived(host)
    repeat(greedy, "ack", 2 * SYN_BURST)
    await_equal(lambda: arrived(host) - before >= 2 * SYN_BURST, True)
