"""What an endpoint learns of a caller (docs/contract.md, PROXY protocol)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"
NAMED = "tproxy_hypervisor_name: node7\n"
SERVICE = f"{{remote_addr: {ENDPOINT}, remote_port: 8080, proxy_protocol: v2}}"
CONFIG = f"{NAMED}tproxy: [{SERVICE}]\n"

UNIQUE_ID, NETWORK, NETWORK_ID, BRIDGE, MAC, PORT, HYPERVISOR = (
    *("0x05", "0xe0", "0xe1", "0xe2"),
    *("0xe3", "0xe4", "0xe5"),
)


class Host:
    """A host with an endpoint that gets headers at port 8080, and bridges that the tests add."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self.endpoint = hypervisor.add_endpoint(ENDPOINT, 8080, program=program("introduced"))
        hypervisor.write(FILE, CONFIG)

    def up(self, bridge: str, *options: str) -> None:
        self.hypervisor.tproxy("hook", "up", "--bridge", bridge, "--config", FILE, *options)

    def add(self, bridge: str, *options: str) -> None:
        self.hypervisor.add_bridge(bridge)
        self.up(bridge, *options)

    def line(self) -> dict[str, Any]:
        assert self.endpoint.stdout is not None
        found: dict[str, Any] = json.loads(self.endpoint.stdout.readline())
        return found

    def call(self, guest: Guest) -> dict[str, str]:
        """Let a guest call; return the values of the header."""
        guest.run(*program("caller", "say_and_end", SERVICE_ADDRESS, "8080", "hi"), timeout=100)
        values: dict[str, str] = self.line()["values"]
        self.line()
        return values

    def await_call(self, guest: Guest, key: str, value: str | None) -> dict[str, str]:
        """Let a guest call until the header has this value, or for None until it lacks it."""
        for _ in eventually():
            if (values := self.call(guest)).get(key) == value:
                break
        return values

    @contextmanager
    def relay_stopped(self, bridge: str = "br0") -> Iterator[None]:
        pids = self.hypervisor.run("pgrep", "-fx", f"one_tproxy_{bridge}").stdout.split()
        self.hypervisor.run("kill", f"-{signal.SIGSTOP}", *pids)
        try:
            yield
        finally:
            self.hypervisor.run("kill", f"-{signal.SIGCONT}", *pids)

    def await_sent(self, count: int) -> None:
        """Wait until so many bytes of a guest wait in its accepted socket; FIN counts as one."""
        for _ in eventually():
            shown = self.hypervisor.run("ss", "-Htn", "src", SERVICE_ADDRESS, netns="one_tproxy_br0").stdout
            if [line.split()[1] for line in shown.splitlines()] == [str(count)]:
                return

    def log(self) -> str:
        return self.hypervisor.path("/var/log/one_tproxy.log").read_text()

    def daemon_memory(self) -> int:
        """Resident bytes of the daemon."""
        (pid,) = self.hypervisor.run("pgrep", "-fx", "one_tproxy").stdout.split()
        status = self.hypervisor.run("cat", f"/proc/{pid}/status").stdout
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def saved_syns(self) -> str:
        """The service ports of br0 whose listening sockets keep the SYNs of connections."""
        (pid,) = self.hypervisor.run("pgrep", "-fx", "one_tproxy_br0").stdout.split()
        return self.hypervisor.run(*program("saved_syns", pid)).stdout.strip()

    def subscribed(self) -> bool:
        """Whether the daemon hears of forwarding tables: RTNLGRP_NEIGH is the third group."""
        (pid,) = self.hypervisor.run("pgrep", "-fx", "one_tproxy").stdout.split()
        table = self.hypervisor.run("cat", f"/proc/{pid}/net/netlink").stdout.splitlines()[1:]
        rows = [line.split() for line in table]
        return any(int(row[3], 16) & 4 for row in rows if row[1] == "0")


@pytest.fixture
def host(hypervisor: Hypervisor) -> Host:
    return Host(hypervisor)


