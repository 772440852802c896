"""Two networks with different services on one bridge: each guest is served by its own."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"
CONFIG = f"""
tproxy_workers: 1
tproxy:
- {{service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8080, networks: [blue]}}
- {{service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8081, networks: [red]}}
- {{service_port: 81, remote_addr: {ENDPOINT}, remote_port: 8081, networks: [red]}}
- {{service_port: 82, remote_addr: {ENDPOINT}, remote_port: 8082}}
"""


class Site:
    """Bridge br0 with the guests ``one`` and ``two``. Endpoints answer ``blue``, ``red`` and ``all``."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.one = host.add_guest("one", "br0", "10.0.0.5/24")
        self.two = host.add_guest("two", "br0", "10.0.0.6/24")
        for port, answer in ((8080, "blue"), (8081, "red"), (8082, "all")):
            host.add_endpoint(ENDPOINT, port, answer)
        host.write(FILE, CONFIG)

    def up(self, network: str, guest: Guest, *, port: str = "", mac: str = "") -> str:
        """Run the hook for a guest; without ``port`` the hook names the MAC alone."""
        named = (f"--port={port}",) if port else ()
        return self.hook("up", "--network", network, f"--mac={mac or mac_of(guest)}", *named).stderr

    def hook(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        verb, *rest = arguments
        return self.host.tproxy("hook", verb, "--bridge", "br0", "--config", FILE, *rest, check=check)

    def both(self) -> None:
        """Both hooks name MAC and port: the guest ``one`` is blue, and ``two`` is red."""
        self.up("blue", self.one, port=self.one.port)
        self.up("red", self.two, port=self.two.port)

    def nft(self, *commands: str) -> str:
        return self.host.run("nft", *commands).stdout

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.host.tproxy("status", "--json").stdout)
        bridge: dict[str, Any] = status["daemon"]["bridges"]["br0"]
        return bridge

    def refused(self) -> int:
        """How many connections were reset because of the caller's network."""
        return sum(each["limited"]["network"] for each in self.status()["services"])

    def log(self) -> str:
        return self.host.path("/var/log/one_tproxy.log").read_text()

    def await_in_log(self, text: str) -> None:
        await_equal(lambda: text in self.log(), True)

    def pids(self, title: str) -> list[str]:
        return self.host.run("pgrep", "-fx", title).stdout.split()


@pytest.fixture
def site(hypervisor: Hypervisor) -> Site:
    return Site(hypervisor)


def mac_of(guest: Guest) -> str:
    return str(json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"])


def asked(guest: Guest, port: int = 80, timeout: float = 60) -> str:
    """Return what the service answers, or how the connection failed."""
    try:
        return guest.get(SERVICE_ADDRESS, port, timeout)
    except ProcessError as error:
        return str(error)


RESET = "ECONNRESET"


def test_each_guest_reaches_the_service_of_its_own_network(site: Site) -> None:
    site.both()
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]
    assert [asked(guest, 82) for guest in (site.one, site.two)] == ["all", "all"]
    assert asked(site.two, 81) == "red"
    assert asked(site.one, 81) == RESET  # only red has it
    site.await_in_log(f"the network of {mac_of(site.one)} has no such service")
    assert site.refused() == 1


def test_macs_suffice_where_no_hook_names_ports(site: Site) -> None:
    site.up("blue", site.one)
    site.up("red", site.two)
    assert "pt_br0" not in site.nft("list ruleset")
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]


def test_ports_suffice_where_hooks_name_no_macs(site: Site) -> None:
    site.hook("up", "--network", "blue", "--port", site.one.port)
    said = site.hook("up", "--network", "red", "--port", site.two.port).stderr
    assert said == ""
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]


def test_nftables_has_it_all_and_any_program_may_read_it(site: Site) -> None:
    site.both()
    listed = site.nft("list", "table", "ip", "one_tproxy")
    assert f'"{site.one.port}" . {mac_of(site.one)}' in listed
    assert f'{mac_of(site.two)} comment "network=red order=2"' in listed
    assert "82 : 10.11.12.13 . 8082" in listed
    assert f"{SERVICE_ADDRESS} . tcp . 80 . 0x00000001 : {ENDPOINT} . 8080" in listed
    assert f"{SERVICE_ADDRESS} . tcp . 80 . 0x00000002 : {ENDPOINT} . 8081" in listed
    site.host.write("/run/listed.nft", listed)
    site.nft("flush", "ruleset")
    site.nft("-f", "/run/listed.nft")
    site.host.tproxy("reload")
    assert site.nft("list", "table", "ip", "one_tproxy") == listed
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]


