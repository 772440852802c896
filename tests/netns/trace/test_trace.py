"""`tproxy trace` says what becomes of a guest's attempts, and what went wrong with them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.contract import table
from tests.netns.bridge import frames
from tests.netns.bridge.frames import ARP, BROADCAST, IPV4, TAG, TCP
from tests.netns.program import program
from tests.netns.trace.following import (
    CLOSED,
    DNS,
    ENDPOINT,
    LIMITED,
    REFUSED,
    SILENT,
    VOID,
    WEB,
    Following,
    attempt,
    await_no_tables,
    outcome,
    tables,
)
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6, SERVICE_MAC
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor


@pytest.fixture(scope="module")
def following(real_kernel: None) -> Iterator[Following]:
    with Hypervisor() as host:
        yield Following(host)


def test_each_step_of_a_connection_that_does_what_it_should(following: Following) -> None:
    trace = following.trace("--port", following.guest.port, "--count", "1")
    assert following.guest.get(SERVICE_ADDRESS, WEB) == "hello"
    lines = trace.lines()
    assert trace.process.returncode == 0
    steps = attempt(lines, "tcp")
    events = [each["event"] for each in steps]
    assert events[:4] == ["syn", "reached", "answered", "delivered"]
    assert events[4:7] == ["taken", "dials", "connected"]
    assert events[-1] == "end"
    assert outcome(lines)[0] == "good"
    assert outcome(lines)[1].startswith("ended in good order: ")
    assert "the endpoint ended first" in outcome(lines)[1]
    assert steps[0]["service"] == f"{SERVICE_ADDRESS}:{WEB}"
    assert [each["milliseconds"] for each in steps] == sorted(each["milliseconds"] for each in steps)


def test_the_keys_are_those_of_the_contract_and_no_other(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.guest.get(SERVICE_ADDRESS, WEB)
    keys = {*table("Output of `trace`", "key").column("key")}
    for line in [trace.first, *trace.lines()]:
        assert {*line} == keys


def test_the_question_for_the_service_address_comes_first(following: Following) -> None:
    following.guest.ip("neigh flush dev eth0")
    trace = following.trace("--mac", following.mac(following.guest), "--count", "1")
    following.guest.get(SERVICE_ADDRESS, WEB)
    lines = trace.lines()
    assert [each["event"] for each in attempt(lines, "arp")] == ["asks", "reached", "answered", "end"]
    assert outcome(lines, "arp")[0] == "good"
    assert SERVICE_MAC in outcome(lines, "arp")[1]


def test_another_guest_is_not_followed(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.other.get(SERVICE_ADDRESS, WEB)
    following.guest.get(SERVICE_ADDRESS, WEB)
    guests = {line["guest"].partition(":")[0] for line in trace.lines() if line["attempt"]}
    assert guests == {following.guest.address}


def test_a_port_without_a_service(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    assert following.connect(following.guest, CLOSED) == "ConnectionRefusedError"
    assert outcome(trace.lines()) == ("failed", f"refused: br0 has no service at {SERVICE_ADDRESS}:{CLOSED}")
    assert trace.process.returncode == 1


def test_an_endpoint_that_refuses(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.connect(following.guest, REFUSED)
    lines = trace.lines()
    assert outcome(lines) == ("failed", f"endpoint {ENDPOINT}:1 refused, and the guest was reset")
    assert "dial-failed" in [each["event"] for each in attempt(lines, "tcp")]


def test_an_endpoint_that_is_silent(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.connect(following.guest, SILENT)
    assert outcome(trace.lines()) == ("failed", f"endpoint {VOID}:80 timed out, and the guest was reset")


def hold(guest: Guest) -> subprocess.Popen[str]:
    """Have a guest hold a connection open until the program is killed."""
    command = program("holder", SERVICE_ADDRESS, str(LIMITED), "1")
    holder = guest.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline()
    return holder


def test_a_limit(following: Following) -> None:
    holder = hold(following.guest)
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    assert following.connect(following.guest, LIMITED) == "ConnectionResetError"
    assert outcome(trace.lines()) == ("failed", "reset by max_connections_per_guest: 1 are open")
    holder.kill()
    holder.wait(PATIENCE)


def test_a_guest_that_claims_to_be_the_service_by_arp(following: Following) -> None:
    trace = following.trace("--port", following.guest.port, "--count", "1")
    mac = following.mac(following.guest)
    claim = frames.arp(2, (mac, SERVICE_ADDRESS), (BROADCAST, "10.0.0.6"))
    following.send(following.guest, frames.ethernet(BROADCAST, mac, ARP, claim))
    lines = trace.lines()
    assert "claims to be 169.254.16.9 (ARP)" in attempt(lines, "claim")[0]["text"]
    assert outcome(lines, "claim")[0] == "failed"
    assert "dropped by the guards (it claims to be the service" in outcome(lines, "claim")[1]


def test_a_guest_that_uses_the_service_address_as_its_source(following: Following) -> None:
    trace = following.trace("--mac", following.mac(following.guest), "--count", "1")
    segment = frames.tcp(SERVICE_ADDRESS, "10.0.0.6", (40000, WEB))
    packet = frames.ipv4(SERVICE_ADDRESS, "10.0.0.6", TCP, segment)
    mac, other = following.mac(following.guest), following.mac(following.other)
    following.send(following.guest, frames.ethernet(other, mac, IPV4, packet))
    assert "dropped by the guards (it claims to be the service" in outcome(trace.lines(), "claim")[1]


def syn(following: Following, port: int, tags: frames.Tags = ()) -> bytes:
    source = following.guest.address
    packet = frames.ipv4(source, SERVICE_ADDRESS, TCP, frames.tcp(source, SERVICE_ADDRESS, (port, WEB)))
    return frames.ethernet(SERVICE_MAC, following.mac(following.guest), IPV4, packet, tags)


def test_a_guest_in_a_vlan(following: Following) -> None:
    trace = following.trace("--port", following.guest.port, "--count", "1")
    following.send(following.guest, syn(following, 40001, ((TAG, 5),)))
    lines = trace.lines()
    assert "VLAN 5" in attempt(lines, "tcp")[0]["text"]
    assert outcome(lines) == (
        "failed",
        "no answer: the SYN reached br0b in VLAN 5, and the namespace is in none",
    )


def test_a_rule_of_another_program_is_named(following: Following) -> None:
    rule = f'add rule bridge group out tcp dport {WEB} drop comment "guests stay inside"'
    base = "add chain bridge group out { type filter hook forward priority 0; }"
    following.host.run("nft", f"add table bridge group; {base}; {rule}")
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.send(following.guest, syn(following, 40002))
    lines = trace.lines()
    following.host.run("nft", "delete table bridge group")
    assert outcome(lines)[0] == "failed"
    assert "another program's nftables: table bridge group, chain out, handle" in outcome(lines)[1]
    assert "guests stay inside" in outcome(lines)[1]


def test_a_limit_of_the_guards(following: Following) -> None:
    """The port has brought in too many sources lately, and one more has no token."""
    following.send(following.other, *(_from(following, f"10.0.1.{number}") for number in range(1, 60)))
    trace = following.trace("--port", following.other.port, "--count", "1")
    following.send(following.other, *(_from(following, f"10.0.2.{number}") for number in range(1, 40)))
    ends = [each for each in [*trace.lines()] if each["event"] == "end"]
    assert any("more than 2 new source addresses a second" in each["text"] for each in ends)


def _from(following: Following, source: str) -> bytes:
    packet = frames.ipv4(source, SERVICE_ADDRESS, TCP, frames.tcp(source, SERVICE_ADDRESS, (40000, WEB)))
    return frames.ethernet(SERVICE_MAC, following.mac(following.other), IPV4, packet)


def test_a_connection_over_ipv6(following: Following) -> None:
    address = f"{SERVICE_ADDRESS_IPV6}%eth0"
    for _ in eventually():  # a guest's own address is checked for some time
        with suppress(ProcessError):
            following.guest.get(address, WEB)
            break
    following.guest.ip("neigh flush dev eth0")
    trace = following.trace("--mac", following.mac(following.guest), "--count", "1")
    assert following.guest.get(address, WEB) == "hello"
    lines = trace.lines()
    assert [each["event"] for each in attempt(lines, "nd")] == ["asks", "reached", "answered", "end"]
    assert outcome(lines)[0] == "good"
    assert attempt(lines, "tcp")[0]["service"] == f"[{SERVICE_ADDRESS_IPV6}]:{WEB}"


def test_a_datagram_and_its_answer(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.guest.run(*program("ask_by_udp", SERVICE_ADDRESS, str(DNS)))
    lines = trace.lines()
    events = [each["event"] for each in attempt(lines, "udp")]
    assert events == ["datagram", "reached", "session", "endpoint-answered", "answered", "end"]
    assert outcome(lines, "udp")[0] == "good"


def test_a_datagram_to_a_port_without_a_service(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.guest.run(*program("ask_by_udp", SERVICE_ADDRESS, "54"))
    assert "dropped by the wall in the namespace" in outcome(trace.lines(), "udp")[1]


def test_a_guest_that_vanishes(following: Following) -> None:
    host = following.host
    gone = host.add_guest("gone", "br0", "10.0.0.7/24")
    trace = following.trace("--port", gone.port)
    holder = hold(gone)
    trace.await_line("connected")
    host.ip(f"link delete {gone.port}")
    assert trace.await_line("port-gone")["text"] == f"port {gone.port} has left br0"
    assert outcome(trace.end()) == ("open", "the trace ended before this did")
    holder.kill()
    holder.wait(PATIENCE)


def test_a_guest_whose_port_comes_later_is_followed(following: Following) -> None:
    trace = following.trace("--guest", "10.0.0.8", "--count", "1")
    late = following.host.add_guest("late", "br0", "10.0.0.8/24")
    late.get(SERVICE_ADDRESS, WEB)
    assert outcome(trace.lines())[0] == "good"
    following.host.ip(f"link delete {late.port}")


def test_connections_of_a_worker_that_was_started_meanwhile_are_told(following: Following) -> None:
    trace = following.trace("--guest", following.guest.address, "--count", "1")
    following.host.run("pkill", "-KILL", "-f", "^tproxy-worker")
    for _ in eventually():
        done = following.host.run(*_ask(), netns="guest", check=False)
        if done.returncode == 0:
            break
    lines = trace.lines()
    assert lines


def _ask() -> tuple[str, ...]:
    return (sys.executable, "-m", "tproxy.lab.inside", "ask", SERVICE_ADDRESS, str(WEB), "20")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_trace_however_it_ends(following: Following, number: int) -> None:
    trace = following.trace("--port", following.guest.port)
    assert tables(following.host).count("one_tproxy_trace_") == 2
    following.host.run("kill", f"-{int(number)}", trace.pid)
    trace.process.communicate(timeout=PATIENCE)
    await_no_tables(following.host)
    assert following.guest.get(SERVICE_ADDRESS, WEB) == "hello"


def test_a_flood_of_attempts_is_counted_and_not_shown(following: Following) -> None:
    trace = following.trace("--port", following.guest.port)
    following.send(following.guest, *(syn(following, port) for port in range(41000, 41400)))
    assert trace.await_line("hidden")
    begun = {each["attempt"] for each in trace.end()}
    assert len(begun) < 300


def test_a_trace_that_saw_nothing_says_so(following: Following) -> None:
    done = following.host.tproxy("trace", "--guest", "10.0.0.99", "--for", "0.5")
    assert done.stdout.splitlines() == [
        "following 10.0.0.99 on br0",
        "nothing was seen of 10.0.0.99 that is for a service",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "One of --guest, --mac and --port"),
        (("--guest", "10.0.0.5", "--port", "vnet0"), "One of --guest, --mac and --port"),
        (("--guest", "me"), "is not an IP address"),
        (("--mac", "me"), "is not a MAC address"),
        (("--port", "nothing"), "link nothing does not exist"),
        (("--port", "lo"), "lo is no port of a bridge"),
        (("--port", "br0b"), "br0b is our own port of br0"),
        (("--guest", "10.0.0.5", "--bridge", "nothing"), "bridge nothing does not exist"),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(
    following: Following, options: tuple[str, ...], words: str
) -> None:
    done = following.host.tproxy("trace", *options, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
