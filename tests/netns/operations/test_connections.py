"""``tproxy connections`` and ``tproxy kill`` with real connections: docs/contract.md, Commands."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any

import jsonschema
import pytest

from tests.contract import table
from tests.netns.program import program
from tests.netns.strictly import strict
from tests.netns.visiting import Visitor
from tests.netns.waiting import eventually
from tests.netns.worker.crew import ECHO, ENDPOINT, Crew
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.cli import schemas
from tproxy.datapath.inspection import STATES
from tproxy.lab.hypervisor import Guest, Hypervisor

# Service ports: an endpoint that answers datagrams; none; one that only listens; one that never reads.
DNS, VOID, LISTENER, SINK = 53, 90, 91, 92
CONFIG = f"""\
tproxy_workers: 2
tproxy_log_format: json
tproxy:
- {{service_port: {ECHO}, name: echo, remote_addr: {ENDPOINT}, remote_port: 9000}}
- {{service_port: {DNS}, protocol: udp, remote_addr: {ENDPOINT}, remote_port: 5353, udp_idle_timeout: 600}}
- {{service_port: {VOID}, remote_addr: 10.99.0.1, remote_port: 80, connect_timeout: 300}}
- {{service_port: {LISTENER}, remote_addr: {ENDPOINT}, remote_port: 9001}}
- {{service_port: {SINK}, remote_addr: {ENDPOINT}, remote_port: 9002}}
"""
FILE = "/run/inspected.yaml"

Row = dict[str, Any]


@pytest.fixture(scope="module")
def hypervisor(real_kernel: None) -> Iterator[Hypervisor]:
    """One host for all tests of this module."""
    with Hypervisor() as host:
        yield host


@pytest.fixture(scope="module")
def served(hypervisor: Hypervisor) -> Crew:
    crew = Crew(hypervisor)
    crew.add_endpoint(9001, "farewell")
    crew.add_endpoint(9002, "sink")
    hypervisor.add_endpoint(ENDPOINT, 5353, program=program("datagram_endpoint", "who"))
    hypervisor.ip(
        "link add void type veth peer name nobody",
        "address add 10.99.0.254/24 dev void",
        "link set void up",
        "link set nobody up",
        "neigh add 10.99.0.1 lladdr 02:00:00:00:00:99 dev void",
    )
    hypervisor.write(FILE, CONFIG)
    hypervisor.tproxy("hook", "up", "--bridge", "br0", "--config", FILE)
    return crew


@pytest.fixture
def crew(served: Crew) -> Iterator[Crew]:
    yield served
    served.host.tproxy("kill", "--all")


def document(crew: Crew, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(crew.host.tproxy(*arguments, "--json").stdout)
    jsonschema.validate(found, strict(schemas.of_connections()))
    assert found["silent"] == []
    return found


def listed(crew: Crew, *choice: str) -> list[Row]:
    """Return the connections that are there, without waiting for rates."""
    found: list[Row] = document(crew, "connections", "--interval", "0", *choice)["connections"]
    return found


def until_listed(crew: Crew, **wanted: object) -> Row:
    """Wait until there is one connection like this, and return it."""
    for _ in eventually():
        found = [each for each in listed(crew) if wanted.items() <= each.items()]
        if len(found) == 1:
            break
    return found[0]


def visit(guest: Guest, count: int = 1) -> Visitor:
    visitor = Visitor(guest, ECHO)
    assert visitor.open(count) == {"served": count}
    return visitor


def hold(guest: Guest, name: str, port: int, *words: str) -> None:
    """Have a program hold a connection."""
    guest.popen(*program(name, SERVICE_ADDRESS, str(port), *words), stdin=PIPE, stdout=PIPE)


def log_of(crew: Crew, id_: str) -> dict[str, Any]:
    """Return the line of a connection that has ended."""
    for _ in eventually():
        for line in crew.log().splitlines():
            if f'"connection": "{id_}"' in line:
                found: dict[str, Any] = json.loads(line)
                return found
    raise AssertionError


def ended(crew: Crew) -> float:
    """Return how many connections the metrics say were killed."""
    text = crew.host.tproxy("metrics").stdout
    return sum(map(float, re.findall(r'_ended_total\{.*outcome="killed".*\} (\S+)', text)))


def test_a_connection_is_shown_with_all_that_is_known_of_it(crew: Crew) -> None:
    visitors = [visit(guest, 2) for guest in crew.guests]
    found = listed(crew)
    workers = [(guest.address, crew.worker_of(guest)) for guest in crew.guests for _ in range(2)]
    assert sorted((each["guest"], each["worker"]) for each in found) == sorted(workers)
    assert len({each["id"] for each in found}) == 4
    for each in found:
        assert re.fullmatch(r"[0-9a-f]{12}-\d+", each["id"])
        assert (each["protocol"], each["state"], each["draining"]) == ("tcp", "open", False)
        assert (each["bridge"], each["service"], each["service_port"]) == ("br0", f"echo:{ECHO}", ECHO)
        assert (each["service_address"], each["endpoint"]) == (SERVICE_ADDRESS, f"{ENDPOINT}:9000")
        assert (each["bytes_to_endpoint"], each["bytes_to_guest"]) == (1, 1)
        assert each["guest_rtt"] > 0
        assert each["endpoint_rtt"] > 0
        (guest,) = (one for one in crew.guests if one.address == each["guest"])
        assert f"link/ether {each['mac']} " in guest.run("ip", "link").stdout
        assert each["port"] == guest.port
    text = crew.host.tproxy("connections").stdout
    assert all(each["id"] in text for each in found)
    assert text.endswith("\n\n4 connections\n")
    whole = document(crew, "connections")
    assert whole["seconds"] > 0
    keys = table("Output of `connections`", "key", "value").column("key")
    assert keys == [*whole, *(f"connections[].{key}" for key in whole["connections"][0])]
    assert visitors[0].try_all() == {"served": 2}


def test_each_state_is_shown_also_of_an_old_worker(crew: Crew) -> None:
    guest = crew.guests[0]
    visitor = visit(guest)
    hold(guest, "holder", VOID, "1")
    hold(guest, "holder", LISTENER, "1")
    hold(guest, "late_reader", SINK)
    call = json.dumps([[0, "hello", 30.0]])
    guest.run(*program("datagram_caller", SERVICE_ADDRESS, str(DNS), call))
    seen = [
        until_listed(crew, service_port=VOID, state="dialling"),
        until_listed(crew, service_port=ECHO, state="open"),
        until_listed(crew, service_port=SINK, state="half-closed by guest"),
        until_listed(crew, service_port=LISTENER, state="half-closed by endpoint"),
    ]
    assert seen[0]["endpoint_rtt"] is None
    assert [*table("Output of `connections`", "state").column("state")] == [*STATES]
    session = until_listed(crew, protocol="udp", bytes_to_endpoint=5)
    assert (session["service"], session["guest_rtt"]) == (f"{DNS}/udp", None)
    crew.host.tproxy("restart", env={"TPROXY_CONFIG": FILE})
    assert {each["id"] for each in listed(crew) if each["draining"]} >= {each["id"] for each in seen}
    assert visitor.try_all() == {"served": 1}
    killed = document(crew, "kill", "--all")["connections"]
    assert {each["id"] for each in killed} >= {each["id"] for each in seen}
    assert listed(crew) == []
    assert visitor.try_all() == {"ECONNRESET": 1}
    assert log_of(crew, seen[0]["id"])["outcome"] == "killed"


def test_connections_are_chosen_by_bridge_guest_service_and_id(crew: Crew) -> None:
    first, second = crew.guests
    visitors = [visit(first), visit(second)]
    hold(first, "holder", VOID, "1")
    one = until_listed(crew, guest=first.address, service_port=ECHO)
    other = until_listed(crew, guest=second.address)
    dialling = until_listed(crew, service_port=VOID)
    expected = {
        (): [one, other, dialling],
        ("--bridge", "br0"): [one, other, dialling],
        ("--bridge", "br1"): [],
        ("--guest", first.address): [one, dialling],
        ("--guest", "10.0.0.0/24"): [one, other, dialling],
        ("--guest", "10.0.1.0/24"): [],
        ("--guest", other["mac"].upper()): [other],
        ("--service", "echo"): [one, other],
        ("--service", str(VOID)): [dialling],
        ("--service", "echo", "--guest", second.address): [other],
        (one["id"], other["id"]): [one, other],
    }
    for choice, wanted in expected.items():
        ids = sorted(each["id"] for each in wanted)
        assert sorted(each["id"] for each in listed(crew, *choice)) == ids, choice
        if choice:
            assert (
                sorted(each["id"] for each in document(crew, "kill", "--dry-run", *choice)["connections"])
                == ids
            )
    assert [each.try_all() for each in visitors] == [{"served": 1}] * 2


def test_what_is_killed_is_reset_logged_and_counted_and_nothing_else(crew: Crew) -> None:
    before = ended(crew)
    visitors = [visit(guest, 2) for guest in crew.guests]
    gone = listed(crew, "--guest", crew.guests[0].address)
    done = crew.host.tproxy("kill", "--guest", crew.guests[0].address)
    assert done.stdout.endswith("\n\nended 2 connections\n")
    assert all(each["id"] in done.stdout for each in gone)
    assert visitors[0].try_all() == {"ECONNRESET": 2}
    assert visitors[1].try_all() == {"served": 2}
    for each in gone:
        line = log_of(crew, each["id"])
        assert (line["outcome"], line["end"]) == ("killed", "killed by an operator")
        assert (line["guest"], line["to_endpoint"]) == (f"{each['guest']}:{each['guest_port']}", 1)
    assert f"an operator ends connections: guest={crew.guests[0].address}/32" in crew.log()
    assert ended(crew) == before + 2
    assert visit(crew.guests[0]).try_all() == {"served": 1}  # it may come again


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("kill", 2, "no connection is chosen; --all ends everything"),
        ("kill --all --bridge br0", 2, "not both"),
        ("kill --guest nobody", 2, "'nobody' is neither an address nor a MAC"),
        ("kill 0123456789ab-7", 1, "no connection 0123456789ab-7"),
        ("kill --bridge br1", 0, ""),
        ("connections --guest 10.0.0.300", 2, "neither an address nor a MAC"),
        ("connections --watch --json", 2, "--watch goes with neither"),
    ],
)
def test_a_choice_that_is_none_ends_nothing(crew: Crew, arguments: str, code: int, words: str) -> None:
    visitor = visit(crew.guests[0])
    done = crew.host.tproxy(*arguments.split(), check=False)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert visitor.try_all() == {"served": 1}


def test_rates_are_those_of_the_interval(crew: Crew) -> None:
    load = crew.guests[0].popen(
        *program("load", SERVICE_ADDRESS, str(ECHO), "0", "1"), stdin=PIPE, stdout=PIPE
    )
    until_listed(crew, service_port=ECHO)
    for _ in eventually():
        found = document(crew, "connections", "--interval", "0.2")
        (one,) = found["connections"]
        assert found["seconds"] > 0.19  # ages are in milliseconds
        if one["rate_to_endpoint"] > 0 < one["rate_to_guest"]:
            break
    assert one["rate_to_endpoint"] <= one["bytes_to_endpoint"] / 0.19
    assert load.poll() is None


def test_the_table_is_shown_again_and_again(crew: Crew) -> None:
    visitor = visit(crew.guests[0])
    command = (sys.executable, "-m", "tproxy", "connections", "--watch", "--interval", "0.1")
    watching = crew.host.popen(*command, stdout=PIPE)
    assert watching.stdout is not None
    for _ in range(3):
        while watching.stdout.readline() != "1 connection\n":
            assert watching.poll() is None
    watching.kill()
    assert visitor.try_all() == {"served": 1}