def test_status_shows_the_networks_of_a_service(site: Site) -> None:
    site.both()
    found = {
        (each["port"], each["endpoint"]): [network["name"] for network in each["networks"]]
        for each in site.status()["services"]
    }
    assert found == {
        (80, f"{ENDPOINT}:8080"): ["blue"],
        (80, f"{ENDPOINT}:8081"): ["red"],
        (81, f"{ENDPOINT}:8081"): ["red"],
        (82, f"{ENDPOINT}:8082"): ["blue", "red"],
    }
    rows = site.host.tproxy("status", "--verbose").stdout.splitlines()
    shown = [row.split()[1:3] for row in rows if row.startswith("br0") and f"{ENDPOINT}:808" in row]
    assert ["red", "81@2"] in shown
    assert ["blue", "80@1"] in shown


def test_a_known_mac_behind_another_port_is_refused_and_its_owner_is_served_again(site: Site) -> None:
    site.both()
    three = site.host.add_guest("three", "br0", "10.0.0.7/24")
    mac = mac_of(site.one)
    three.ip(f"link set eth0 address {mac}")
    for _ in eventually():  # at first the daemon may not have heard of the move
        if asked(three) == RESET:
            break
    assert site.refused() >= 1
    site.await_in_log("connection reset by network: guest=10.0.0.7")
    site.host.ip(f"link del {three.port}")
    for _ in eventually():
        if asked(site.one) == "blue":
            break


def test_a_guest_that_moves_is_served_when_its_hook_names_the_new_port(site: Site) -> None:
    site.both()
    assert asked(site.one) == "blue"
    mac = mac_of(site.one)
    site.host.ip(f"link del {site.one.port}")
    moved = site.host.add_guest("moved", "br0", "10.0.0.5/24")
    moved.ip(f"link set eth0 address {mac}")
    await_equal(lambda: asked(moved), RESET)  # at first the daemon may not have heard of the move
    site.await_in_log(f"{mac} is behind {moved.port}, not {site.one.port}")
    site.up("blue", moved, port=moved.port)
    assert asked(moved) == "blue"


def test_one_refused_guest_is_logged_once_a_minute_and_counted_each_time(site: Site) -> None:
    site.both()
    assert [asked(site.one, 81) for _ in range(5)] == [RESET] * 5
    assert site.refused() == 5
    assert site.log().count("connection reset by network") == 1


def test_a_guest_that_no_hook_named_gets_what_all_networks_have(site: Site) -> None:
    site.both()
    stranger = site.host.add_guest("stranger", "br0", "10.0.0.7/24")
    assert asked(stranger, 82) == "all"
    assert asked(stranger) == asked(stranger, 81) == RESET
    site.await_in_log(f"no hook named {mac_of(stranger)}")


def test_a_guest_whose_hook_comes_late_is_served_from_then_on(site: Site) -> None:
    site.both()
    late = site.host.add_guest("late", "br0", "10.0.0.7/24")
    assert asked(late) == RESET
    site.up("red", late, port=late.port)
    assert asked(late) == "red"


def test_nobody_gets_a_network_by_an_address_that_stands_for_others(site: Site) -> None:
    said = site.hook("up", "--network", "blue").stderr
    assert said == ""  # there is no other
    said = site.up("red", site.two)
    assert "no hook named MAC or port of guests of network 'blue'" in said
    listed = json.loads(site.nft("-j", "list", "set", "ip", "one_tproxy", "gu_br0"))
    elements = listed["nftables"][1]["set"]["elem"]
    (stand_in,) = [each["elem"]["val"] for each in elements if each["elem"]["comment"] == "network=blue"]
    site.one.ip(f"link set eth0 address {stand_in}")
    assert asked(site.one) == RESET
    assert asked(site.two) == "red"


def test_a_guest_of_a_guest_has_the_network_of_the_port(site: Site) -> None:
    site.both()
    site.one.ip("link set eth0 address 02:00:0a:00:00:99")
    assert asked(site.one) == "blue"


def test_a_network_whose_last_guest_has_gone_takes_its_services_along(site: Site) -> None:
    site.both()
    site.hook("down", f"--mac={mac_of(site.one)}", check=False)
    listed = site.nft("list", "table", "ip", "one_tproxy")
    assert "80 : 10.11.12.13 . 8081" in listed  # one network is left, so all is plain
    assert not {"sv_br0", "blue", mac_of(site.one)} & set(listed.replace('"', " ").split())
    assert [asked(site.one), asked(site.two)] == ["red", "red"]
    site.up("blue", site.one, port=site.one.port)
    assert [asked(site.one), asked(site.two)] == ["blue", "red"]


