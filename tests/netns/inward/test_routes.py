"""Routes: what leads from outside to guests, from the configuration to the guest's answer."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.netns.inward.streams import (
    CLIENT,
    GATEWAY,
    ask,
    await_in_log,
    connect,
    everything,
    header,
    in_sock,
    start,
)
from tests.netns.waiting import eventually
from tproxy import proxy_protocol
from tproxy.lab.hypervisor import Guest, Hypervisor

CONFIG = """
tproxy: [{service_port: 5030, remote_addr: 10.11.12.13, remote_port: 8080}]
tproxy_routes:
- {id: blue, network: blue, guest_addr: 10.0.0.5, port: 80, domain: blue.example.com}
- {id: red, network: red, guest_addr: 10.0.0.5, port: 80}
- {id: echo, network: blue, guest_addr: 10.0.0.5, port: 7}
- {id: told, network: blue, guest_addr: 10.0.0.5, port: 7, proxy_protocol: v2}
- {id: rude, network: blue, guest_addr: 10.0.0.5, port: 9}
- {id: closed, network: blue, guest_addr: 10.0.0.5, port: 81}
- {id: gone, network: blue, guest_addr: 10.0.0.77, port: 80}
- {id: hanging, network: blue, guest_addr: 10.0.0.5, port: 82, connect_timeout: 2}
- {id: old, network: blue, guest_addr: 10.0.0.5, port: 80, expires: 2001-01-01}
- {id: two, network: blue, guest_addr: 10.0.0.5, port: 7, max_connections_per_client: 2}
- {id: impatient, network: blue, guest_addr: 10.0.0.5, port: 7, idle_timeout: 1}
- {id: other-card, network: blue, guest_addr: 10.0.0.5, guest_mac: '02:00:00:00:00:01', port: 80}
- {id: nowhere, network: green, guest_addr: 10.0.0.5, port: 80}
"""
FILE = "/run/tproxy.yaml"


class Tenants:
    """Two tenants on two bridges, each with a guest at 10.0.0.5 that serves a page."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.guests: dict[str, Guest] = {}
        for bridge, network in (("br0", "blue"), ("br1", "red")):
            host.add_bridge(bridge)
            guest = self.guests[network] = host.add_guest(network, bridge)
            page = ("python3", "-m", "tproxy.lab.inside", "answer", "10.0.0.5", "80", network)
            host.serve(*page, netns=network)
            if network == "blue":
                start(guest, "echo", 7)
                start(guest, "reset", 9)
                guest.run(
                    "nft",
                    "add table ip t; add chain ip t c { type filter hook input priority 0; }; "
                    "add rule ip t c tcp dport 82 drop",
                )
        self.configure(CONFIG)
        for bridge, network in (("br0", "blue"), ("br1", "red")):
            self.tproxy("hook", "up", "--bridge", bridge, "--network", network)

    def configure(self, text: str) -> None:
        self.host.write(FILE, text)

    def tproxy(self, *arguments: str, check: bool = True) -> Any:
        return self.host.tproxy(*arguments, check=check, env={"TPROXY_CONFIG": FILE})


@pytest.fixture(scope="module")
def tenants(real_kernel: None) -> Iterator[Tenants]:
    with Hypervisor() as host:
        yield Tenants(host)


def test_two_tenants_have_the_same_guest_address_on_two_bridges(tenants: Tenants) -> None:
    assert ask(tenants.host, "blue") == "blue"
    assert ask(tenants.host, "red") == "red"
    await_in_log(tenants.host, "route=red bridge=br1 client=198.51.100.7:40000 guest=10.0.0.5:80 ")


def test_each_direction_ends_by_itself(tenants: Tenants) -> None:
    with connect(tenants.host, "echo", b"one") as stream:
        assert stream.recv(100) == b"one"
        stream.sendall(b"x" * 1_000_000)
        stream.shutdown(1)
        assert len(everything(stream)) == 1_000_000
    await_in_log(tenants.host, "guest=10.0.0.5:7 to_guest=1000003 to_client=1000003")


