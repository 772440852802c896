"""Services with several endpoints, while endpoints are killed, frozen and started again under load."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tests.netns.worker.crew import Load
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

PORT = 7
FIRST, SECOND, THIRD = "10.11.12.21", "10.11.12.22", "fd00:11::23"
CALLERS = 6
CONFIG = "/run/tproxy.yaml"


class Site:
    """Bridge br0 with a guest, and a service with endpoints that can be killed."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.processes: list[subprocess.Popen[str]] = []
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        # Without an endpoint there, a dial is refused.
        host.ip(*(f"address replace {each}/32 dev lo" for each in (FIRST, SECOND)))
        host.ip(f"address replace {THIRD}/128 dev lo nodad")

    def serve(self, *addresses: str, more: str = "") -> None:
        listed = ", ".join(f"'{each}'" for each in addresses)
        service = f"{{service_port: {PORT}, remote_addr: [{listed}], remote_port: 9000, {more}}}"
        self.host.write(CONFIG, f"tproxy_workers: 1\ntproxy: [{service}]\n")
        self.host.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG)

    def start(self, address: str, backlog: int = 100) -> None:
        argv = program("stoppable_echo", self.pid_file(address), str(backlog))
        self.processes.append(self.host.serve(*argv, address, "9000"))

    def go_on(self) -> None:
        """Let the parents of the endpoints go on: nsenter(1) stops itself when its child is stopped."""
        for each in self.processes:
            each.send_signal(signal.SIGCONT)

    def pid_file(self, address: str) -> str:
        return f"/run/{address.replace(':', '_')}.pid"

    def signal(self, address: str, number: int) -> None:
        pid = self.host.path(self.pid_file(address)).read_text()
        self.host.run("kill", f"-{int(number)}", pid)

    def kill(self, address: str) -> None:
        """Kill an endpoint, and return when nothing listens there."""
        pid = self.host.path(self.pid_file(address)).read_text()
        self.signal(address, signal.SIGKILL)
        for _ in eventually():
            stat = self.host.path(f"/proc/{pid}/stat")
            if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return

    def served(self, address: str) -> int:
        """The connections that an endpoint has accepted."""
        file: Path = self.host.path(f"{self.pid_file(address)}.served")
        return file.stat().st_size if file.exists() else 0

    def wait_until_served(self, address: str, more: int = 20) -> None:
        """Wait until an endpoint has accepted some connections more."""
        before = self.served(address)
        for _ in eventually():
            if self.served(address) >= before + more:
                return

    def states(self) -> dict[str, dict[str, Any]]:
        """The endpoints of the service, as status shows them."""
        daemon = json.loads(self.host.tproxy("status", "--json").stdout)["daemon"]
        (service,) = daemon["bridges"]["br0"]["services"]
        return {each["endpoint"]: each for each in service["endpoints"]}

    def wait_for_state(self, address: str, state: str) -> dict[str, Any]:
        endpoint = f"[{address}]:9000" if ":" in address else f"{address}:9000"
        for _ in eventually():
            found = self.states()[endpoint]
            if found["state"] == state:
                return found
        raise AssertionError

    def load(self, callers: int = CALLERS, streams: int = 0) -> Load:
        return Load(self.guest, callers=callers, streams=streams)


@pytest.fixture
def site(hypervisor: Hypervisor) -> Iterator[Site]:
    made = Site(hypervisor)
    yield made
    made.go_on()


@pytest.mark.parametrize("spread", ["first", "least"])
def test_killed_endpoints_reset_what_is_open_there_and_no_new_connection_fails(
    site: Site, spread: str
) -> None:
    for each in (FIRST, SECOND, THIRD):
        site.start(each)
    site.serve(FIRST, SECOND, THIRD, more=f"spread: {spread}")
    load = site.load()
    site.wait_until_served(FIRST)
    rounds = 0
    for victim, other in ((FIRST, SECOND), (SECOND, THIRD)):
        site.kill(victim)
        rounds += 1
        site.wait_until_served(other)
        assert site.wait_for_state(victim, "failed")["why"] in ("refused", "timed out")
        load.go_on()
    site.start(FIRST)
    site.wait_for_state(FIRST, "good")  # without a guest that finds out: they have a good one
    site.wait_until_served(FIRST)
    load.go_on()
    report = load.end()
    # Those that were open at a killed endpoint just then: at most one for each caller.
    assert set(report["failed"]) <= {"ECONNRESET", "another answer: b''"}
    assert len(report["failed"]) <= CALLERS * rounds


