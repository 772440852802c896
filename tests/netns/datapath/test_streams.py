"""Connections as guests see them: both directions, their ends, and nothing else.

docs/contract.md, What guests see.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from typing import Any

import pytest

from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.kernel import tcp
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"


def caller(behaviour: str, port: int, *arguments: str) -> tuple[str, ...]:
    """The command of a guest's program that calls a service port."""
    return program("caller", behaviour, SERVICE_ADDRESS, str(port), *arguments)


class Phone:
    """A bridge with a guest. ``serve`` and ``dial`` add a service."""

    def __init__(self, host: Hypervisor, start_endpoint: StartEndpoint) -> None:
        self.host = host
        self.start_endpoint = start_endpoint
        self._entries: list[str] = []
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")

    def serve(self, port: int, behaviour: str, *options: str) -> subprocess.Popen[str]:
        endpoint = self.start_endpoint(behaviour, ENDPOINT, port, *options)
        self.dial(port, ENDPOINT)
        return endpoint

    def dial(self, port: int, address: str, *more: str) -> None:
        self._entries.append(", ".join([f"remote_addr: {address}, remote_port: {port}", *more]))
        lines = "".join(f"- {{{entry}}}\n" for entry in self._entries)
        config = self.host.write("/run/tproxy.yaml", "tproxy:\n" + lines)
        self.host.tproxy("hook", "up", "--bridge", "br0", "--config", config)

    def call(self, behaviour: str, port: int, *arguments: str) -> str:
        """Run a guest's program (tests/netns/programs/caller.py) on a service port; return what it prints."""
        return self.guest.run(*caller(behaviour, port, *arguments)).stdout.strip()

    def start_call(self, behaviour: str, port: int, *arguments: str) -> subprocess.Popen[str]:
        return self.guest.popen(*caller(behaviour, port, *arguments), stdout=subprocess.PIPE)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.host.tproxy("status", "--json").stdout)["daemon"]
        return found

    def service(self, port: int) -> dict[str, Any]:
        """What the daemon says of one service."""
        services = self.status()["bridges"]["br0"]["services"]
        return next(each for each in services if each["port"] == port)

    def last_error(self, port: int) -> str:
        return str(self.service(port)["last_error"])

    def daemon_memory(self) -> int:
        """Resident bytes of the daemon."""
        pid = self.host.tproxy("status").stdout.split()[1]
        status = self.host.path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture
def phone(hypervisor: Hypervisor, start_endpoint: StartEndpoint) -> Phone:
    return Phone(hypervisor, start_endpoint)


def test_bytes_arrive_exactly_both_ways(phone: Phone) -> None:
    phone.serve(7, "echo")
    assert phone.call("echo", 7) == "True"


def test_the_endpoint_can_speak_first(phone: Phone) -> None:
    phone.serve(21, "source", "--bytes", "5")
    assert phone.call("hear", 21) == "xxxxx"


def test_the_guest_can_end_its_direction_and_still_hear(phone: Phone) -> None:
    phone.serve(80, "digest")
    data = b"y" * 1_000_000
    said = phone.call("say_and_end", 80, "y", "1000000")
    assert said == f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def test_the_endpoint_can_end_its_direction_and_still_hear(phone: Phone) -> None:
    endpoint = phone.serve(80, "farewell", "--bytes", "100000", "--tell")
    assert phone.call("hear_then_say", 80, "z", "200000") == "100000"
    assert endpoint.stdout is not None
    how, count, digest = endpoint.stdout.readline().split()
    assert (how, count, digest) == ("eof", "200000", hashlib.sha256(b"z" * 200_000).hexdigest())


def test_a_reset_of_the_endpoint_is_a_reset_for_the_guest(phone: Phone) -> None:
    phone.serve(80, "reset", "--bytes", "10")
    assert phone.call("say", 80, "0123456789") == "ECONNRESET"
    assert "reset by endpoint" in phone.last_error(80)


def test_a_reset_of_the_guest_is_a_reset_for_the_endpoint(phone: Phone) -> None:
    endpoint = phone.serve(80, "echo", "--tell")
    phone.call("reset", 80)
    assert endpoint.stdout is not None
    assert endpoint.stdout.readline().split()[0] == "ECONNRESET"


def test_an_endpoint_that_refuses_is_a_reset_at_once(phone: Phone) -> None:
    phone.dial(81, "127.0.0.1")
    assert phone.call("hear", 81) == "ECONNRESET"
    assert "refused" in phone.last_error(81)