def test_the_guest_is_told_the_clients_address_where_the_route_says_so(tenants: Tenants) -> None:
    with connect(tenants.host, "told", b"hello") as stream:
        stream.shutdown(1)
        assert everything(stream) == proxy_protocol.encode(CLIENT, GATEWAY, {}) + b"hello"


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ("closed", "guest=10.0.0.5:81 to_guest=0 to_client=0 seconds="),
        ("gone", "the guest is not there: gone, moved or off: nobody on br0 answers for 10.0.0.77"),
        ("hanging", "end=timed_out"),
        ("other-card", "end=another_guest"),
        ("old", "end=expired"),
        ("nothing", "a stream for route 'nothing' was refused: there is no such route"),
    ],
)
def test_a_client_learns_that_the_guest_cannot_be_reached_and_the_log_says_why(
    tenants: Tenants, route: str, why: str
) -> None:
    assert ask(tenants.host, route) == ""
    await_in_log(tenants.host, why)


def test_limits_of_a_route_are_those_of_its_clients(tenants: Tenants) -> None:
    with ExitStack() as held:
        answers = set()
        while b"" not in answers:  # each worker counts by itself
            stream = held.enter_context(connect(tenants.host, "two", b"1"))
            with suppress(ConnectionResetError):
                answers.add(stream.recv(1))
                continue
            answers.add(b"")
        assert answers == {b"1", b""}
        with connect(tenants.host, "two", b"4", client=("198.51.100.8", 1)) as other:
            assert other.recv(1) == b"4"
    await_in_log(tenants.host, "route=two bridge=br0 stream ended by max_connections_per_guest")


def test_a_silent_stream_ends_after_its_idle_timeout(tenants: Tenants) -> None:
    with connect(tenants.host, "impatient", b"x") as stream:
        assert stream.recv(1) == b"x"
        assert everything(stream) == b""
    await_in_log(tenants.host, "end=idle_timeout")


def test_route_test_names_the_hop_that_is_bad(tenants: Tenants) -> None:
    good = tenants.tproxy("route", "test", "blue").stdout.splitlines()
    assert [line.split()[:2] for line in good] == [
        ["good", f"{hop}:"] for hop in ("entry", "bridge", "daemon", "relay", "in.sock", "guest")
    ]
    for route, said in (
        ("closed", "bad   guest: the guest refuses: nothing listens at 81 there"),
        ("gone", "bad   guest: gone, moved or off: nobody on br0 answers for 10.0.0.77"),
        ("other-card", "bad   guest: another guest than 02:00:00:00:00:01 answers for 10.0.0.5"),
        ("nowhere", "bad   bridge: no bridge has it"),
        ("nothing", f"bad   entry: {FILE} has no usable route nothing"),
    ):
        done = tenants.tproxy("route", "test", route, check=False)
        assert said in done.stdout
        assert done.returncode == 1


def test_route_list_has_the_routes_of_the_file_and_of_the_host(tenants: Tenants) -> None:
    listed = {line.split()[0]: line for line in tenants.tproxy("route", "list").stdout.splitlines()}
    assert "blue.example.com" in listed["blue"]
    assert listed["red"].endswith("in order")
    assert listed["nowhere"].endswith("no bridge of its network is up")
    assert listed["old"].endswith("expired")


def test_what_is_no_header_of_a_gateway_is_refused_and_a_header_may_come_in_pieces(tenants: Tenants) -> None:
    whole = header("blue") + b"GET / HTTP/1.0\r\n\r\n"
    local = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
    for wrong in (b"GET / HTTP/1.0\r\n\r\n", whole[:14] + b"\xff\xff" + bytes(5000), local, whole[:-60]):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(in_sock(tenants.host))
            stream.sendall(wrong)
            stream.shutdown(socket.SHUT_WR)
            assert everything(stream) == b""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(in_sock(tenants.host))
        for byte in whole:
            stream.sendall(bytes([byte]))
        assert everything(stream).endswith(b"blue")


