"""Bridges that filter VLANs: `hook up` and `status` say which guests have no way to the service."""

from __future__ import annotations

import json

import pytest

from tests.vm.inside.test_kernel_features import ask, configured, up
from tproxy.errors import ProcessError
from tproxy.kernel import vlans
from tproxy.kernel.vlans import PortVlans
from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import SERVICE_ADDRESS


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
