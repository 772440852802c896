"""Hooks on real bridges build, repair and remove what docs/contract.md, Names on the host, lists."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.netns.program import program
from tests.netns.ruleset import lasting, links
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.lab.hypervisor import Hypervisor
from tproxy.names import BridgeNames

ENDPOINT = "10.11.12.13"
CONFIG = f"""
tproxy:
- service_port: 5030
  remote_addr: {ENDPOINT}
  remote_port: 8080
"""


@pytest.fixture
def config(hypervisor: Hypervisor) -> str:
    return hypervisor.write("/run/tproxy.yaml", CONFIG)


def up(
    host: Hypervisor, bridge: str, config: str, *more: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return host.tproxy("hook", "up", "--bridge", bridge, "--config", config, *more, check=check)


def down(host: Hypervisor, bridge: str, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return host.tproxy("hook", "down", "--bridge", bridge, *more, check=check)


def ip_json(host: Hypervisor, *arguments: str, netns: str | None = None) -> Any:
    return json.loads(host.run("ip", "-j", *arguments, netns=netns).stdout or "[]")


def state(host: Hypervisor) -> dict[str, str]:
    """Everything that tproxy could have changed on the host, as text."""
    return {
        "links": links(host),
        "namespaces": host.run("ip", "netns", "list").stdout,
        "nft": lasting(host.run("nft", "list", "ruleset").stdout),
        "processes": str(host.run("ps", "-eo", "args").stdout.count("tproxy")),
        "status": host.tproxy("status").stdout,
    }


def subscriptions(host: Hypervisor, netns: str | None = None) -> int:
    """How many sockets are subscribed to the kernel's messages about changes, netlink(7)."""
    # Columns: socket, protocol, port id, groups, ...
    lines = host.run("cat", "/proc/net/netlink", netns=netns).stdout.splitlines()[1:]
    return sum(int(line.split()[3], 16) != 0 for line in lines)


def assert_as_specified(host: Hypervisor, bridge: str) -> None:
    names = BridgeNames(bridge)
    (outer,) = ip_json(host, "link", "show", names.veth_bridge)
    assert outer["master"] == bridge
    assert "UP" in outer["flags"]
    entries = host.run("bridge", "fdb", "show", "br", bridge, "dev", names.veth_bridge).stdout.splitlines()
    assert [each for each in entries if SERVICE_MAC in each and "sticky" in each and "static" in each]
    (inner,) = ip_json(host, "addr", "show", names.veth_namespace, netns=names.namespace)
    assert inner["address"] == SERVICE_MAC
    assert [(each["local"], each["prefixlen"]) for each in inner["addr_info"]] == [(SERVICE_ADDRESS, 32)]
    routes = host.run("ip", "route", netns=names.namespace).stdout.split()
    assert routes == ["default", "dev", names.veth_namespace, "scope", "link"]
    listing = host.run("nft", "list", "map", "ip", "one_tproxy", names.map).stdout
    assert "type inet_service : ipv4_addr . inet_service" in listing
    assert f"5030 : {ENDPOINT} . 8080" in listing
    chain = host.run("nft", "list", "chain", "bridge", "one_tproxy", names.arp_guard).stdout
    assert "hook forward priority filter; policy accept;" in chain
    sockets = host.run("ss", "-Hltn", netns=names.namespace).stdout.split()
    assert f"{SERVICE_ADDRESS}:5030" in sockets
    assert sockets.count("LISTEN") == 1


@pytest.mark.parametrize(
    "bridge", ["br0", "a.b-c.10", "onebr0.1234", "fourteen-bytes", "fifteen.bytes-x", "-x"]
)
def test_up_builds_what_the_contract_names(hypervisor: Hypervisor, bridge: str) -> None:
    hypervisor.add_bridge(bridge)
    guest = hypervisor.add_guest("guest", bridge)
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    config = hypervisor.write("/run/tproxy.yaml", CONFIG)
    hypervisor.tproxy("hook", "up", f"--bridge={bridge}", "--config", config)
    assert_as_specified(hypervisor, bridge)
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    hypervisor.tproxy("hook", "down", f"--bridge={bridge}", "--force")
    assert hypervisor.run("nft", "list", "ruleset").stdout == ""


