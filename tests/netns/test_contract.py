"""docs/contract.md as an operator's own tools show it: names, nftables, processes and files.

Tests walk through the tables of that page, so that a row without a check fails. The sections Commands,
Configuration file, Hook and What guests see have files of their own beside this one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from tests.contract import quoted, table
from tests.netns.contract import FILE, furnish, hook, shell
from tests.netns.one_bridge import OneBridge
from tests.netns.operations.test_hook import CONFIG, ENDPOINT
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import Service


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return furnish(hypervisor)


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


# Names on the host

# A shell script for each row of the table. It fails when the thing is not there, and prints what the row says
# of it: each word in backticks.
NAMES = {
    "namespace": "ip netns list; ls -d /run/netns/one_tproxy_br0",
    "veth, bridge side": "ip -d link show br0b; bridge fdb show br br0 dev br0b",
    "veth, namespace side": """
        ip netns exec one_tproxy_br0 ip address show br0a
        ip netns exec one_tproxy_br0 ip -4 route""",
    "service map": "nft list map ip one_tproxy ep_br0",
    "set of members": "nft list set ip one_tproxy gu_br0",
    "set of options": "nft list set ip one_tproxy op_br0",
    "set of cards": "nft list set ip one_tproxy pt_br0",
    "map of other services": "nft list map ip one_tproxy sv_br0",
    "set of their options": "nft list set ip one_tproxy so_br0",
    "map of routes": "nft list map ip one_tproxy rt_br0",
    "ARP guard": "nft list chain bridge one_tproxy ch_br0",
    "shared guards": "nft list table bridge one_tproxy | grep 'chain guard_'",
    "sets of the guards": "for each in veths uplinks guarded; do nft list set bridge one_tproxy $each; done",
    "sets of further addresses": "nft list set bridge one_tproxy at_169.254.169.254",
    "sets of the limits": "for each in known fresh syns arps; do nft list set bridge one_tproxy $each; done",
    "wall": "ip netns exec one_tproxy_br0 nft list table inet one_tproxy",
    "daemon": "PID=$(pgrep -f '^one_tproxy *$'); tr '\\0' '\\n' </proc/$PID/cmdline",
    "relay": "PID=$(pgrep -f '^one_tproxy_br0 *$'); tr '\\0' '\\n' </proc/$PID/cmdline",
    "daemon's log": "test -s /var/log/one_tproxy.log",
    "relay's log": "test -s /var/log/one_tproxy_br0.log",
    "socket for streams from outside": "ls /run/tproxy-in/$(stat -Lc %i /proc/1/ns/net)/in.sock",
    "run directory": "ls -d /run/tproxy/$(stat -Lc %i /proc/1/ns/net)",
}


@pytest.fixture(scope="module")
def served(real_kernel: None) -> Iterator[Hypervisor]:
    """A hypervisor whose bridge br0 is up. The tests of rows only look at it."""
    with Hypervisor() as hypervisor:
        furnish(hypervisor)
        options = "".join(
            f"tproxy_{field}: 9\n" for field in Service._fields[3:]
        )  # more than a comment holds
        others = "- {service_port: 53, remote_addr: 10.0.0.53, remote_port: 53, protocol: udp}\n"
        others += "- {service_addr: 169.254.169.254, remote_addr: 10.0.0.53, remote_port: 80}\n"
        routes = "tproxy_routes: [{id: web, network: blue, guest_addr: 10.0.0.5, port: 80}]\n"
        hypervisor.write(FILE, f"{routes}{options}{CONFIG.rstrip()}\n{others}")
        hook(hypervisor, "br0", "--port", "vnet0", "--network", "blue")
        yield hypervisor


def test_each_name_of_the_contract_has_a_check() -> None:
    assert list(NAMES) == table("Names on the host", "thing").column("thing")


@pytest.mark.parametrize("thing", NAMES)
def test_a_name_on_the_host_is_as_the_contract_says(served: Hypervisor, thing: str) -> None:
    row = table("Names on the host", "thing").by_first_column()[thing]
    shown = NAMES[thing] + shell(served, NAMES[thing])
    inode = shell(served, "stat -Lc %i /proc/1/ns/net").strip()
    said = f"{row['name']} {row['note']}"
    for placeholder, text in (("<bridge>", "br0"), ("<inode>", inode), ("PID", "$PID"), ("_*`", "_`")):
        said = said.replace(placeholder, text)
    for word in quoted(said):
        assert word in shown


def test_ip_shows_the_namespace_and_the_veth_pair_and_nothing_else(host: Hypervisor) -> None:
    hook(host)
    assert host.run("ip", "netns", "list").stdout.split()[0] == "one_tproxy_br0"
    outer = host.run("ip", "-o", "link", "show", "br0b").stdout
    assert " master br0 " in outer
    assert ",UP,LOWER_UP" in outer
    netns = "one_tproxy_br0"
    links = [line.split()[1] for line in host.run("ip", "-o", "link", netns=netns).stdout.splitlines()]
    assert [name.partition("@")[0].strip(":") for name in links] == ["lo", "br0a"]
    (address,) = host.run("ip", "-o", "-4", "address", "show", "br0a", netns=netns).stdout.splitlines()
    assert "inet 169.254.16.9/32 scope" in address
    assert host.run("ip", "-4", "route", netns=netns).stdout == "default dev br0a scope link \n"
    assert host.run("ip", "-6", "address", netns=netns).stdout == ""
    assert host.run("ip", "-6", "route", netns=netns).stdout == ""


def test_nft_shows_map_and_chain_under_their_names(host: Hypervisor) -> None:
    hook(host)
    listing = host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
    assert [line.strip() for line in listing.splitlines()] == [
        "table ip one_tproxy {",
        "map ep_br0 {",
        "type inet_service : ipv4_addr . inet_service",
        f"elements = {{ 5030 : {ENDPOINT} . 8080 }}",
        "}",
        "}",
    ]
    chain = host.run("nft", "list", "chain", "bridge", "one_tproxy", "ch_br0").stdout
    assert "type filter hook forward priority filter; policy accept;" in chain


def test_processes_are_found_by_title_and_leave_no_pid_file(host: Hypervisor) -> None:
    hook(host)
    titles = host.run("ps", "-eo", "args=").stdout.splitlines()
    assert titles.count("one_tproxy") == titles.count("one_tproxy_br0") == 1
    relay = host.run("pgrep", "-f", "^one_tproxy_br0 *$").stdout.strip()
    inside = host.run("stat", "-Lc", "%i", f"/proc/{relay}/ns/net", "/run/netns/one_tproxy_br0").stdout
    assert len(set(inside.split())) == 1
    assert host.run("find", "/run", "/var/log", "-iname", "*pid*").stdout == ""


def test_both_logs_are_appended_to_and_reopened_after_a_rotation(lab: OneBridge) -> None:
    logs = [lab.host.path(f"/var/log/{name}.log") for name in ("one_tproxy", "one_tproxy_br0")]
    for log in logs:
        log.write_text("what was there before\n" + log.read_text())
    lab.host.tproxy("restart")
    for log in logs:
        assert log.read_text().startswith("what was there before\n")
        assert len(re.findall(r" (daemon [\d.]+|relay) started\n", log.read_text())) == 2
        log.rename(log.with_suffix(".1"))
    lab.host.tproxy("reload")
    for log in logs:
        for _ in eventually():  # the relay does so when it handles the signal
            if log.exists():
                break
    lab.nft(lab.element("add", 5031, 8081))
    lab.host.tproxy("start")
    for log in logs:
        for _ in eventually():
            if log.exists() and "port 5031" in log.read_text():
                break


def test_sysctls_are_set_for_a_bridge_with_dots_in_its_name(host: Hypervisor) -> None:
    for scope in ("all", "default"):
        shell(host, f"sysctl -qw net.ipv4.conf.{scope}.arp_ignore=2 net.ipv4.conf.{scope}.rp_filter=1")
    host.add_bridge("a.b-c.10")
    guest = host.add_guest("guest", "a.b-c.10")
    hook(host, "a.b-c.10")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    conf = "/proc/sys/net/ipv4/conf/a.b-c.10a/arp_ignore"
    shell(host, f"echo 2 >{conf}", netns="one_tproxy_a.b-c.10")
    hook(host, "a.b-c.10")
    assert shell(host, f"cat {conf}", netns="one_tproxy_a.b-c.10") == "1\n"


# Processes and files


def test_processes_have_the_titles_of_the_contract(host: Hypervisor) -> None:
    hook(host)
    host.popen(sys.executable, "-m", "tproxy", "watch", "--config", FILE)
    host.popen(sys.executable, "-m", "tproxy", "metrics", "--listen", "/run/metrics.sock")
    processes = table("Processes and files", "process", "title")
    titles = [each.replace("<bridge>", "br0") for each in processes.column("title")]
    lasting = {*titles} - {"tproxy-draining"}  # this process ends with its last connection
    for _ in eventually():
        running = {line.strip() for line in host.run("ps", "-eo", "args=").stdout.splitlines()}
        if lasting <= running:
            break
    status = {line.partition(":")[0] for line in host.tproxy("status").stdout.splitlines()}
    shown = dict(zip(titles, processes.column("shown by `status`"), strict=True))
    assert status == {title for title, answer in shown.items() if answer == "yes"}


def test_the_run_directory_holds_the_files_of_the_contract(host: Hypervisor) -> None:
    hook(host)
    host.tproxy("log-level", "debug")
    found = shell(host, "cd /run/tproxy/[0-9]* && find . -type f -o -type s -o -name empty").split()
    files = table("Processes and files", "file", "content").column("file")
    of_the_watcher = {"watch.lock", "names.json"}  # there is none
    wanted = {each.replace("<bridge>", "br0") for each in files} - of_the_watcher
    names = {each.removeprefix("./") for each in found}
    of_workers = {each for each in names if each.startswith("workers/")}
    assert of_workers
    assert names - of_workers == {each.rstrip("/") for each in wanted - {"workers/"}}


# nftables is the database

# A driver that needs no hook does this. The three nft commands are those of the contract, to the letter.
BY_HAND = """
ip netns add one_tproxy_br0
ip link add br0b type veth peer name br0a netns one_tproxy_br0
ip link set br0b master br0 up
ip -n one_tproxy_br0 link set br0a up
ip -n one_tproxy_br0 address add 169.254.16.9/32 dev br0a
ip -n one_tproxy_br0 route add default dev br0a scope link
nft add table ip one_tproxy
nft add map ip one_tproxy ep_br0 '{ type inet_service : ipv4_addr . inet_service; }'
nft add element ip one_tproxy ep_br0 '{ 5030 : 10.11.12.13 . 5030 }'
"""


@pytest.mark.parametrize("verb", ["start", "reload", "restart"])
def test_maps_alone_are_enough_without_hook_and_configuration(hypervisor: Hypervisor, verb: str) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.add_endpoint(ENDPOINT, 5030, "hello")
    guest = hypervisor.add_guest("guest", "br0")
    shell(hypervisor, BY_HAND)
    before = hypervisor.run("nft", "-a", "list", "ruleset").stdout
    done = hypervisor.tproxy(verb)
    assert (done.stdout, done.stderr) == ("", "")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    hypervisor.tproxy("stop")
    # With handles, which change when an object is loaded again: relays and daemon only read.
    assert hypervisor.run("nft", "-a", "list", "ruleset").stdout == before


ODD_ELEMENTS = {
    "a range": ("flags interval; elements = { 6000-6010 : 10.11.12.13 . 5030 }", "6000"),
    "any port": ("elements = { * : 10.11.12.13 . 5030 }", "*"),
    "port 0": ("elements = { 0 : 10.11.12.13 . 5030 }", "0"),
}


@pytest.mark.parametrize("odd", ODD_ELEMENTS)
def test_an_element_that_is_no_service_port_is_left_out_with_a_warning(
    hypervisor: Hypervisor, odd: str
) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.add_bridge("br1")
    hypervisor.add_endpoint(ENDPOINT, 5030, "hello")
    guest = hypervisor.add_guest("guest", "br0")
    shell(hypervisor, BY_HAND)
    elements, named = ODD_ELEMENTS[odd]
    shell(hypervisor, BY_HAND.split("nft")[0].replace("br0", "br1"))
    map_type = "type inet_service : ipv4_addr . inet_service"
    shell(hypervisor, f"nft 'add map ip one_tproxy ep_br1 {{ {map_type}; {elements}; }}'")
    for verb in ("start", "reload"):
        done = hypervisor.tproxy(verb)
        assert done.stderr.count("\n") == 1
        assert "map ep_br1: " in done.stderr
        assert named in done.stderr
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert shell(hypervisor, "ss -Hltn", netns="one_tproxy_br1") == ""
    assert "tproxy did not make" in hypervisor.tproxy("hook", "down", "--bridge", "br1").stderr
    assert "ep_br1" in hypervisor.run("nft", "list", "ruleset").stdout, "no hook made it"


def test_comments_have_the_words_of_the_contract(host: Hypervisor) -> None:
    entry = f"{{remote_addr: {ENDPOINT}, remote_port: 5030, name: with a space, connect_timeout: 2.5}}"
    limits = "max_connections_per_guest: 1, max_connections_per_bridge: 2, max_connections_to_endpoint: 3"
    times = "idle_timeout: 4, half_closed_timeout: 5, user_timeout: 6, drain_timeout: 7"
    who = "proxy_protocol: v2"
    others = "".join(
        f", {{remote_addr: {ENDPOINT}, remote_port: {port}, {options}}}"
        for port, options in ((5031, limits), (5032, times), (5033, f"{limits}, {times}"), (5034, who))
    )
    others += f", {{remote_addr: ['fd00::1', {ENDPOINT}], remote_port: 5036, spread: least}}"
    others += ", {remote_addr: 'fd00::1', remote_port: 5035}"
    others += f", {{remote_addr: {ENDPOINT}, remote_port: 53, protocol: udp, udp_idle_timeout: 8}}"
    host.write(FILE, f"tproxy: [{entry}{others}]\n")
    host.ip("link add up0 type veth peer name up1", "link set up0 master br0")
    hook(host, "br0", "--network", "vnet1", "--network-id", "0", "--uplink", "up0")
    hook(host, "br0", "--network", "vnet2", "--mac", "02:00:0a:00:00:05", "--uplink", "up0")
    ruleset = host.run("nft", "list", "ruleset").stdout
    for words in (
        "id=0 network=vnet1",
        "network=vnet2 order=2",
        "connect_timeout=2.5 name=with%20a%20space",
        "bridge=br0 named=yes",
        "proxy_protocol=v2",
    ):
        assert f'comment "{words}"' in ruleset
    for key in table("Comments", "on", "key").column("key"):
        assert f"{key}=" in ruleset