def test_a_guest_that_resets_and_a_client_that_goes_are_told_to_the_other_side(tenants: Tenants) -> None:
    with connect(tenants.host, "rude", b"x") as stream:
        assert everything(stream) == b""
    await_in_log(tenants.host, "route=rude bridge=br0 client=198.51.100.7:40000 guest=10.0.0.5:9 ")
    await_in_log(tenants.host, "end=reset_by_guest")
    with connect(tenants.host, "echo", b"x") as stream:
        assert stream.recv(1) == b"x"
        stream.sendall(b"y" * 100)  # and leaves the answer unread: its socket is reset
    await_in_log(tenants.host, "end=finished")


def test_metrics_count_routes_as_services(tenants: Tenants) -> None:
    assert ask(tenants.host, "blue") == "blue"
    shown = tenants.tproxy("metrics").stdout
    pattern = r'^tproxy_connections_accepted_total\{.*service="route/blue".*\} ([\d.]+)$'
    (total,) = re.findall(pattern, shown, re.MULTILINE)
    assert float(total) > 0
    assert re.search(r'service="5030"', shown)
    verbose = tenants.tproxy("status", "--verbose").stdout.splitlines()
    assert any(re.match(r"blue +br0 +10\.0\.0\.5:80 +0 +[1-9]", line) for line in verbose)


def test_the_namespace_sends_no_syn_to_what_is_no_routes_target(tenants: Tenants) -> None:
    """A relay or worker that was taken over may dial, but neither its SYN leaves nor an answer comes in."""
    dial = "import socket; print(socket.socket().connect_ex(('10.0.0.5', {port})))"
    blue = tenants.host.run("python3", "-c", dial.format(port=80), netns="one_tproxy_br0")
    assert blue.stdout == "0\n"
    watched = tenants.guests["blue"]
    watched.run(
        "nft",
        "add table ip seen; add chain ip seen c { type filter hook prerouting priority 0; }; "
        "add rule ip seen c tcp dport 22 counter",
    )
    with suppress(Exception):
        tenants.host.run("timeout", "2", "python3", "-c", dial.format(port=22), netns="one_tproxy_br0")
    assert "counter packets 0 " in watched.run("nft", "list", "table", "ip", "seen").stdout


def test_streams_are_listed_beside_guests_connections_and_an_operator_can_end_them(tenants: Tenants) -> None:
    with ExitStack() as held:
        one, two = (
            held.enter_context(connect(tenants.host, "echo", b"abc", client=("2001:db8::7", 1000 + each)))
            for each in range(2)
        )
        for stream in (one, two):
            assert stream.recv(3) == b"abc"
        shown = tenants.tproxy("connections", "--service", "route/echo", "--json").stdout
        rows = [each for each in json.loads(shown)["connections"] if each["route"] == "echo"]
        assert {each["endpoint"] for each in rows} == {"[2001:db8::7]:1000", "[2001:db8::7]:1001"}
        for row in rows:
            assert (row["guest"], row["guest_port"], row["port"]) == ("10.0.0.5", 7, "vnet0")
            assert (row["bytes_to_guest"], row["bytes_to_endpoint"], row["state"]) == (3, 3, "open")
            assert row["guest_rtt"] > 0
        (first,) = (each["id"] for each in rows if each["endpoint"].endswith(":1000"))
        assert "ended 1 connection" in tenants.tproxy("kill", first).stdout
        assert everything(one) == b""
        two.sendall(b"d")
        assert two.recv(1) == b"d"
        assert "ended 1 connection" in tenants.tproxy("kill", "--guest", "10.0.0.5").stdout
        assert everything(two) == b""
    await_in_log(tenants.host, "end=killed_by_an_operator")