@pytest.mark.parametrize("behaviour", ["hear", "say"])
def test_a_dial_that_ends_connected_to_itself_is_a_refusal(
    phone: Phone, start_endpoint: StartEndpoint, behaviour: str
) -> None:
    """The kernel may choose the endpoint's own port for the dial (tcp(7), ip_local_port_range)."""
    phone.host.run("sysctl", "-w", "net.ipv4.ip_local_port_range=40000 40000")
    phone.dial(40000, "127.0.0.1")
    assert phone.call(behaviour, 40000, *["secret"][: behaviour == "say"]) == "ECONNRESET"
    assert phone.last_error(40000) == "endpoint 127.0.0.1:40000 refused"
    assert phone.service(40000)["open"] == 0
    assert " end=refused" in phone.host.path("/var/log/one_tproxy.log").read_text()
    # Nothing holds the port: the server can start.
    start_endpoint("source", "127.0.0.1", 40000, "--bytes", "5")
    phone.host.run("sysctl", "-w", "net.ipv4.ip_local_port_range=40000 40001")
    for _ in eventually():  # a dial that the kernel gives the server's port fails, and is another refusal
        if phone.call("hear", 40000) == "xxxxx":
            break


def test_an_endpoint_without_a_route_is_a_reset_at_once(phone: Phone, unreachable: str) -> None:
    phone.dial(82, unreachable)
    assert phone.call("hear", 82) == "ECONNRESET"
    assert "unreachable" in phone.last_error(82)


def test_a_dead_endpoint_is_a_reset_after_the_connect_timeout_and_stops_nobody_else(
    phone: Phone, blackhole: str
) -> None:
    phone.serve(7, "echo")
    phone.dial(83, blackhole, "connect_timeout: 1.5")
    waiting = [phone.start_call("hear", 83) for _ in range(5)]
    for _ in eventually():
        if phone.service(83)["total"] == 5:
            break
    assert phone.call("say_and_end", 7, "hi") == "hi"
    assert [each.communicate()[0].strip() for each in waiting] == ["ECONNRESET"] * 5
    assert "timed out" in phone.last_error(83)


def test_a_guest_that_gives_up_while_it_is_dialled_leaves_nothing(phone: Phone, blackhole: str) -> None:
    phone.dial(83, blackhole, "connect_timeout: 1")
    phone.call("close", 83)
    for _ in eventually():
        if phone.status()["connections"] == 0:
            break


def test_an_endpoint_that_does_not_read_slows_its_guest_down_and_costs_no_memory(phone: Phone) -> None:
    phone.serve(80, "sink")
    before = phone.daemon_memory()
    sender = phone.start_call("flood", 80, "20")
    assert sender.stdout is not None
    assert int(sender.stdout.readline()) > 20 * 65536
    # Each of the twenty may hold one read of 64 KiB besides what the kernel's pipes hold.
    assert phone.daemon_memory() - before < 20 * 256 * 1024
    sender.kill()


def test_an_endpoint_that_does_not_read_costs_little_memory_of_the_kernel(phone: Phone) -> None:
    """The kernel's own tuning would let the socket hold megabytes that were not sent (net.ipv4.tcp_wmem)."""
    phone.serve(80, "sink")
    sender = phone.start_call("flood", 80, "5")
    assert sender.stdout is not None
    sender.stdout.readline()
    shown = phone.host.run("ss", "-Htnm", "state", "established", "dst", f"{ENDPOINT}:80").stdout
    queued = [int(number) for number in re.findall(r"skmem:.*?,w(\d+),", shown)]
    assert len(queued) == 5
    assert max(queued) > 0
    # The rest is what the kernel needs besides the bytes, and what is under way.
    assert max(queued) <= 4 * tcp.UNSENT, queued
    sender.kill()


def test_both_sides_have_keep_alive_and_are_not_paced(phone: Phone) -> None:
    """The endpoint's side gets its keep-alive with the first sweep, here after a second (datapath.limits)."""
    phone.start_endpoint("echo", ENDPOINT, 7)
    phone.dial(7, ENDPOINT, "half_closed_timeout: 4")
    talker = phone.start_call("hold", 7)
    assert talker.stdout is not None
    talker.stdout.readline()
    for netns, port in ((None, f"{ENDPOINT}:7"), ("one_tproxy_br0", f"{SERVICE_ADDRESS}:7")):
        for _ in eventually():  # the timer is another one until the last byte is acknowledged
            lines = phone.host.run("ss", "-HtnoiO", "state", "established", netns=netns).stdout.splitlines()
            if ours := [line for line in lines if port in line and "timer:(keepalive" in line]:
                break
        # Also where the host's default is another congestion control, for peers far away.
        assert any(" reno " in line for line in ours), ours


