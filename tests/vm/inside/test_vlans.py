"""Bridges that filter VLANs: who has no way to the service, and the entries that lead to it."""

from __future__ import annotations

import json
import sys

import pytest

from tests.netns.bridge.test_guards import hexmac, send
from tests.netns.waiting import eventually
from tests.vm.inside.test_kernel_features import CONFIG, LOG, ask, configured, up
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.errors import ProcessError
from tproxy.kernel import vlans
from tproxy.kernel.vlans import PortVlans
from tproxy.lab.hypervisor import Guest, Hypervisor


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return configured(hypervisor, "hello")


def add_bridge(host: Hypervisor, default: int) -> None:
    host.ip(
        f"link add name br0 type bridge vlan_filtering 1 vlan_default_pvid {default}",
        "link set dev br0 up",
    )


def put(host: Hypervisor, port: str, vlan: str) -> None:
    """Make the port an access port of that VLAN."""
    host.run("bridge", "vlan", "del", "dev", port, "vid", "1", check=False)
    host.run("bridge", "vlan", "add", "dev", port, "vid", vlan, "pvid", "untagged")


def state(host: Hypervisor) -> str:
    """The obstacles that ``status --json`` shows, having compared them with ``status --verbose``."""
    status = json.loads(host.tproxy("status", "--json").stdout)
    texts = [each["text"] for each in status["daemon"]["bridges"]["br0"]["obstacles"]]
    table = host.tproxy("status", "--verbose").stdout
    assert ("listening, but: VLAN" in table) == bool(texts)
    return "\n".join(texts)


def test_up_says_that_our_port_has_no_vlan_for_untagged_frames(host: Hypervisor) -> None:
    add_bridge(host, 0)
    guest = host.add_guest("guest", "br0")
    put(host, guest.port, "100")
    for _ in range(2):  # not only when something was changed
        said = up(host, "br0")
        assert "port br0b has no PVID" in said
        assert said.count("\n") == 1
    assert "port br0b has no PVID" in state(host)
    with pytest.raises(ProcessError):
        guest.get(SERVICE_ADDRESS, 5030, timeout=1)
    put(host, "br0b", "100")
    # The guest may still wait for an answer to its question from before, whose failure would be this one's.
    guest.run("ip", "neigh", "flush", "all")
    assert ask(guest) == "hello"
    assert up(host, "br0") == ""
    assert state(host) == ""


def test_up_names_the_ports_that_are_not_in_our_vlan(host: Hypervisor) -> None:
    add_bridge(host, 1)
    served = host.add_guest("served", "br0", "10.0.0.5/24")
    other = host.add_guest("other", "br0", "10.0.0.6/24")
    assert up(host, "br0") == ""
    put(host, other.port, "100")
    for said in (up(host, "br0"), state(host)):
        assert f"port br0b is in VLAN 1: no service for guests at {other.port}, " in said
    assert ask(served) == "hello"
    with pytest.raises(ProcessError):
        other.get(SERVICE_ADDRESS, 5030, timeout=1)


def test_vlans_of_a_port_are_read_with_ranges() -> None:
    """In the namespace of the test's own process."""
    import subprocess

    for command in (
        "ip link add name vlans0 type bridge vlan_filtering 1 vlan_default_pvid 0",
        "ip link add name vlans1 type veth peer name vlans2",
        "ip link set dev vlans1 master vlans0",
        "bridge vlan add dev vlans1 vid 10-20",
        "bridge vlan add dev vlans1 vid 7 pvid untagged",
    ):
        subprocess.run(command.split(), check=True)
    try:
        found = vlans.read(["vlans1", "vlans2", "nosuch"])
    finally:
        subprocess.run(["ip", "link", "del", "vlans0"], check=True)
        subprocess.run(["ip", "link", "del", "vlans1"], check=True)
    assert found == {"vlans1": PortVlans(7, frozenset({7, *range(10, 21)}))}


def fixed_in(host: Hypervisor) -> set[str]:
    """The VLANs in which our port has a fixed entry for our MAC."""
    lines = host.run("bridge", "fdb", "show", "br", "br0", "dev", "br0b").stdout.splitlines()
    ours = [line.split() for line in lines if line.startswith(SERVICE_MAC)]
    assert all({"static", "sticky"} <= {*words} for words in ours)
    return {words[words.index("vlan") + 1] if "vlan" in words else "none" for words in ours}


def claim_by_lldp(liar: Guest) -> None:
    """Send an LLDP frame with our MAC; return when the bridge has handled it."""
    send(liar, hexmac("01:80:c2:00:00:0e") + hexmac(SERVICE_MAC) + "88cc" + "00" * 46)
    liar.run("ping", "-c", "1", "-W", "60", "10.0.0.5")


def test_our_mac_is_fixed_at_our_port_in_each_vlan(host: Hypervisor) -> None:
    add_bridge(host, 1)
    guest = host.add_guest("guest", "br0", "10.0.0.5/24")
    liar = host.add_guest("liar", "br0", "10.0.0.6/24")
    up(host, "br0")
    assert fixed_in(host) == {"none", "1"}
    claim_by_lldp(liar)
    assert ask(guest) == "hello"

    for port in (guest.port, liar.port, "br0b"):
        put(host, port, "100")
    assert "100" not in fixed_in(host)
    up(host, "br0")
    assert {"none", "100"} <= fixed_in(host)
    claim_by_lldp(liar)
    assert ask(guest) == "hello"

    host.run("bridge", "fdb", "del", SERVICE_MAC, "dev", "br0b", "master", "vlan", "100")
    up(host, "br0")
    assert "100" in fixed_in(host)
    # All VLANs of a trunk, in several messages of the kernel.
    host.run("bridge", "vlan", "add", "dev", "br0b", "vid", "101-2100")
    up(host, "br0")
    assert len(fixed_in(host)) >= 2001

    said = host.path(LOG).read_text()
    up(host, "br0")
    assert host.path(LOG).read_text() == said, "a hook has nothing to do when all VLANs have their entry"


def test_the_watcher_fixes_our_mac_in_vlans_that_come_later(host: Hypervisor) -> None:
    add_bridge(host, 1)
    guest = host.add_guest("guest", "br0", "10.0.0.5/24")
    liar = host.add_guest("liar", "br0", "10.0.0.6/24")
    up(host, "br0")
    host.popen(sys.executable, "-m", "tproxy", "watch", "--config", CONFIG)
    for port in (guest.port, liar.port, "br0b"):
        put(host, port, "100")
    for _ in eventually():
        if "100" in fixed_in(host):
            break
    host.run("bridge", "fdb", "del", SERVICE_MAC, "dev", "br0b", "master", "vlan", "100")
    for _ in eventually():
        if "100" in fixed_in(host):
            break
    claim_by_lldp(liar)
    assert ask(guest) == "hello"


def test_our_mac_is_fixed_when_a_bridge_begins_to_filter_vlans(host: Hypervisor) -> None:
    host.ip("link add name br0 type bridge vlan_default_pvid 0", "link set dev br0 up")
    guest = host.add_guest("guest", "br0", "10.0.0.5/24")
    up(host, "br0")
    assert fixed_in(host) == {"none"}
    for port in (guest.port, "br0b"):
        put(host, port, "7")
    assert up(host, "br0") == ""
    host.ip("link set br0 type bridge vlan_filtering 1")
    up(host, "br0")
    assert fixed_in(host) == {"none", "7"}
    assert ask(guest) == "hello"