def wait_for_link_states(host: Hypervisor) -> None:
    """Wait until the kernel has reported the last event that ``up`` causes: that the new links are up.

    The kernel determines a link's operational state after the change that causes it, from a work queue
    (linkwatch), at most once a second, and on a busy machine later. The event comes with the new state.
    """
    for _ in eventually():
        links = [ip_json(host, "link", "show", name)[0] for name in ("br0", "br0b")]
        links += ip_json(host, "link", "show", "br0a", netns="one_tproxy_br0")
        if [link["operstate"] for link in links] == ["UP"] * 3:
            return


def test_up_on_a_healthy_bridge_changes_nothing(hypervisor: Hypervisor, config: str) -> None:
    # Otherwise IPv6 causes an event some seconds later, when it has found its addresses to be unique.
    hypervisor.run(
        "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"
    )
    hypervisor.add_bridge("br0")
    # Otherwise the bridge reports its port once more when this timer ends, 15 seconds after the port came up.
    hypervisor.ip("link set br0 type bridge forward_delay 0")
    up(hypervisor, "br0", config, "--network", "blue", "--network-id", "0", "--uplink", "eth9")
    before = hypervisor.tproxy("status").stdout
    wait_for_link_states(hypervisor)
    others = subscriptions(hypervisor)  # the daemon's
    watchers = [
        hypervisor.popen(*command, stdout=subprocess.PIPE)
        for command in (("nft", "monitor"), ("ip", "monitor", "link", "address", "route", "rule"))
    ]
    inner = hypervisor.popen(
        "ip", "monitor", "link", "address", "route", netns="one_tproxy_br0", stdout=subprocess.PIPE
    )
    for _ in eventually():
        if subscriptions(hypervisor) == others + 2 and subscriptions(hypervisor, "one_tproxy_br0") == 1:
            break
    up(hypervisor, "br0", config, "--network", "blue", "--network-id", "0", "--uplink", "eth9")
    assert hypervisor.tproxy("status").stdout == before
    # The first event of each must be the one of this change, which also proves that all of them work.
    hypervisor.ip("link add seen type bridge")
    hypervisor.run("nft", "add table ip seen")
    hypervisor.ip("link add seen type bridge", netns="one_tproxy_br0")
    for watcher in (*watchers, inner):
        assert watcher.stdout is not None
        line = watcher.stdout.readline()
        assert "seen" in line, f"the second hook caused: {line}"
        watcher.kill()


def killed(title: str) -> str:
    """A shell command that kills a process, and returns when it has ended."""
    return f"pid=$(pgrep -f '^{title} *$') && kill -9 $pid && while [ -e /proc/$pid ]; do sleep 0.01; done"