def mac_of(guest: Guest) -> str:
    return str(json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"])


def talker(guest: Guest, *arguments: str) -> subprocess.Popen[str]:
    return guest.popen(*program("caller", *arguments), stdout=subprocess.PIPE)


def test_an_endpoint_learns_all_that_is_known_of_the_caller(host: Host) -> None:
    host.add("br0", "--network", "blue", "--network-id", "7")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.await_call(guest, PORT, guest.port)  # once the daemon has heard of it
    guest.run(*program("caller", "say_and_end", SERVICE_ADDRESS, "8080", "hi"))
    said = host.line()
    values = said["values"]
    connection = values.pop(UNIQUE_ID)
    assert values == {
        NETWORK: "blue",
        NETWORK_ID: "7",
        BRIDGE: "br0",
        MAC: mac_of(guest),
        PORT: guest.port,
        HYPERVISOR: "node7",
    }
    assert said["destination"] == [SERVICE_ADDRESS, 8080]
    assert said["source"][0] == guest.address
    for _ in eventually():
        if f" id={connection} end=finished" in host.log():
            break
    line = next(each for each in host.log().splitlines() if connection in each)
    assert f"guest={guest.address}:{said['source'][1]} " in line


def test_the_host_name_is_the_default_and_unknown_values_are_left_out(host: Host) -> None:
    host.hypervisor.write(FILE, CONFIG.removeprefix(NAMED))
    host.hypervisor.run("hostname", "node8")
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    values = host.await_call(guest, PORT, guest.port)
    assert values.keys() == {UNIQUE_ID, BRIDGE, MAC, PORT, HYPERVISOR}
    assert values[HYPERVISOR] == "node8"
    host.hypervisor.write(FILE, CONFIG)
    host.hypervisor.tproxy("reload", env={"TPROXY_CONFIG": FILE})
    assert host.call(guest)[HYPERVISOR] == "node7"


def test_guests_of_a_bridge_whose_name_leaves_no_room_for_a_letter_are_introduced(host: Host) -> None:
    host.add("fifteen.bytes-x")
    guest = host.hypervisor.add_guest("guest", "fifteen.bytes-x")
    assert host.call(guest)[BRIDGE] == "fifteen.bytes-x"


def test_each_connection_has_an_id_of_its_own(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    ids = [host.call(guest)[UNIQUE_ID] for _ in range(5)]
    assert len(set(ids)) == 5
    assert all(re.fullmatch("[0-9a-f]{12}-[0-9]+", each) for each in ids)


def test_guests_with_one_address_on_two_networks_are_told_apart(host: Host) -> None:
    host.add("br0", "--network", "blue", "--network-id", "0")
    host.add("br1", "--network", "red", "--network-id", "1")
    blue = host.hypervisor.add_guest("blue", "br0", "10.0.0.5/24")
    red = host.hypervisor.add_guest("red", "br1", "10.0.0.5/24")
    for guest, *wanted in ((blue, "blue", "0", "br0"), (red, "red", "1", "br1")):
        values = host.await_call(guest, PORT, guest.port)
        assert [values[key] for key in (NETWORK, NETWORK_ID, BRIDGE)] == wanted
        assert values[MAC] == mac_of(guest)


def test_guests_of_several_networks_on_one_bridge_are_told_apart_by_their_macs(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guests = [host.hypervisor.add_guest(name, "br0", f"10.0.0.{at}/24") for at, name in enumerate("abc", 5)]
    host.up("br0", "--network", "blue", "--mac", mac_of(guests[0]))
    assert host.call(guests[2])[NETWORK] == "blue"  # there is no other
    host.up("br0", "--network", "red", "--network-id", "1", "--mac", mac_of(guests[1]))
    found = [host.call(guest) for guest in guests]
    assert [each.get(NETWORK) for each in found] == ["blue", "red", None]  # no hook has named the third one
    assert [each.get(NETWORK_ID) for each in found] == [None, "1", None]


def test_the_mac_is_known_under_syn_cookies_too(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.hypervisor.run("sysctl", "-w", "net.ipv4.tcp_syncookies=2", netns="one_tproxy_br0")
    values = host.await_call(guest, PORT, guest.port)
    assert values[MAC] == mac_of(guest)
    counted = host.hypervisor.run("cat", "/proc/net/netstat", netns="one_tproxy_br0").stdout
    names, numbers = (line.split() for line in counted.splitlines() if line.startswith("TcpExt:"))
    assert int(dict(zip(names, numbers, strict=True))["SyncookiesRecv"])


def test_a_name_that_is_too_long_for_the_map_is_left_out(host: Host) -> None:
    host.add("br0", "--network", "n" * 200, "--network-id", "7")
    values = host.call(host.hypervisor.add_guest("guest", "br0"))
    assert values[NETWORK_ID] == "7"
    assert NETWORK not in values


# When the header comes


def test_header_and_first_bytes_come_in_one_packet(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    with host.relay_stopped():
        call = talker(guest, "say_and_end", SERVICE_ADDRESS, "8080", "x" * 1000)
        host.await_sent(1001)
    assert host.line()["data"] == "x" * 1000
    assert host.line() == {"rest": "", "end": "eof"}
    assert call.communicate()[0] == "hello\n"


def test_what_a_guest_sends_while_the_endpoint_is_dialled_comes_with_the_header(host: Host) -> None:
    host.hypervisor.write(FILE, f"tproxy_connect_timeout: 60\n{CONFIG}")
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    silent = "type filter hook input priority 0; ip daddr 10.11.12.13 tcp dport 8080 drop;"
    host.hypervisor.run("nft", f"table inet silent {{ chain input {{ {silent} }}; }}")
    call = guest.popen(
        *program("caller", "say_later", SERVICE_ADDRESS, "8080", "x" * 1000),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for _ in eventually():
        if host.hypervisor.run("ss", "-Htn", "state", "syn-sent", "dst", ENDPOINT).stdout:
            break
    assert call.stdin is not None
    print(file=call.stdin, flush=True)
    host.await_sent(1001)
    host.hypervisor.run("nft", "delete table inet silent")
    assert host.line()["data"] == "x" * 1000
    assert host.line()["end"] == "eof"
    assert call.communicate()[0] == "hello\n"


def test_of_several_endpoints_only_the_one_that_answers_is_told(host: Host, blackhole: str) -> None:
    listed = f"[{blackhole}, {ENDPOINT}, 10.11.12.14]"
    host.hypervisor.write(FILE, CONFIG.replace(f"remote_addr: {ENDPOINT}", f"remote_addr: {listed}"))
    other = host.hypervisor.add_endpoint("10.11.12.14", 8080, program=program("introduced"))
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    with host.relay_stopped():
        call = talker(guest, "say_and_end", SERVICE_ADDRESS, "8080", "x" * 1000)
        host.await_sent(1001)
    said = host.line()
    assert (said["data"], said["source"][0]) == ("x" * 1000, guest.address)
    assert host.line() == {"rest": "", "end": "eof"}
    assert call.communicate()[0] == "hello\n"
    other.terminate()
    assert other.communicate()[0] == ""


def test_a_guest_that_says_nothing_is_introduced_at_once(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    call = talker(guest, "hear", SERVICE_ADDRESS, "8080")
    assert host.line()["data"] == ""
    call.kill()
    call.wait()
    host.line()


def test_a_guest_that_ends_at_once_is_introduced_too(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    with host.relay_stopped():
        call = talker(guest, "say_and_end", SERVICE_ADDRESS, "8080", "")
        host.await_sent(1)
    said = host.line()
    assert said["data"] == ""
    assert said["source"][0] == guest.address
    assert host.line() == {"rest": "", "end": "eof"}
    assert call.communicate()[0] == "hello\n"


def test_bulk_of_a_guest_arrives_whole_behind_the_header(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    count = 3_000_000
    caller = program("caller", "say_and_end", SERVICE_ADDRESS, "8080", "x", str(count))
    call = guest.popen(*caller, stdout=subprocess.PIPE)
    first, rest = host.line()["data"], host.line()["rest"]
    assert first + rest == "x" * count
    assert call.communicate()[0] == "hello\n"


# The bridge port


def test_a_guest_that_moves_to_another_port_is_known_there(host: Host) -> None:
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.await_call(guest, PORT, guest.port)
    mac = mac_of(guest)
    host.hypervisor.ip(f"link del {guest.port}")
    again = host.hypervisor.add_guest("again", "br0", "10.0.0.6/24")
    again.ip(f"link set eth0 address {mac}")
    host.await_call(again, PORT, again.port)
    host.hypervisor.ip(f"link set {again.port} name tap0")
    host.await_call(again, PORT, "tap0")


def test_an_address_that_two_guests_use_has_no_port(host: Host) -> None:
    host.add("br0")
    good = host.hypervisor.add_guest("good", "br0", "10.0.0.5/24")
    bad = host.hypervisor.add_guest("bad", "br0", "10.0.0.6/24")
    host.await_call(good, PORT, good.port)
    host.await_call(bad, PORT, bad.port)
    bad.ip(f"link set eth0 address {mac_of(good)}")
    host.await_call(bad, PORT, None)
    host.await_call(good, PORT, None)
    seen = f"{mac_of(good)} was seen behind {good.port} and {bad.port}"
    await_equal(lambda: seen in host.log(), True)


def test_two_guests_behind_one_port_have_that_port_and_only_their_addresses_tell_them_apart(
    host: Host,
) -> None:
    host.add("br0", "--network", "blue")
    outer = host.hypervisor.add_guest("outer", "br0", "10.0.0.5/24")
    outer.ip("link add nested type bridge", "link set nested up", "link set eth0 master nested")
    inner = []
    for name, address in (("one", "10.0.0.6"), ("two", "10.0.0.7")):
        host.hypervisor.ip(f"netns add {name}")
        outer.ip(
            f"link add {name} type veth peer name eth0 netns {name}", f"link set {name} master nested up"
        )
        guest = Guest(host.hypervisor, name, "br0", outer.port, address)
        guest.ip(f"address add {address}/24 dev eth0", "link set eth0 up")
        guest.ip(f"route add {SERVICE_ADDRESS} dev eth0")
        inner.append(guest)
    one, two = inner
    for guest in inner:
        values = host.await_call(guest, PORT, outer.port)
        assert (values[NETWORK], values[MAC]) == ("blue", mac_of(guest))
    two.ip(f"link set eth0 address {mac_of(one)}")
    values = host.await_call(two, MAC, mac_of(one))
    assert values[PORT] == outer.port  # the bridge sees no difference, so neither is contested


def test_a_guest_with_endless_addresses_takes_the_ports_of_others_for_a_moment_only(host: Host) -> None:
    host.add("br0")
    good = host.hypervisor.add_guest("good", "br0", "10.0.0.5/24")
    bad = host.hypervisor.add_guest("bad", "br0", "10.0.0.6/24")
    host.await_call(good, PORT, good.port)
    memory = host.daemon_memory()
    bad.run(*program("mac_flood", "eth0", "30000"), timeout=100)
    assert host.call(good).get(PORT, good.port) == good.port
    host.await_call(good, PORT, good.port)
    assert host.daemon_memory() - memory < 8_000_000


def test_guests_that_were_there_before_are_known(host: Host) -> None:
    host.hypervisor.write(FILE, CONFIG.replace(", proxy_protocol: v2", ""))
    host.add("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    guest.run("ping", "-c1", "-W1", "10.0.0.99", check=False)  # now the bridge knows it
    assert not host.subscribed()
    host.hypervisor.write(FILE, CONFIG)
    host.up("br0")
    assert host.subscribed()
    values = host.await_call(guest, PORT, guest.port)
    assert values[MAC] == mac_of(guest)


def test_the_kernel_keeps_syns_only_for_the_ports_that_need_them(host: Host) -> None:
    plain = f"{{remote_addr: {ENDPOINT}, remote_port: 8081}}"
    host.hypervisor.write(FILE, f"tproxy: [{SERVICE}, {plain}]\n")
    host.add("br0")
    assert host.saved_syns() == "8080"
    host.hypervisor.write(FILE, f"tproxy: [{SERVICE.replace('v2', 'none')}, {plain}]\n")
    host.up("br0")
    assert host.saved_syns() == ""
    host.hypervisor.write(FILE, f"tproxy_proxy_protocol: v2\ntproxy: [{SERVICE}, {plain}]\n")
    host.up("br0")
    assert host.saved_syns() == "8080 8081"


def test_nothing_is_followed_any_more_when_no_service_wants_it(host: Host) -> None:
    host.add("br0")
    assert host.subscribed()
    host.hypervisor.write(FILE, CONFIG.replace("v2", "none"))
    host.up("br0")
    assert not host.subscribed()


def test_all_is_known_again_after_a_restart_and_after_the_death_of_a_process(host: Host) -> None:
    host.add("br0", "--network", "blue")
    guest = host.hypervisor.add_guest("guest", "br0")
    before = host.await_call(guest, PORT, guest.port)
    before.pop(UNIQUE_ID)
    host.hypervisor.tproxy("restart", env={"TPROXY_CONFIG": FILE})
    await_equal(lambda: before.items() <= host.call(guest).items(), True)
    for title in ("tproxy-worker", "one_tproxy_br0", "one_tproxy"):
        pids = host.hypervisor.run("pgrep", "-fx", title).stdout.split()
        host.hypervisor.run("kill", "-9", *pids, check=False)  # some may end just now
        for _ in eventually():
            done = guest.run(*program("caller", "say_and_end", SERVICE_ADDRESS, "8080", "hi"), check=False)
            if done.stdout == "hello\n":
                values = host.line()["values"]
                host.line()
                if before.items() <= values.items():
                    break