@pytest.mark.parametrize("way", ["upload", "download"])
def test_the_receive_window_of_a_peer_nearby_stays_small_during_bulk(phone: Phone, way: str) -> None:
    """The kernel would let it grow to 6 MB and more (net.ipv4.tcp_rmem), which do not fit into the caches."""
    phone.serve(80, "discard" if way == "upload" else "source", "--bytes", str(10**12))
    mover = phone.start_call(way, 80)
    assert mover.stdout is not None
    # The daemon's end. ss shows the window that the other end announces only since iproute2 5.16.
    end = ("src", f"{SERVICE_ADDRESS}:80") if way == "upload" else ("dst", f"{ENDPOINT}:80")
    netns = "one_tproxy_br0" if way == "upload" else None
    windows = []
    for _ in range(6):
        mover.stdout.readline()
        shown = phone.host.run("ss", "-Htin", "state", "established", *end, netns=netns).stdout
        windows += [int(word.partition(":")[2]) for word in shown.split() if word.startswith("rcv_ssthresh:")]
    mover.kill()
    assert len(windows) == 6
    # The kernel raises it now and then, until the next event, so the median counts.
    assert sorted(windows)[3] <= tcp.NEAR_WINDOW, windows


def test_guests_of_two_networks_reach_different_endpoints_at_the_same_port(hypervisor: Hypervisor) -> None:
    config = hypervisor.write(
        "/run/tproxy.yaml",
        """
:tproxy:
- :service_port: 5030
  :remote_addr: 10.1.1.1
  :remote_port: 80
  :networks: [blue]
- :service_port: 5030
  :remote_addr: 10.2.2.2
  :remote_port: 80
  :networks: [7]
""",
    )
    guests = {}
    for bridge, name, number, address in (
        ("br0", "blue", "0", "10.1.1.1"),
        ("br1", "green", "7", "10.2.2.2"),
    ):
        hypervisor.add_bridge(bridge)
        hypervisor.add_endpoint(address, 80, f"of {name}")
        guests[name] = hypervisor.add_guest(f"guest-{name}", bridge)  # both are 10.0.0.5
        hypervisor.tproxy(
            "hook", "up", "--bridge", bridge, "--network", name, "--network-id", number, "--config", config
        )
    for _ in range(20):
        assert guests["blue"].get(SERVICE_ADDRESS, 5030) == "of blue"
        assert guests["green"].get(SERVICE_ADDRESS, 5030) == "of green"


def test_guests_reach_nothing_but_their_services(phone: Phone) -> None:
    phone.serve(7, "echo")
    host = phone.host
    host.add_bridge("br1")
    stranger = host.add_guest("stranger", "br1", "10.0.0.6/24")
    host.tproxy("hook", "up", "--bridge", "br1", "--config", "/run/tproxy.yaml")
    host.add_endpoint("10.11.12.14", 22, "the hypervisor itself")
    host.ip("address add 10.77.0.1/24 dev br1")
    phone.guest.ip(f"route add default via {SERVICE_ADDRESS} dev eth0 onlink")
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        phone.guest.get(SERVICE_ADDRESS, 22)
    for address, port in (
        (ENDPOINT, 7),
        ("10.11.12.14", 22),
        ("10.77.0.1", 22),
        (stranger.address, 7),
        ("127.0.0.2", 7),
    ):
        with pytest.raises(ProcessError, match=r"ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|ECONNREFUSED|EINVAL"):
            phone.guest.get(address, port, timeout=0.7)


def test_many_short_connections_leave_no_error_descriptor_or_memory(phone: Phone) -> None:
    """The kernel uses the number of a closed descriptor again at once, within one batch of events."""
    phone.serve(80, "short")
    log = "tproxy_debug_level: 1\ntproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n"
    phone.host.write("/run/tproxy.yaml", log)
    phone.host.tproxy("hook", "up", "--bridge", "br0", "--config", "/run/tproxy.yaml")
    pids = phone.host.run("pgrep", "-f", "^(one_tproxy|tproxy-worker)").stdout.split()

    def storm(connections: int) -> None:
        argv = program("storm", "--connections", str(connections), SERVICE_ADDRESS, "80")
        result = json.loads(phone.guest.run(*argv, timeout=250).stdout)
        assert result["errors"] == {}
        assert result["completed"] == connections

    def descriptors() -> list[int]:
        return [phone.host.run("ls", f"/proc/{pid}/fd").stdout.count("\n") for pid in pids]

    def memory() -> list[int]:
        status = [phone.host.path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [int(each.partition("VmRSS:")[2].split()[0]) * 1024 for each in status]

    storm(2000)
    await_equal(lambda: phone.status()["connections"], 0)
    before = descriptors(), memory()
    storm(20_000)
    await_equal(lambda: phone.status()["connections"], 0)
    await_equal(descriptors, before[0])
    # The smallest of our objects are larger.
    assert max(after - each for after, each in zip(memory(), before[1], strict=True)) < 20_000 * 60