def test_streams_at_a_killed_endpoint_end_and_those_at_another_one_go_on(site: Site) -> None:
    site.start(FIRST)
    site.start(SECOND)
    site.serve(SECOND)
    other = site.load(callers=0, streams=2)
    other.go_on()
    site.serve(FIRST, SECOND)
    streams = site.load(callers=0, streams=2)
    streams.go_on()
    site.kill(FIRST)
    for _ in eventually():
        if len(streams.look()["streams"]) == 2:
            break
    # The kernel ends a killed process's connection with a reset if bytes were unread, otherwise with FIN.
    assert all(each == "ECONNRESET" or "another block" in each for each in streams.end()["streams"])
    other.go_on()
    assert other.end()["streams"] == ["whole"] * 2


def test_while_an_endpoint_is_frozen_new_connections_go_to_the_next_one_and_none_fails(site: Site) -> None:
    site.start(FIRST, backlog=1)
    site.start(SECOND)
    site.serve(FIRST, SECOND)
    before = site.load(callers=2)
    site.signal(FIRST, signal.SIGSTOP)
    # The kernel accepts some connections for a frozen process: these wait. Then it is silent.
    site.host.serve(*program("fill_backlog"), FIRST, "9000")
    during = site.load()
    during.go_on()
    assert site.wait_for_state(FIRST, "failed")["why"] in ("silent", "timed out")
    served = site.served(SECOND)
    during.go_on()
    assert site.served(SECOND) >= served + CALLERS
    site.signal(FIRST, signal.SIGCONT)
    site.wait_for_state(FIRST, "good")
    site.wait_until_served(FIRST)
    before.go_on()
    assert before.end()["failed"] == during.end()["failed"] == []


def test_a_guest_is_reset_only_when_no_endpoint_answers(site: Site, blackhole: str) -> None:
    site.serve(blackhole, FIRST, SECOND, more="connect_timeout: 2")
    with pytest.raises(Exception, match="ECONNRESET"):
        site.guest.get(SERVICE_ADDRESS, PORT)
    site.start(SECOND)
    site.serve(blackhole, FIRST, SECOND, more="connect_timeout: 60")  # however slow this machine is
    load = site.load(callers=2)
    site.wait_until_served(SECOND)
    load.go_on()
    assert load.end()["failed"] == []
    assert site.states()[f"{FIRST}:9000"]["why"] == "refused"


def test_status_shows_each_endpoint_with_its_state_and_reason(site: Site) -> None:
    site.start(SECOND)
    site.serve(FIRST, SECOND, THIRD)
    load = site.load(callers=1)
    site.wait_until_served(SECOND)
    load.end()
    states = site.states()
    assert [each["state"] for each in states.values()] == ["failed", "good", "not tried"]
    assert states[f"{FIRST}:9000"]["why"] == "refused"
    assert states[f"{FIRST}:9000"]["since"] > 0
    lines = site.host.tproxy("status", "--verbose").stdout.splitlines()
    (line,) = (each for each in lines if f"{FIRST}:9000" in each and "failed" in each)
    assert line.split()[:4] == ["br0", str(PORT), f"{FIRST}:9000", "failed"]
    assert line.endswith("refused")
    assert any(f"[{THIRD}]:9000" in each and "not tried" in each for each in lines)


def test_a_service_without_an_ipv4_endpoint_is_in_no_map_that_older_readers_serve(site: Site) -> None:
    site.start(THIRD)
    site.serve(THIRD)
    load = site.load(callers=1)
    load.go_on()
    assert load.end()["failed"] == []
    nft = site.host.run("nft", "list table ip one_tproxy").stdout
    assert "9000" not in nft.partition("map ep_br0")[2].partition("}")[0]
    assert f"{PORT} . 0x00010000" in nft
    # It survives a hook that changes nothing, and goes with its entry.
    site.host.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG)
    assert site.host.run("nft", "list table ip one_tproxy").stdout == nft
    site.start(FIRST)
    site.serve(FIRST)
    assert "op_br0" not in site.host.run("nft", "list table ip one_tproxy").stdout


def test_the_first_ipv4_address_of_a_list_is_in_the_map_and_the_list_is_beside_it(site: Site) -> None:
    site.serve(THIRD, FIRST, SECOND)
    nft = site.host.run("nft", "list table ip one_tproxy").stdout
    assert f": {FIRST} . 9000" in nft
    assert "endpoints=fd00%3A11%3A%3A23%2C10.11.12.21%2C10.11.12.22" in nft
    assert [*site.states()] == [f"[{THIRD}]:9000", f"{FIRST}:9000", f"{SECOND}:9000"]
