"""Costs that must not grow, counted and not timed: system calls, wake-ups, descriptors, pipes.

test_streams.py counts what a hundred thousand connections leave behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench import costs
from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.datapath import splice
from tproxy.lab.hypervisor import Guest, Hypervisor

STORM = Path(__file__).parents[1] / "programs/storm.py"
ENDPOINT = "10.11.12.13"
ECHO, SHORT, SOURCE = 7, 80, 19
BULK = 20_000_000

CONFIG = "tproxy_debug_level: 1\ntproxy_workers: 1\ntproxy:\n" + "".join(
    f"- {{remote_addr: {ENDPOINT}, remote_port: {port}}}\n" for port in (ECHO, SHORT, SOURCE)
)


class Host:
    """A bridge with a guest and three services, and the processes that serve it."""

    def __init__(self, hypervisor: Hypervisor, start_endpoint: StartEndpoint) -> None:
        self.hypervisor = hypervisor
        self.start_endpoint = start_endpoint
        hypervisor.add_bridge("br0")
        self.guest: Guest = hypervisor.add_guest("guest", "br0")
        start_endpoint("echo", ENDPOINT, ECHO)
        start_endpoint("short", ENDPOINT, SHORT)
        start_endpoint("source", ENDPOINT, SOURCE, "--bytes", str(BULK))
        config = hypervisor.write("/run/tproxy.yaml", CONFIG)
        hypervisor.tproxy("hook", "up", "--bridge", "br0", "--config", config)
        _, self.relay = self.status_pids()
        await_equal(lambda: len(costs.titled(hypervisor, "tproxy-worker")), 1)
        (self.worker,) = costs.titled(hypervisor, "tproxy-worker")

    def introduce(self) -> None:
        """Let service port SHORT lead to an endpoint that gets PROXY headers."""
        self.start_endpoint("short", "10.11.12.14", SHORT, "--introduced")
        before = f"{{remote_addr: {ENDPOINT}, remote_port: {SHORT}}}"
        assert before in CONFIG
        after = f"{{remote_addr: 10.11.12.14, remote_port: {SHORT}, proxy_protocol: v2}}"
        config = self.hypervisor.write("/run/tproxy.yaml", CONFIG.replace(before, after))
        self.hypervisor.tproxy("hook", "up", "--bridge", "br0", "--config", config)

    def status_pids(self) -> list[int]:
        lines = self.hypervisor.tproxy("status").stdout.splitlines()
        return [int(line.split(": ")[1]) for line in lines]

    def processes(self) -> list[int]:
        return costs.titled(self.hypervisor, "one_tproxy", "tproxy-")

    def talk(self, messages: int) -> None:
        self.guest.run(*program("ping_pong", SERVICE_ADDRESS, str(ECHO), str(messages)), timeout=100)

    def storm(self, connections: int, at_once: int) -> None:
        counts = ["--connections", str(connections), "--at-once", str(at_once), "--timeout", "60"]
        said = self.guest.run(sys.executable, str(STORM), *counts, SERVICE_ADDRESS, str(SHORT), timeout=100)
        result = json.loads(said.stdout)
        assert result["errors"] == {}
        assert result["completed"] == connections

    @contextmanager
    def bulk(self, connections: int) -> Iterator[None]:
        """Connections whose endpoint has sent BULK bytes and ended; the guest's direction is still open."""
        argv = program("bulk_reader", SERVICE_ADDRESS, str(SOURCE), str(connections))
        reader = self.guest.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            reader.communicate("")
        assert reader.returncode == 0

    def settled(self) -> dict[int, int]:
        """Descriptors of each process when no connection is left."""
        for _ in eventually():
            status = json.loads(self.hypervisor.tproxy("status", "--json").stdout)
            if not status["daemon"]["connections"]:
                break
        return {pid: len(self.descriptors(pid)) for pid in self.processes()}

    def descriptors(self, pid: int, kind: str = "") -> list[str]:
        folder = self.hypervisor.path(f"/proc/{pid}/fd")
        found = []
        for each in folder.iterdir():
            with suppress(FileNotFoundError):  # it has just closed this one
                found.append(os.readlink(each))
        return [each for each in found if each.startswith(kind)]

    def wake_ups(self) -> dict[int, int]:
        """How often each process has been scheduled since it started (proc(5), context switches)."""
        counts = {}
        for pid in self.processes():
            lines = self.hypervisor.path(f"/proc/{pid}/status").read_text().splitlines()
            counts[pid] = sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        return counts


@pytest.fixture
def host(hypervisor: Hypervisor, start_endpoint: StartEndpoint) -> Host:
    if shutil.which("strace") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs strace")
    return Host(hypervisor, start_endpoint)


