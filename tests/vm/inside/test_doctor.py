"""Doctor and probe where the kernel filters VLANs, and shows the size of its neighbour table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.inside.test_kernel_features import CONFIG, configured, up
from tests.vm.inside.test_vlans import add_bridge, put
from tproxy.lab.hypervisor import Hypervisor

MOST = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return configured(hypervisor, "hello")


def doctor(host: Hypervisor, *levels: str) -> list[str]:
    """The lines of these levels."""
    done = host.tproxy("doctor", "--config", CONFIG, check=False)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line.split()[0] in levels]


def probe(host: Hypervisor, *options: str) -> list[str]:
    """The steps, and what came of them: level, way and name."""
    done = host.tproxy("probe", "br0:5030", *options, check=False)
    return [
        f"{level} {name}"
        for level, name in re.findall(r"^(\w+) .* ms  ([a-z ]+):", done.stdout, re.MULTILINE)
    ]


def test_a_host_in_order_has_only_good_lines_and_a_probe_needs_no_guards_by_port(host: Hypervisor) -> None:
    host.add_bridge("br0")
    host.add_guest("guest", "br0")
    up(host, "br0")
    assert doctor(host, "warning", "bad") == []
    steps = probe(host)
    assert {each.split()[0] for each in steps} == {"good"}
    assert "good guards" not in steps, "this kernel has meta ibrname"


def test_a_port_without_pvid_is_named_first(host: Hypervisor) -> None:
    add_bridge(host, 0)
    guest = host.add_guest("guest", "br0")
    put(host, guest.port, "100")
    up(host, "br0")
    bad = doctor(host, "bad")
    assert " br0 vlan: the bridge filters VLANs, and port br0b has no PVID" in bad[0]
    assert bad[0].endswith("repair: bridge vlan add dev br0b vid VID pvid untagged")
    assert "bad route arp" in probe(host, "--vlan", "100")
    put(host, "br0b", "100")
    up(host, "br0")
    assert doctor(host, "bad") == []
    assert not [each for each in probe(host, "--vlan", "100") if "bad" in each]


def test_guests_in_another_vlan_are_named_first(host: Hypervisor) -> None:
    add_bridge(host, 1)
    other = host.add_guest("other", "br0", "10.0.0.6/24")
    up(host, "br0")
    put(host, other.port, "100")
    bad = doctor(host, "bad")
    assert f"port br0b is in VLAN 1: no service for guests at {other.port}, which are not" in bad[0]


def test_a_neighbour_table_that_is_full_is_named(real_kernel: None) -> None:
    """In the namespace of the test's own process: the kernel shows the table's size nowhere else."""
    entry = ["127.9.9.9", "lladdr", "02:00:00:00:00:01", "dev", "lo"]
    subprocess.run(["ip", "neigh", "replace", *entry], check=True)
    before = MOST.read_text()
    MOST.write_text("1")
    try:
        command = [sys.executable, "-m", "tproxy", "doctor"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    finally:
        MOST.write_text(before)
        subprocess.run(["ip", "neigh", "del", *entry], check=False)
    assert re.search(r"^bad +neighbours: the neighbour table has \d+ of 1 entries", done.stdout, re.MULTILINE)
