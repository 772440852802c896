"""How many entries of the kernel's neighbour table the guests of a bridge can take, with real frames.

What a full table does to others is a test of its own on a larger kernel, tests/vm/inside/test_neighbours.py.
"""

from __future__ import annotations

import time

import pytest

from tests.netns.asking import Asking
from tests.netns.conftest import StartEndpoint
from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.bridge.guard_rules import BURST, RATE
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.names import BridgeNames

ENDPOINT = "10.11.12.13"
CONFIG = "/run/tproxy.yaml"
SOURCES = 300
KINDS = ("syn", "ack", "ping", "udp", "arp")


@pytest.fixture
def host(hypervisor: Hypervisor, start_endpoint: StartEndpoint) -> Hypervisor:
    """A hypervisor with two bridges that are up, each with two guests."""
    start_endpoint("echo", ENDPOINT, 5030)
    hypervisor.add_endpoint(ENDPOINT, 5031, "hello")
    ports = ", ".join(f"{{remote_addr: {ENDPOINT}, remote_port: {port}}}" for port in (5030, 5031))
    hypervisor.write(CONFIG, f"tproxy: [{ports}]\n")
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
    return hypervisor


@pytest.fixture
def flooding(host: Hypervisor) -> Guest:
    return host.add_guest("flooding", "br0", "10.0.0.5/24")


def up(host: Hypervisor, *options: str) -> None:
    for bridge in ("br0", "br1"):
        host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG, *options)


def flood(guest: Guest, kinds: str, count: int = SOURCES, tags: int = 0) -> None:
    guest.run(*program("source_flood", "eth0", kinds, str(count), str(tags)))


def ask(guest: Guest) -> str:
    return guest.get(SERVICE_ADDRESS, 5031)


def entries(host: Hypervisor, bridge: str = "br0") -> list[str]:
    """The entries of the bridge's namespace: an address, and the rest of what ip(8) says of it."""
    return host.run("ip", "neigh", netns=BridgeNames(bridge).namespace).stdout.splitlines()


def tokens(since: float) -> int:
    """The number of sources that one port may have brought in, if its bucket was full at ``since``."""
    return BURST + int(RATE * (time.monotonic() - since)) + 1


def ruleset(host: Hypervisor) -> str:
    """The rules with handles, which change when a rule is loaded again, without elements that expire."""
    return host.run("nft", "-a", "-t", "list", "ruleset").stdout


@pytest.mark.parametrize("kind", KINDS)
def test_one_port_takes_a_few_entries_whatever_it_sends(host: Hypervisor, flooding: Guest, kind: str) -> None:
    up(host)
    since = time.monotonic()
    flood(flooding, kind)
    found = len(entries(host))
    assert found <= tokens(since)
    assert (found > 0) == (kind != "udp"), "the namespace's wall drops UDP"


@pytest.mark.parametrize("kind", ["syn", "arp"])
@pytest.mark.parametrize("tags", [1, 2, 3])
def test_priority_tags_do_not_lead_past_the_limits(
    host: Hypervisor, flooding: Guest, kind: str, tags: int
) -> None:
    """Every receiver ignores tags with VLAN 0, and nftables finds no packet behind two of them."""
    up(host)
    since = time.monotonic()
    flood(flooding, kind, tags=tags)
    found = len(entries(host))
    assert found <= tokens(since)
    assert (found > 0) == (tags == 1), "one tag is what hosts send"


def test_on_a_kernel_without_limit_guards_are_loaded_once_without_limits(
    host: Hypervisor, flooding: Guest
) -> None:
    """That the flood takes an entry for each source also shows that the other tests can fail."""
    hook = program("hook_without_limits", "hook", "up", "--bridge", "br0", "--config", CONFIG)
    host.run(*hook)
    told = "this kernel has no limit of nftables"
    log = host.path("/var/log/one_tproxy.log").read_text()
    assert log.count(told) == 1 or log.count("and no limit of nftables") == 1
    loaded = ruleset(host)
    host.run(*hook)
    host.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG)
    assert ruleset(host) == loaded
    assert host.path("/var/log/one_tproxy.log").read_text().count("limit of nftables") == 1
    assert ask(flooding) == "hello"
    for kind in ("syn", "arp"):
        for _ in eventually():  # the kernel removes some meanwhile: its table is one for all namespaces
            flood(flooding, kind)
            if len(entries(host)) >= SOURCES:
                break
        host.run("ip", "neigh", "flush", "all", netns="one_tproxy_br0")


