"""Real machines of a real libvirt, whose own daemon calls our hooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.serving import await_served, served
from tests.netns.waiting import eventually
from tests.vm import machine
from tests.vm.libvirtd import TREE, Libvirtd
from tests.vm.machine import Kernel
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

BOOT = 90.0  # seconds, on a loaded machine; 5 on an idle one

pytestmark = pytest.mark.timeout(400)

CONFIG = """
tproxy:
- {service_port: 80, remote_addr: 10.11.12.13, remote_port: 8080}
- {service_port: 81, remote_addr: 10.11.12.14, remote_port: 8080}
"""

# The guest prints what its service answers, again and again, until the other service answers.
SCRIPT = f"""
ip link set eth0 up
ip address add 10.0.0.5/24 dev eth0
ip route add {SERVICE_ADDRESS} dev eth0
until timeout 5 wget -q -O /dev/null http://{SERVICE_ADDRESS}:81/ 2>/dev/null; do
    timeout 5 wget -q -O - http://{SERVICE_ADDRESS}:80/ 2>/dev/null
    sleep 0.2
done
"""


@pytest.fixture
def initrd(guest_kernel: Kernel, tmp_path: Path) -> Path:
    return machine.initramfs(
        tmp_path / "guest.cpio", guest_kernel, ("virtio_pci", "virtio_net"), {"script": SCRIPT}
    )


def build(host: Hypervisor, number: int) -> Libvirtd:
    if not TREE.exists():
        pytest.skip("libvirt could not be downloaded: run `make test-vm`")
    host.add_bridge("br0")
    host.add_endpoint("10.11.12.13", 8080, f"host {number}\n")
    libvirt = Libvirtd(host, number)
    host.write("/etc/tproxy/tproxy.yaml", CONFIG)
    libvirt.add_network("blue", "virbr7")
    return libvirt


@pytest.fixture
def libvirt(hypervisor: Hypervisor, guest_kernel: Kernel, initrd: Path) -> Libvirtd:
    libvirt = build(hypervisor, 1)
    libvirt.define("web", guest_kernel, initrd, bridge="br0", network="blue")
    return libvirt


@pytest.fixture
def other(libvirt: Libvirtd, real_kernel: None) -> Iterator[Libvirtd]:
    """Another host, with a cable to the first."""
    with Hypervisor() as host:
        libvirt.host.add_cable(host, "cable")
        libvirt.host.ip("address add 10.50.0.1/24 dev cable")
        host.ip("address add 10.50.0.2/24 dev cable")
        yield build(host, 2)


def await_answer(libvirt: Libvirtd, answer: str = "host 1") -> None:
    """Wait until the guest has printed once more what its service answers on this host."""
    before = libvirt.console("web").count(answer)
    for _ in eventually(BOOT):
        if libvirt.console("web").count(answer) > before:
            return


def await_end(libvirt: Libvirtd) -> None:
    """Wait until libvirt has noticed that the guest is gone, and nothing of ours is left."""
    for _ in eventually():
        if libvirt.state("web") == "shut off":
            break
    await_served(libvirt.host)


def test_a_guest_is_served_from_its_start_to_its_shutdown_from_inside(libvirt: Libvirtd) -> None:
    assert served(libvirt.host) == []
    libvirt.virsh("start", "web")
    assert served(libvirt.host) == ["br0", "virbr7"]
    await_answer(libvirt)
    libvirt.host.add_endpoint("10.11.12.14", 8080, "power off")
    await_end(libvirt)
    libvirt.virsh("net-destroy", "blue")
    assert list(libvirt.host.path("/run/tproxy/libvirt").iterdir()) == []


def test_the_hooks_repair_what_was_lost_when_libvirts_daemon_comes_back(libvirt: Libvirtd) -> None:
    libvirt.virsh("start", "web")
    await_answer(libvirt)
    libvirt.restart(meanwhile="nft flush ruleset; ip link del br0b; rm -r /run/tproxy/libvirt")
    await_served(libvirt.host, "br0", "virbr7")
    await_answer(libvirt)
    libvirt.virsh("destroy", "web")
    assert served(libvirt.host) == []


def test_a_guest_is_served_after_a_restore_and_a_crash_leaves_nothing(libvirt: Libvirtd) -> None:
    libvirt.virsh("start", "web")
    await_answer(libvirt)
    libvirt.virsh("managedsave", "web")
    assert served(libvirt.host) == []
    libvirt.virsh("start", "web")
    await_answer(libvirt)
    libvirt.host.run("pkill", "-KILL", "-f", "^/usr/bin/qemu-system")
    await_end(libvirt)


def test_attaching_a_network_card_brings_its_bridge_up_and_detaching_takes_it_down(libvirt: Libvirtd) -> None:
    libvirt.add_network("green", "virbr8")
    libvirt.virsh("start", "web")
    await_answer(libvirt)  # the guest has booted, and handles a card that is plugged in
    nic = ("web", "network", "--mac", "52:54:00:00:00:09", "--live")
    libvirt.virsh("attach-interface", *nic[:2], "green", *nic[2:], "--model", "virtio")
    assert served(libvirt.host) == ["br0", "virbr7", "virbr8"]
    libvirt.virsh("detach-interface", *nic)
    await_served(libvirt.host, "br0", "virbr7")
    await_answer(libvirt)


def test_a_migrated_guest_is_served_by_the_host_it_runs_on(libvirt: Libvirtd, other: Libvirtd) -> None:
    migrate = ("migrate", "--live", "web", "qemu+tcp://10.50.0.2/system")
    there = ("--migrateuri", "tcp://10.50.0.2:49152", "--unsafe")
    libvirt.virsh("start", "web")
    await_answer(libvirt)

    refuse = "add rule inet wall in tcp dport 49152 reject with tcp reset"
    wall = f"add table inet wall; add chain inet wall in {{ type filter hook input priority 0; }}; {refuse}"
    other.host.run("nft", wall)
    failed = libvirt.virsh(*migrate, *there, check=False)
    assert failed.returncode != 0
    other.host.run("nft", "delete table inet wall")
    assert (served(libvirt.host), served(other.host)) == (["br0", "virbr7"], [])
    await_answer(libvirt)

    libvirt.virsh(*migrate, *there)
    await_served(libvirt.host)
    await_served(other.host, "br0", "virbr7")
    await_answer(other, "host 2")
    other.virsh("destroy", "web")
    assert served(other.host) == []


def test_a_guest_without_its_services_starts_unless_the_hooks_are_strict(libvirt: Libvirtd) -> None:
    libvirt.host.write("/etc/tproxy/tproxy.yaml", "tproxy: [")
    libvirt.virsh("start", "web")
    libvirt.virsh("destroy", "web")
    libvirt.host.tproxy("install", "libvirt", "--strict")
    refused = libvirt.virsh("start", "web", check=False)
    assert refused.returncode != 0
    assert "not YAML" in refused.stderr
    assert libvirt.state("web") == "shut off"
    libvirt.host.write("/etc/tproxy/tproxy.yaml", CONFIG)
    libvirt.virsh("start", "web")
    libvirt.host.write("/etc/tproxy/tproxy.yaml", "tproxy: [")
    libvirt.restart()
    await_answer(libvirt)  # the guest was not killed