def system_calls(host: Host, pid: int, job: Callable[[], None]) -> Counter[str]:
    """The system calls of a process while the job is done, counted by name."""
    table = "/run/strace.out"
    strace = host.hypervisor.popen(
        "sh", "-c", f"echo $$; exec strace -c -f -p {pid} -o {table} 2>&1", stdout=subprocess.PIPE
    )
    assert strace.stdout is not None
    tracer = strace.stdout.readline().strip()
    assert "attached" in strace.stdout.readline()
    job()
    host.hypervisor.run("kill", f"-{signal.SIGINT.name.removeprefix('SIG')}", tracer)
    strace.wait()
    # Columns: % time, seconds, usecs/call, calls, errors or nothing, syscall.
    rows = [line.split() for line in host.hypervisor.path(table).read_text().splitlines()]
    counted = [row for row in rows if len(row) > 4 and row[3].isdigit() and row[-1] != "total"]
    calls = Counter({row[-1]: int(row[3]) for row in counted})
    # Before a worker sleeps it looks for events without waiting, and yields the core after each look that
    # finds none (ALERT in worker.py). How often depends on the time that it has; so neither call is counted.
    calls["epoll_wait"] -= calls.pop("sched_yield", 0)
    return calls


# Of a worker for one message each way: wait, receive and send, for each direction.
CALLS_OF_AN_ANSWER = 6

# For one short connection that comes alone. Measured: some 33 of the worker, 5 of the relay.
CALLS_OF_A_CONNECTION, CALLS_OF_AN_ACCEPT = 38, 6


def of_relay(calls: Counter[str]) -> int:
    """All calls but those of a look whether the worker has taken the guests.

    A relay looks once, some seconds after it has passed some on, and so only where the job takes that long.
    """
    return calls.total() - 2 * calls["ioctl"]


def test_a_request_and_its_answer_cost_the_worker_six_system_calls_and_the_relay_none(host: Host) -> None:
    messages = 500

    worker = system_calls(host, host.worker, lambda: host.talk(messages))
    relay = system_calls(host, host.relay, lambda: host.talk(messages))

    # The connection itself has a cost too, and 20 are for a status request meanwhile.
    assert worker.total() <= CALLS_OF_AN_ANSWER * messages + CALLS_OF_A_CONNECTION + 20
    assert of_relay(relay) <= CALLS_OF_AN_ACCEPT


def test_a_new_connection_costs_some_thirty_system_calls(host: Host) -> None:
    connections = 300

    worker = system_calls(host, host.worker, lambda: host.storm(connections, 1))
    relay = system_calls(host, host.relay, lambda: host.storm(connections, 1))

    assert worker.total() <= CALLS_OF_A_CONNECTION * connections
    assert of_relay(relay) <= CALLS_OF_AN_ACCEPT * connections


def test_telling_the_endpoint_who_is_calling_costs_a_few_system_calls(host: Host) -> None:
    connections = 300
    plain = system_calls(host, host.worker, lambda: host.storm(connections, 1)).total()
    host.introduce()

    worker = system_calls(host, host.worker, lambda: host.storm(connections, 1))
    relay = system_calls(host, host.relay, lambda: host.storm(connections, 1))

    # A look for what the daemon has said, the SYN, the guest's bytes that came during the dial, and the
    # option of the handshake where none had come before.
    assert worker.total() - plain <= 6 * connections
    assert of_relay(relay) <= CALLS_OF_AN_ACCEPT * connections


def test_connections_that_come_together_share_the_work_of_relay_and_worker(host: Host) -> None:
    connections = 600

    relay = system_calls(host, host.relay, lambda: host.storm(connections, 32))

    # A connection that comes alone takes a message to the worker and a wake-up. How many connections share
    # these depends on the load of the machine; strace slows the relay down, so here some always do.
    assert relay["sendmsg"] < connections
    assert relay["epoll_wait"] < connections


def test_bulk_is_moved_inside_the_kernel_in_large_pieces(host: Host) -> None:
    def read() -> None:
        with host.bulk(4):
            pass

    calls = system_calls(host, host.worker, read)

    # Bytes are copied to the worker, 64 KiB at a time, until a direction is known to be bulk, and again
    # whenever the source has run dry. Measured: 16 to 46 reads, more on a busy machine. Without splice(2) all
    # bytes are read, which takes 1,220 reads.
    assert calls["recvfrom"] + calls["recvmsg"] <= 4 * BULK / splice.SMALL / 2, calls
    assert 0 < calls["splice"] <= 4 * 2 * BULK / 64_000, calls


def test_processes_that_serve_nobody_never_run(host: Host) -> None:
    host.storm(100, 10)
    host.settled()

    # What is left to do is done soon. A process with a timer that repeats would run in every two seconds.
    for _ in eventually():
        before, busy = host.wake_ups(), costs.cpu(host.hypervisor, host.processes())
        time.sleep(2)
        if host.wake_ups() == before and costs.cpu(host.hypervisor, host.processes()) == busy:
            break

    assert len(before) == 4  # daemon, relay, spawner, worker


def test_only_a_pool_of_pipes_is_kept_when_bulk_is_over(host: Host) -> None:
    at_rest = host.settled()

    with host.bulk(40):
        idle = len(host.descriptors(host.worker, "pipe:"))
    host.settled()
    kept = len(host.descriptors(host.worker, "pipe:"))

    # Everything has been sent and read: the open connections hold no pipe, only the pool does.
    assert idle <= kept <= 2 * splice.SPARE_PIPES
    await_equal(
        lambda: host.settled()[host.worker] - at_rest[host.worker] <= 2 * splice.SPARE_PIPES, wanted=True
    )
    await_equal(lambda: host.settled()[host.relay], at_rest[host.relay])
