"""A worker is killed: its own guests' open connections are reset, and everything else goes on."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tests.netns.worker.crew import ECHO, HTTP, WORKER, Crew, Load, start_asking, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


def start_call(crew: Crew, behaviour: str, port: int, *arguments: str) -> subprocess.Popen[str]:
    argv = program("caller", behaviour, SERVICE_ADDRESS, str(port), *arguments)
    return crew.guests[0].popen(*argv, stdout=subprocess.PIPE)


@pytest.mark.parametrize("daemon", ["lives", "is dead too"])
def test_a_killed_worker_resets_its_own_guests_connections_and_no_other_guest_notices(
    crew: Crew, daemon: str
) -> None:
    victim, other = loads = [Load(guest) for guest in crew.guests]
    workers = [crew.worker_of(load.guest) for load in loads]
    assert len(set(workers)) == 2
    if daemon == "is dead too":
        crew.kill_daemon()
    crew.kill(workers[0])
    other.go_on()
    later = Load(victim.guest)  # served by a new worker, or by the other one
    later.go_on()
    report = victim.end()
    assert report["streams"] == ["ECONNRESET"] * 2
    assert set(report["failed"]) <= {"ECONNRESET"}  # those that were open just then, one for each caller
    # Nobody keeps what was on its way to the worker when the daemon is dead.
    assert len(report["failed"]) <= (4 if daemon == "lives" else 8)
    list(whole([other, later]))
    if daemon == "is dead too":
        assert crew.pids(WORKER) == [workers[1]]
        crew.tproxy("start")
    assert workers[1] in crew.await_workers(2, workers[0])


def test_the_only_worker_is_replaced_when_it_is_killed_and_nobody_is_refused(hypervisor: Hypervisor) -> None:
    crew = Crew(hypervisor, workers=1)
    load = Load(crew.guests[0], callers=8, streams=0)
    for _ in range(3):
        (worker,) = crew.await_workers(1)
        crew.kill(worker)
        load.go_on()
    report = load.end()
    assert set(report["failed"]) <= {"ECONNRESET"}
    assert len(report["failed"]) <= 3 * 8
    assert crew.guests[1].get(SERVICE_ADDRESS, HTTP) == "hello"


def test_counts_survive_the_worker(crew: Crew) -> None:
    load = Load(crew.guests[0])
    while crew.service(ECHO)["bytes_to_guest"] < 1_000_000:  # it asks the worker to count
        load.go_on(1)
    before = crew.service(ECHO)
    worker = crew.worker_of(crew.guests[0])
    crew.kill(worker)
    load.end()
    crew.await_workers(2, worker)
    await_equal(lambda: crew.service(ECHO)["open"], 0)
    after = crew.service(ECHO)
    for key in ("total", "bytes_to_endpoint", "bytes_to_guest"):
        assert after[key] >= before[key], key
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"


@pytest.mark.parametrize("workers", [1, 2])
def test_guests_that_were_passed_on_to_a_worker_and_not_received_go_to_the_next_one(
    hypervisor: Hypervisor, workers: int
) -> None:
    crew = Crew(hypervisor, workers)
    victims = crew.pids(WORKER)
    crew.signal("STOP", *victims)
    asking = [start_asking(guest) for guest in crew.guests for _ in range(8)]
    crew.await_accepted(len(asking))
    crew.kill(*victims)
    assert [each.communicate()[0] for each in asking] == ["hello"] * len(asking)


def test_a_storm_that_fills_every_queue_is_served_by_the_next_worker(hypervisor: Hypervisor) -> None:
    crew = Crew(hypervisor, workers=1)
    crew.serve(90, "short")
    (worker,) = crew.pids(WORKER)
    crew.signal("STOP", worker)
    options = ("--connections", "4000", "--at-once", "3000")
    storm = crew.guests[0].popen(*program("storm", *options, SERVICE_ADDRESS, "90"), stdout=subprocess.PIPE)
    crew.await_connected(2500)  # more than channel and relay hold: the rest is in the backlog
    crew.kill(worker)
    report = json.loads(storm.communicate()[0])
    assert (report["errors"], report["completed"]) == ({}, 4000)


# What a guest does, and the endpoint behind the service port.
OPEN = {
    "idle": ("say", ["x"], "echo", []),
    "the guest has ended its direction": ("say_and_end", ["x"], "sink", []),
    "the endpoint has ended its direction": ("hear_on", [], "farewell", ["--bytes", "1000"]),
    "bulk to the endpoint": ("say", ["x" * 100_000], "sink", []),
    "bulk to the guest": ("hear_on", [], "source", ["--bytes", str(10**12)]),
}


@pytest.mark.parametrize("state", OPEN)
def test_both_ends_of_a_connection_see_a_reset_and_no_end_of_file(hypervisor: Hypervisor, state: str) -> None:
    crew = Crew(hypervisor, workers=1)
    behaviour, arguments, endpoint_behaviour, options = OPEN[state]
    endpoint = crew.serve(90, endpoint_behaviour, "--tell", *options)
    call = start_call(crew, behaviour, 90, *arguments)
    wanted = {"to_endpoint": int(behaviour.startswith("say")), "to_guest": int(behaviour == "hear_on")}
    for _ in eventually():
        service = crew.service(90)
        if all(service[f"bytes_{key}"] >= count for key, count in wanted.items()):
            break
    (worker,) = crew.pids(WORKER)
    crew.kill(worker)
    if behaviour == "hear_on":  # the end of file of the endpoint came before, in order
        call.send_signal(signal.SIGTERM)
    else:
        assert call.communicate()[0] == "ECONNRESET\n"
    if endpoint_behaviour != "sink":  # it never reads
        assert endpoint.stdout is not None
        assert endpoint.stdout.readline().split()[0] in ("ECONNRESET", "EPIPE")
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"


def test_a_guest_whose_endpoint_is_being_dialled_sees_a_reset(hypervisor: Hypervisor, blackhole: str) -> None:
    crew = Crew(hypervisor, workers=1)
    crew.dial(90, f"{blackhole}, remote_port: 90, connect_timeout: 60")
    crew.hook_up()
    call = start_call(crew, "say", 90, "x")
    for _ in eventually():
        if crew.service(90)["open"]:
            break
    crew.kill(*crew.pids(WORKER))
    assert call.communicate()[0] == "ECONNRESET\n"


def test_the_last_bytes_of_a_connection_that_ended_in_order_outlive_the_worker(
    hypervisor: Hypervisor,
) -> None:
    crew = Crew(hypervisor, workers=1)
    crew.guests[0].run("sysctl", "-w", "net.ipv4.tcp_rmem=4096 8192 8192")
    crew.serve(90, "source", "--bytes", "20000")
    argv = program("late_reader", SERVICE_ADDRESS, "90")
    reader = crew.guests[0].popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
    for _ in eventually():  # the worker has passed on all bytes, and closed both sides
        service = crew.service(90)
        if (service["total"], service["open"]) == (1, 0):
            break
    assert service["bytes_to_guest"] == 20000
    crew.kill(*crew.pids(WORKER))
    assert reader.communicate("read\n")[0] == "20000\n"