def test_guests_are_served_while_another_port_of_their_bridge_is_used_to_flood(
    host: Hypervisor, flooding: Guest
) -> None:
    up(host)
    served = [host.add_guest("same", "br0", "10.0.0.6/24"), host.add_guest("other", "br1", "10.0.0.6/24")]
    askers = [Asking(guest, 5030) for guest in served]
    command = program("source_flood", "eth0", ",".join(KINDS), str(SOURCES), "--again")
    flooder = host.serve(*command, netns=flooding.name)
    for asker in askers:
        asker.go_on(100)
    late = host.add_guest("late", "br0", "10.0.0.7/24")
    assert ask(late) == "hello", "a guest that comes during the flood"
    assert flooder.poll() is None
    assert [asker.end() for asker in askers] == [[], []]


def test_a_guest_with_one_address_takes_no_further_token_for_its_connections(
    host: Hypervisor, start_endpoint: StartEndpoint
) -> None:
    up(host)
    guest = host.add_guest("busy", "br0", "10.0.0.5/24")
    asker = Asking(guest, 5030)
    asker.go_on(10 * BURST)
    # Nothing is left for these if connections took tokens.
    flood(guest, "arp", BURST // 2)
    assert len([each for each in entries(host) if each.startswith("10.100.")]) == BURST // 2
    assert asker.end() == []


def test_a_source_that_is_no_longer_known_is_let_in_again(host: Hypervisor) -> None:
    up(host)
    guest = host.add_guest("guest", "br0", "10.0.0.5/24")
    asker = Asking(guest, 5030)
    for _ in range(3):
        host.run("nft", "flush", "set", "bridge", "one_tproxy", "known")  # as after KNOWN_SECONDS
        asker.go_on(10)
    assert asker.end() == []


def test_a_port_that_turns_out_to_be_an_uplink_is_not_known_any_more(
    host: Hypervisor, flooding: Guest
) -> None:
    up(host)
    assert ask(flooding) == "hello"
    up(host, "--uplink", flooding.port)
    with pytest.raises(ProcessError, match=r"EHOSTUNREACH|ETIMEDOUT"):
        flooding.get(SERVICE_ADDRESS, 5031, timeout=1)


def test_a_bridge_that_is_down_has_no_known_sources(host: Hypervisor, flooding: Guest) -> None:
    up(host)
    assert ask(flooding) == "hello"
    assert f'"{flooding.port}"' in host.run("nft", "list", "set", "bridge", "one_tproxy", "known").stdout
    host.tproxy("hook", "down", "--bridge", "br0", "--force")
    known = host.run("nft", "list", "set", "bridge", "one_tproxy", "known").stdout
    assert f'"{flooding.port}"' not in known
    host.tproxy("hook", "down", "--bridge", "br1", "--force")
    assert "one_tproxy" not in host.run("nft", "list", "ruleset").stdout


def test_an_address_that_nobody_has_is_given_up_after_three_requests(
    host: Hypervisor, flooding: Guest
) -> None:
    up(host)
    flood(flooding, "ping", 1)
    await_equal(lambda: [entry.split()[-1] for entry in entries(host)], ["FAILED"])
    values = {
        each: host.run("sysctl", "-n", f"net.ipv4.neigh.br0a.{each}", netns="one_tproxy_br0").stdout.strip()
        for each in ("mcast_solicit", "app_solicit", "retrans_time_ms")
    }
    assert values == {"mcast_solicit": "3", "app_solicit": "0", "retrans_time_ms": "200"}


def test_gratuitous_arp_takes_no_entry_although_the_host_accepts_it(
    host: Hypervisor, flooding: Guest
) -> None:
    up(host)
    accepting = "ipv4.conf.br0a.arp_accept"
    assert host.run("sysctl", "-n", f"net.{accepting}", netns="one_tproxy_br0").stdout == "0\n"
    host.run("sysctl", "-qw", f"net.{accepting}=1", netns="one_tproxy_br0")
    up(host)  # repairs it
    flooding.run("arping", "-c", "1", "-U", "-I", "eth0", flooding.address, check=False)
    assert entries(host) == []