def test_open_connections_go_on_when_a_second_network_comes_and_goes(site: Site) -> None:
    site.host.add_endpoint(ENDPOINT, 9000, program=program("endpoints", "echo"))
    site.host.write(FILE, CONFIG.replace("remote_port: 8080", "remote_port: 9000"))
    site.up("blue", site.one, port=site.one.port)
    talk = site.one.popen(
        *program("talker", SERVICE_ADDRESS, "80"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
    )
    assert talk.stdin is not None
    assert talk.stdout is not None
    assert talk.stdout.readline() == "ready\n"
    for change in (
        lambda: None,
        lambda: site.up("red", site.two, port=site.two.port),
        lambda: site.hook("down", f"--mac={mac_of(site.two)}", check=False),
    ):
        change()
        print("hello", file=talk.stdin, flush=True)
        assert "hello" in talk.stdout.readline()
    talk.kill()
    talk.wait()


def test_the_map_of_an_older_version_serves_everybody_until_the_next_hook(site: Site) -> None:
    one, two = mac_of(site.one), mac_of(site.two)
    site.up("blue", site.one)
    site.nft(
        "delete map ip one_tproxy ep_br0; flush set ip one_tproxy gu_br0;"
        "add map ip one_tproxy ep_br0"
        '{ type inet_service : ipv4_addr . inet_service; comment "network=blue"; };'
        f"add element ip one_tproxy ep_br0 {{ 80 : {ENDPOINT} . 8080, 81 : {ENDPOINT} . 8081 }};"
        f"add element ip one_tproxy ep_br0 {{ 82 : {ENDPOINT} . 8082 }};"
        f'add element ip one_tproxy gu_br0 {{ {one} comment "network=blue" }};'
        f'add element ip one_tproxy gu_br0 {{ {two} comment "network=red order=2" }}'
    )
    site.host.tproxy("restart")
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "blue"]
    site.host.tproxy("refresh", "--config", FILE)
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]
    assert [asked(guest, 81) for guest in (site.one, site.two)] == [RESET, "red"]


def test_a_plain_map_of_another_program_is_for_everybody(site: Site) -> None:
    site.both()
    site.nft(f"add element ip one_tproxy ep_br0 {{ 83 : {ENDPOINT} . 8082 }}")
    site.host.tproxy("reload")
    stranger = site.host.add_guest("stranger", "br0", "10.0.0.7/24")
    assert [asked(each, 83) for each in (site.one, site.two, stranger)] == ["all"] * 3


# What is not known yet


def test_a_guest_waits_until_the_daemon_has_heard_where_it_is(site: Site) -> None:
    """The daemon is stopped meanwhile, so it hears nothing of a guest that has just come."""
    site.host.write(FILE, f"tproxy_connect_timeout: 300\n{CONFIG}")  # more than the test takes
    site.both()
    late = site.host.add_guest("late", "br0", "10.0.0.7/24")
    site.up("red", late, port=late.port)
    assert asked(late, 82) == "all"  # the guards know its port now
    pids = site.pids("one_tproxy")
    site.host.run("kill", f"-{signal.SIGSTOP}", *pids)
    late.ip("link set eth0 address 02:00:0a:00:00:77")  # only now, so the daemon cannot have heard of it
    try:
        ask = late.popen(*program("caller", "hear", SERVICE_ADDRESS, "80"), stdout=subprocess.PIPE)
        for _ in eventually():
            shown = site.host.run("ss", "-Htn", "src", SERVICE_ADDRESS, netns="one_tproxy_br0").stdout
            if "10.0.0.7" in shown:
                break
        assert site.host.run("ss", "-Htn", "dst", f"{ENDPOINT}:8081").stdout == ""
    finally:
        site.host.run("kill", f"-{signal.SIGCONT}", *pids)
    for _ in eventually():
        if site.host.run("ss", "-Htn", "dst", f"{ENDPOINT}:8081").stdout:
            break
    ask.kill()
    ask.wait()


def test_a_guest_that_does_not_become_known_is_reset(site: Site) -> None:
    site.host.write(FILE, f"tproxy_connect_timeout: 2\n{CONFIG}")
    site.both()
    pids = site.pids("one_tproxy")
    stranger = site.host.add_guest("stranger", "br0", "10.0.0.7/24")
    assert asked(stranger, 82) == "all"  # the guards know its port now
    site.host.run("kill", f"-{signal.SIGSTOP}", *pids)
    stranger.ip("link set eth0 address 02:00:0a:00:00:88")  # only now, so the daemon cannot have heard of it
    try:
        assert asked(stranger) == RESET
        assert asked(site.one, 82) == "all"  # nobody waits for what all have
    finally:
        site.host.run("kill", f"-{signal.SIGCONT}", *pids)
    site.await_in_log("it is not known behind which port 02:00:0a:00:00:88 is")