def test_a_worker_that_dies_costs_its_own_streams_only(tenants: Tenants) -> None:
    workers = tenants.host.run("pgrep", "-f", "^tproxy-worker").stdout.split()
    with connect(tenants.host, "echo", b"x") as stream:
        assert stream.recv(1) == b"x"
        for worker in workers:
            tenants.host.run("kill", "-9", worker)
        assert everything(stream) == b""
    assert [ask(tenants.host, "blue") for _ in range(10)] == ["blue"] * 10


@pytest.mark.parametrize("command", ["restart", "kill"])
def test_no_stream_is_lost_while_our_processes_are_replaced(tenants: Tenants, command: str) -> None:
    with connect(tenants.host, "echo", b"x") as held:
        assert held.recv(1) == b"x"
        if command == "restart":
            tenants.tproxy("restart")
        else:
            daemon = int(tenants.tproxy("status").stdout.split()[1])
            tenants.host.run("kill", f"-{signal.SIGKILL.value}", str(daemon))
        assert [ask(tenants.host, "blue") for _ in range(20)] == ["blue"] * 20
        held.sendall(b"y")
        assert held.recv(1) == b"y"
    for _ in eventually():
        with suppress(Exception):
            tenants.tproxy("reload")
            break
    assert ask(tenants.host, "red") == "red"


def test_a_guest_is_found_by_its_mac_and_by_its_port(tenants: Tenants) -> None:
    guest = tenants.guests["blue"]
    mac = guest.run("ip", "-br", "link", "show", "eth0").stdout.split()[2]
    tenants.configure(
        CONFIG
        + f"- {{id: by-mac, network: blue, guest_mac: '{mac}', port: 80}}\n"
        + f"- {{id: by-port, network: blue, bridge_port: {guest.port}, port: 80}}\n"
    )
    tenants.tproxy("refresh")
    with suppress(Exception):
        guest.get("169.254.16.9", 5030)  # from now on its address is known
    for route in ("by-mac", "by-port"):
        for _ in eventually():
            if ask(tenants.host, route) == "blue":
                break


def test_a_route_that_expires_drains_and_then_ends(tenants: Tenants) -> None:
    brief = "{id: brief, network: blue, guest_addr: 10.0.0.5, port: 7, drain_timeout: 1, idle_timeout: 4"
    tenants.configure(f"{CONFIG}- {brief}}}\n")
    tenants.tproxy("refresh")
    with connect(tenants.host, "brief", b"x") as stream:
        assert stream.recv(1) == b"x"
        tenants.configure(f"{CONFIG}- {brief}, expires: 2001-01-01}}\n")
        tenants.tproxy("refresh")
        for _ in eventually():
            if re.search(r"route=brief .* end=expired", _log_after_asking(tenants)):
                break
        assert everything(stream) == b""
    await_in_log(tenants.host, "route=brief bridge=br0 stream ended by drain_timeout")


def _log_after_asking(tenants: Tenants) -> str:
    ask(tenants.host, "brief")
    return tenants.host.path("/var/log/one_tproxy.log").read_text()


def test_in_sock_is_for_root_until_its_directory_has_a_group(tenants: Tenants) -> None:
    inode = os.stat(f"/proc/{tenants.host.pid}/ns/net").st_ino
    path = tenants.host.path(f"/run/tproxy-in/{inode}/in.sock")
    assert path.stat().st_mode & 0o777 == 0o600


def test_routes_of_a_bridge_that_goes_down_go_with_it(tenants: Tenants) -> None:
    tenants.tproxy("hook", "down", "--bridge", "br1", "--force")
    assert ask(tenants.host, "red") == ""
    assert "rt_br1" not in tenants.host.run("nft", "list", "table", "ip", "one_tproxy").stdout
    assert ask(tenants.host, "blue") == "blue"