DAMAGES = {
    "veth deleted": "ip link del br0b",
    "veth down": "ip link set br0b down",
    "veth in no bridge": "ip link set br0b nomaster",
    "veth attached again": "ip link set br0b nomaster; ip link set br0b master br0",
    "forwarding entry deleted": f"bridge fdb del {SERVICE_MAC} dev br0b master",
    "forwarding entry that moves": f"bridge fdb replace {SERVICE_MAC} dev br0b master static",
    "forwarding entry of another port": f"bridge fdb replace {SERVICE_MAC} dev vnet0 master static sticky",
    "veth of another MTU": "ip link set br0b mtu 1400",
    "namespace deleted": "ip netns del one_tproxy_br0",
    "namespace replaced": "ip netns del one_tproxy_br0; ip netns add one_tproxy_br0",
    "stray file for a namespace": "ip netns del one_tproxy_br0; touch /run/netns/one_tproxy_br0",
    "address removed": "ip -n one_tproxy_br0 addr flush dev br0a",
    "another address": "ip -n one_tproxy_br0 addr flush dev br0a; "
    "ip -n one_tproxy_br0 addr add 10.9.9.9/24 dev br0a",
    "route removed": "ip -n one_tproxy_br0 route flush table main",
    "inner link down": "ip -n one_tproxy_br0 link set br0a down",
    "another MAC": "ip -n one_tproxy_br0 link set br0a address 02:00:00:00:00:07",
    "ARP switched off": "ip netns exec one_tproxy_br0 sysctl -qw net.ipv4.conf.br0a.arp_ignore=8",
    "forwarding on": "ip netns exec one_tproxy_br0 sysctl -qw net.ipv4.ip_forward=1",
    "map deleted": "nft delete map ip one_tproxy ep_br0",
    "map emptied": "nft flush map ip one_tproxy ep_br0",
    "map changed": "nft add element ip one_tproxy ep_br0 '{ 99 : 1.2.3.4 . 99 }'",
    "guards deleted": "nft delete table bridge one_tproxy",
    "one guard rule deleted": "nft flush chain bridge one_tproxy ch_br0",
    "a guard that drops all else": "nft add chain bridge one_tproxy ch_br0 '{ policy drop; }'",
    "a shared guard that drops all else": "nft add chain bridge one_tproxy guard_forward '{ policy drop; }'",
    "all of nftables flushed": "nft flush ruleset",
    "relay killed": killed("one_tproxy_br0"),
    "daemon killed": killed("one_tproxy"),
    # The daemon is stopped first, because it would start the others again.
    "all killed": """
        pkill -STOP -f "^one_tproxy *$"
        for each in one_tproxy_br0 tproxy-spawner one_tproxy; do kill -9 $(pgrep -f "^$each *$"); done""",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_up_repairs(hypervisor: Hypervisor, config: str, damage: str) -> None:
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    up(hypervisor, "br0", config)

    def ruleset() -> list[str]:
        return sorted(hypervisor.run("nft", "list", "ruleset").stdout.split())

    before = ruleset()
    hypervisor.run("sh", "-c", DAMAGES[damage])
    up(hypervisor, "br0", config)
    assert_as_specified(hypervisor, "br0")
    await_equal(ruleset, before)  # the daemon looks at the ports of a bridge a moment after a change
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert hypervisor.tproxy("status").stdout.count("\n") == 2


def test_twelve_hooks_at_once_for_six_bridges(hypervisor: Hypervisor, config: str) -> None:
    bridges = [f"br{number}" for number in range(6)]
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    guests = []
    for bridge in bridges:
        hypervisor.add_bridge(bridge)
        guests.append(hypervisor.add_guest(f"guest-{bridge}", bridge))
    hooks = [
        hypervisor.popen(
            sys.executable,
            "-m",
            "tproxy",
            "hook",
            "up",
            "--bridge",
            bridge,
            "--config",
            config,
            stderr=subprocess.PIPE,
        )
        for bridge in bridges * 2
    ]
    assert [hook.communicate()[1] for hook in hooks] == [""] * 12
    assert [hook.returncode for hook in hooks] == [0] * 12
    for bridge, guest in zip(bridges, guests, strict=True):
        assert_as_specified(hypervisor, bridge)
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    titles = [line.partition(":")[0] for line in hypervisor.tproxy("status").stdout.splitlines()]
    assert titles == ["one_tproxy", *(f"one_tproxy_{bridge}" for bridge in bridges)]


def test_the_namespace_answers_on_a_hardened_host_too(hypervisor: Hypervisor, config: str) -> None:
    for scope in ("all", "default"):
        for key, value in {"arp_ignore": 2, "rp_filter": 1, "arp_filter": 1, "proxy_arp": 1}.items():
            hypervisor.run("sysctl", "-qw", f"net.ipv4.conf.{scope}.{key}={value}")
    hypervisor.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    up(hypervisor, "br0", config)
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert hypervisor.run("cat", "/proc/sys/net/ipv4/ip_forward", netns="one_tproxy_br0").stdout == "0\n"


def test_sysctls_that_were_inherited_or_changed_in_the_namespace_are_corrected(
    hypervisor: Hypervisor, config: str
) -> None:
    keys = ["arp_announce", "arp_filter", "proxy_arp", "rp_filter", "route_localnet"]
    keys += ["accept_redirects", "accept_source_route", "send_redirects"]
    wrong = {"net.ipv4.ip_forward = 1"}  # the kernel resets others along with it
    wrong |= {f"net.ipv6.conf.{scope}.disable_ipv6 = 0" for scope in ("all", "default")}
    for scope in ("all", "br0a"):
        wrong |= {
            f"net.ipv4.conf.{scope}.arp_ignore = 2",
            *(f"net.ipv4.conf.{scope}.{key} = 1" for key in keys),
        }
    names = [each.split()[0] for each in wrong]
    hypervisor.add_bridge("br0")
    up(hypervisor, "br0", config)
    right = hypervisor.run("sysctl", *names, netns="one_tproxy_br0").stdout.splitlines()
    assert wrong.isdisjoint(right)
    settings = [each.replace(" ", "") for each in sorted(wrong, key=lambda each: "ip_forward" not in each)]
    hypervisor.run("sysctl", "-qw", *settings, netns="one_tproxy_br0")
    up(hypervisor, "br0", config)
    assert hypervisor.run("sysctl", *names, netns="one_tproxy_br0").stdout.splitlines() == right


def test_the_mtu_follows_the_bridge(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0", mtu=9000)
    up(hypervisor, "br0", config)
    for arguments, netns in ((("br0b",), None), (("br0a",), "one_tproxy_br0")):
        (link,) = ip_json(hypervisor, "link", "show", *arguments, netns=netns)
        assert link["mtu"] == 9000


def test_an_unchanged_file_is_not_parsed_again(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")

    def reads_yaml() -> bool:
        arguments = ("hook", "up", "--bridge", "br0", "--config", config)
        imported = hypervisor.tproxy(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"}).stderr
        assert "tproxy.bridge.plumbing" in imported
        return "yaml" in imported

    assert [reads_yaml(), reads_yaml()] == [True, False]
    hypervisor.write(config, CONFIG.replace("8080", "8081"))
    assert [reads_yaml(), reads_yaml()] == [True, False]
    assert "8081" in hypervisor.run("nft", "list", "ruleset").stdout


def test_up_does_nothing_where_no_entry_applies(hypervisor: Hypervisor) -> None:
    config = hypervisor.write("/run/tproxy.yaml", CONFIG + "  networks: [other]\n")
    hypervisor.add_bridge("br0")
    before = state(hypervisor)
    done = up(hypervisor, "br0", config, "--network", "blue")
    assert (done.stdout, done.stderr) == ("", "")
    assert state(hypervisor) == before
    # The log tells an operator who is surprised by that.
    (line,) = hypervisor.path("/var/log/one_tproxy.log").read_text().splitlines()
    assert line.endswith("bridge br0: no entry of '/run/tproxy.yaml' applies to network 'blue', id ''")


def test_down_leaves_a_bridge_with_guests_alone_unless_forced(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    up(hypervisor, "br0", config)
    done = down(hypervisor, "br0", check=False)
    assert done.returncode == EXIT_IN_USE
    assert guest.port in done.stderr
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    down(hypervisor, "br0", "--uplink", guest.port)  # it is not a guest then
    assert_nothing_left(hypervisor)
    up(hypervisor, "br0", config)
    down(hypervisor, "br0", "--force")
    assert_nothing_left(hypervisor)
    assert guest.port in hypervisor.run("ip", "-br", "link").stdout


def assert_nothing_left(host: Hypervisor) -> None:
    assert host.tproxy("status").stdout == ""
    assert host.run("nft", "list", "ruleset").stdout == ""
    assert "one_tproxy" not in host.run("ip", "netns", "list").stdout
    assert "br0b" not in host.run("ip", "-br", "link").stdout
    assert "\ntproxy-" not in host.run("ps", "-eo", "args").stdout


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del br0",
        "rm /run/tproxy.yaml",
        "echo 'tproxy: []' > /run/tproxy.yaml",
        killed("one_tproxy"),
        "nft flush ruleset",
        "true",
    ],
)
def test_down_removes_everything_also_after(hypervisor: Hypervisor, config: str, damage: str) -> None:
    hypervisor.add_bridge("br0")
    up(hypervisor, "br0", config)
    hypervisor.run("sh", "-c", damage)
    down(hypervisor, "br0", "--config", config)
    assert_nothing_left(hypervisor)
    down(hypervisor, "br0")  # and once more
    assert_nothing_left(hypervisor)


def test_down_works_while_the_kernel_still_removes_the_veth_of_a_deleted_namespace(
    hypervisor: Hypervisor, config: str
) -> None:
    """The kernel removes the veth some time later, perhaps after we saw it and before we delete it."""
    hypervisor.add_bridge("br0")
    command = f"ip netns del one_tproxy_br0; {sys.executable} -m tproxy hook down --bridge br0"
    for _ in range(5):
        up(hypervisor, "br0", config)
        done = hypervisor.run("sh", "-c", command)
        assert (done.stdout, done.stderr) == ("", "")
    assert_nothing_left(hypervisor)


@pytest.mark.parametrize("function", ["if_nametoindex", "if_indextoname"])  # of its bridge
def test_a_port_may_be_deleted_while_it_is_looked_at(hypervisor: Hypervisor, function: str) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.ip("link add br0b type veth peer name br0a", "link set br0b master br0")
    hypervisor.run(*program("observe_bridge", function))
    assert hypervisor.run("ip", "link", "show", "br0b", check=False).returncode != 0


def test_down_leaves_other_bridges_alone(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
        up(hypervisor, bridge, config)
    guest = hypervisor.add_guest("guest", "br1")
    down(hypervisor, "br0")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert "ep_br1" in hypervisor.run("nft", "list", "ruleset").stdout
    assert "br0" not in hypervisor.run("nft", "list", "ruleset").stdout


def test_up_adds_a_port_and_changes_an_endpoint(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "one")
    hypervisor.add_endpoint(ENDPOINT, 8081, "two")
    up(hypervisor, "br0", config)
    hypervisor.write(
        "/run/tproxy.yaml",
        CONFIG.replace("8080", "8081") + CONFIG.split("tproxy:")[1].replace("5030", "5031"),
    )
    up(hypervisor, "br0", config)
    assert guest.get(SERVICE_ADDRESS, 5030) == "two"
    assert guest.get(SERVICE_ADDRESS, 5031) == "one"


BAD_CALLS = {
    "unknown bridge": (["--bridge", "nobr"], "nobr"),
    "not a bridge": (["--bridge", "dummy0"], "not a bridge"),
    "name too long": (["--bridge", "sixteen-bytes-xx"], "15 bytes"),
    "name with a shell in it": (["--bridge", "br0;reboot"], "letters"),
    "name with a newline": (["--bridge", "br0\nx"], "letters"),
    "name of undecodable bytes": (["--bridge", "br\udcff"], "letters"),
    "name with a slash": (["--bridge", "../br0"], "letters"),
    "empty name": (["--bridge", ""], "empty"),
    "bad uplink": (["--bridge", "br0", "--uplink", "eth0 }"], "uplink"),
    "no such file": (["--bridge", "br0", "--config", "/run/none.yaml"], "/run/none.yaml"),
    "a directory": (["--bridge", "br0", "--config", "/run"], "/run"),
    "not YAML": (["--bridge", "br0", "--config", "/run/broken.yaml"], "/run/broken.yaml"),
    "not a list": (["--bridge", "br0", "--config", "/run/nolist.yaml"], "list"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_line_and_changes_nothing(hypervisor: Hypervisor, config: str, case: str) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.ip("link add dummy0 type veth peer name dummy1")
    hypervisor.write("/run/broken.yaml", "tproxy: [\n- x: {")
    hypervisor.write("/run/nolist.yaml", "tproxy: 5\n")
    before = state(hypervisor)
    arguments, expected = BAD_CALLS[case]
    done = hypervisor.tproxy("hook", "up", "--config", config, *arguments, check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert state(hypervisor) == before


def test_a_network_name_may_hold_any_bytes(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")
    name = "a\"b'c; drop } # \udcff é\t" + "x" * 300
    up(hypervisor, "br0", config, "--network", "q\"';} {\udcff é", "--network-id", "7")
    listing = hypervisor.run("nft", "list", "ruleset").stdout
    hypervisor.write("/run/listing.nft", "flush ruleset\n" + listing)
    hypervisor.run("nft", "-f", "/run/listing.nft")  # nft can load what we wrote again
    status = json.loads(hypervisor.tproxy("status", "--json").stdout)
    assert status["daemon"]["bridges"]["br0"]["network"] == "q\"';} {\udcff é"
    up(hypervisor, "br0", config, "--network", name)  # too long for a comment: left out
    before = hypervisor.run("nft", "list", "ruleset").stdout
    up(hypervisor, "br0", config, "--network", name)
    assert hypervisor.run("nft", "list", "ruleset").stdout == before


def test_a_hook_that_finds_a_port_in_use_fails_and_undoes_its_changes(
    hypervisor: Hypervisor, config: str
) -> None:
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    up(hypervisor, "br0", config)
    hypervisor.add_endpoint(SERVICE_ADDRESS, 5031, "squatter", netns="one_tproxy_br0")
    before = hypervisor.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
    hypervisor.write("/run/tproxy.yaml", CONFIG + CONFIG.split("tproxy:")[1].replace("5030", "5031"))
    done = up(hypervisor, "br0", config, check=False)
    assert done.returncode == 1
    assert "5031" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert hypervisor.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout == before
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"


def test_a_hook_without_libnftables_fails_and_changes_nothing(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")
    before = state(hypervisor)
    command = [sys.executable, "-m", "tproxy", "hook", "up", "--bridge", "br0", "--config", config]
    hypervisor.write(
        "/run/broken/nftables.py", "raise OSError('libnftables.so.1: No such file or directory')\n"
    )
    path = f"/run/broken:{sys.path[0]}"
    done = hypervisor.run(*command, check=False, env={"PYTHONPATH": f"{path}:{_source()}"})
    assert done.returncode == 1
    assert "libnftables" in done.stderr
    assert done.stderr.count("\n") == 1
    assert state(hypervisor) == before


def test_a_missing_libnftables_does_not_count_as_a_host_without_maps(
    hypervisor: Hypervisor, config: str
) -> None:
    hypervisor.add_bridge("br0")
    up(hypervisor, "br0", config)
    before = state(hypervisor)
    hypervisor.write(
        "/run/broken/nftables.py", "raise OSError('libnftables.so.1: No such file or directory')\n"
    )
    path = f"/run/broken:{sys.path[0]}:{_source()}"
    done = hypervisor.run(sys.executable, "-m", "tproxy", "start", check=False, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert "libnftables" in done.stderr
    assert state(hypervisor) == before  # the processes too: on a host without maps, start would end them


def _source() -> str:
    import tproxy

    return tproxy.__path__[0].rpartition("/")[0]


def test_debug_works_before_and_after_the_command(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")
    hook = ("hook", "up", "--bridge", "br0", "--config", config)
    said = hypervisor.tproxy("--debug", *hook).stderr
    hypervisor.tproxy("hook", "down", "--bridge", "br0")
    assert said == hypervisor.tproxy(*hook, "--debug").stderr
    assert "create namespace one_tproxy_br0" in said


def test_a_network_name_matches_the_files_in_any_locale(hypervisor: Hypervisor, config: str) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.write("/run/büro.yaml", f"{CONFIG}  networks: [Büro]\n")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ISO 8859-1 does the same
    hook = ("hook", "up", "--bridge", "br0", "--config", "/run/büro.yaml", "--network", "Büro")
    hypervisor.tproxy(*hook, env=ascii_only)
    assert_as_specified(hypervisor, "br0")
    before = hypervisor.run("nft", "list", "ruleset").stdout
    hypervisor.tproxy(*hook)
    assert hypervisor.run("nft", "list", "ruleset").stdout == before