@pytest.mark.parametrize("title", ["tproxy-worker", "one_tproxy", "one_tproxy_br0"])
def test_guests_are_served_by_their_networks_again_after_the_death_of_a_process(
    site: Site, title: str
) -> None:
    site.both()
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]
    site.host.run("kill", f"-{signal.SIGKILL}", *site.pids(title))
    for _ in eventually():
        if [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]:
            break


def test_the_mac_is_known_under_syn_cookies_too(site: Site) -> None:
    site.both()
    site.host.run("sysctl", "-w", "net.ipv4.tcp_syncookies=2", netns="one_tproxy_br0")
    assert [asked(guest) for guest in (site.one, site.two)] == ["blue", "red"]


def test_bridges_whose_networks_agree_ask_nobody(site: Site) -> None:
    """Neither does the kernel keep SYNs there, nor does the daemon follow the forwarding table."""
    site.host.write(FILE, f"tproxy: [{{service_port: 82, remote_addr: {ENDPOINT}, remote_port: 8082}}]\n")
    site.both()
    (pid,) = site.pids("one_tproxy_br0")
    assert site.host.run(*program("saved_syns", pid)).stdout.strip() == ""
    (pid,) = site.pids("one_tproxy")
    table = site.host.run("cat", f"/proc/{pid}/net/netlink").stdout.splitlines()[1:]
    rows = [line.split() for line in table]
    assert not any(int(row[3], 16) & 4 for row in rows if row[1] == "0")
    assert [asked(guest, 82) for guest in (site.one, site.two)] == ["all", "all"]


# UDP

OF_BLUE, OF_RED = "10.11.12.21", "10.11.12.22"
UDP = f"""
tproxy_workers: 1
tproxy:
- {{service_port: 53, remote_addr: {OF_BLUE}, remote_port: 5353, networks: [blue], protocol: udp}}
- {{service_port: 53, remote_addr: {OF_RED}, remote_port: 5353, networks: [red], protocol: udp}}
- {{service_port: 54, remote_addr: {OF_BLUE}, remote_port: 5353, protocol: [tcp, udp]}}
"""


class Datagrams:
    """The site with UDP endpoints that say their address."""

    def __init__(self, site: Site) -> None:
        self.site = site
        for address in (OF_BLUE, OF_RED):
            site.host.add_endpoint(address, 5353, program=program("datagram_endpoint", "who"))
        site.host.write(FILE, UDP)

    def ask(self, guest: Guest, port: int = 53, patience: float = 30.0) -> str:
        """The address of the endpoint that answers, or how the datagram failed."""
        lines = json.dumps([(0, "hello", patience)])
        asked = program("datagram_caller", SERVICE_ADDRESS, str(port), lines)
        return guest.run(*asked, timeout=100).stdout.split()[0]


@pytest.fixture
def datagrams(site: Site) -> Datagrams:
    return Datagrams(site)


def test_datagrams_of_each_guest_reach_the_service_of_its_own_network(datagrams: Datagrams) -> None:
    site = datagrams.site
    site.both()
    assert [datagrams.ask(guest) for guest in (site.one, site.two)] == [OF_BLUE, OF_RED]
    assert [datagrams.ask(guest, 54) for guest in (site.one, site.two)] == [OF_BLUE, OF_BLUE]


def test_datagrams_of_a_guest_that_takes_us_for_a_gateway_are_told_apart_too(datagrams: Datagrams) -> None:
    """Its ARP requests are for another address, so the namespace has no entry for it."""
    site = datagrams.site
    site.both()
    for guest in (site.one, site.two):
        guest.ip(f"neigh replace {SERVICE_ADDRESS} lladdr 06:00:a9:fe:10:09 dev eth0 nud permanent")
    assert [datagrams.ask(guest) for guest in (site.one, site.two)] == [OF_BLUE, OF_RED]


def test_datagrams_of_a_guest_that_no_hook_named_go_nowhere(datagrams: Datagrams) -> None:
    site = datagrams.site
    site.both()
    stranger = site.host.add_guest("stranger", "br0", "10.0.0.7/24")
    assert datagrams.ask(stranger, 54) == OF_BLUE
    assert datagrams.ask(stranger, patience=0.5) == "silent"
    for _ in eventually():
        if "datagram refused by network: guest=10.0.0.7, no hook named" in site.log():
            break
    assert site.refused() == 1
    site.up("red", stranger, port=stranger.port)
    assert datagrams.ask(stranger) == OF_RED


def test_a_udp_session_ends_with_its_network_and_the_next_datagram_opens_another(
    datagrams: Datagrams,
) -> None:
    site = datagrams.site
    site.both()
    assert datagrams.ask(site.one) == OF_BLUE
    site.hook("down", f"--mac={mac_of(site.one)}", check=False)
    assert datagrams.ask(site.one) == OF_RED  # one network is left, whose services are for everybody
