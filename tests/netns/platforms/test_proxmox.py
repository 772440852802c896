"""Phases of Proxmox VE, replayed through the installed hookscript on real bridges."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.netns.conftest import NOBODY
from tests.netns.serving import served
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

CONFIG = """
tproxy:
- {service_port: 80, remote_addr: 10.11.12.13, remote_port: 8080, networks: [vmbr0, vmbr0v100]}
- {service_port: 90, remote_addr: 10.11.12.14, remote_port: 8080, networks: vmbr0v100}
"""
SNIPPETS = "/mnt/snippets"  # the tests mount a file system of their own on /mnt
ROOT = "/mnt/pve"
HERE, ELSEWHERE = f"{ROOT}/nodes/pve1", f"{ROOT}/nodes/pve2"

MACHINE = """#notes%3A net7%3A virtio,bridge=vmbr7
agent: 1
boot: order=scsi0;net0
cores: 2
hookscript: local:snippets/tproxy
memory: 2048
name: web
net0: virtio=BC:24:11:5A:0F:31,bridge=vmbr0{more}
onboot: 1
parent: before
scsi0: local-lvm:vm-100-disk-0,size=32G

[PENDING]
net0: virtio=BC:24:11:5A:0F:31,bridge=vmbr8

[before]
net0: virtio=BC:24:11:5A:0F:31,bridge=vmbr9
snaptime: 1718000000
"""
CONTAINER = """arch: amd64
hookscript: local:snippets/tproxy
hostname: ct
net0: name=eth0,bridge=vmbr0,firewall=1,hwaddr=BC:24:11:77:5D:E2,ip=dhcp,type=veth
ostype: debian
rootfs: local-lvm:vm-200-disk-0,size=8G
"""


class Proxmox:
    def __init__(self, host: Hypervisor) -> None:
        self.host = host

    def call(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        where = {"TPROXY_CONFIG": "/run/tproxy.yaml", "TPROXY_PVE_ROOT": ROOT}
        done = self.host.run(f"{SNIPPETS}/tproxy", *arguments, check=False, env={**where, **(env or {})})
        assert done.stdout == ""
        return done

    def phase(self, vmid: int, phase: str, env: Mapping[str, str] | None = None) -> None:
        """Call the hookscript for a phase that must succeed without an error message."""
        done = self.call(str(vmid), phase, env=env)
        assert done.returncode == 0
        assert done.stderr == "" or "left alone" in done.stderr

    def plug(self, port: str, bridge: str) -> Guest:
        """Make a guest whose port has the name that Proxmox gives it."""
        guest = self.host.add_guest(port, bridge)
        self.host.ip(f"link set dev {guest.port} down", f"link set dev {guest.port} name {port} up")
        return replace(guest, port=port)

    def unplug(self, guest: Guest) -> None:
        self.host.ip(f"link del {guest.port}", f"netns del {guest.name}")

    def start(self, vmid: int, port: str, bridge: str = "vmbr0") -> Guest:
        self.phase(vmid, "pre-start")
        guest = self.plug(port, bridge)
        self.phase(vmid, "post-start")
        return guest


@pytest.fixture
def proxmox(hypervisor: Hypervisor) -> Proxmox:
    hypervisor.run("mount", "-t", "tmpfs", "none", "/mnt")
    hypervisor.tproxy("install", "proxmox", "--snippets", SNIPPETS)
    hypervisor.write("/run/tproxy.yaml", CONFIG)
    hypervisor.add_endpoint("10.11.12.13", 8080, "hello")
    hypervisor.add_endpoint("10.11.12.14", 8080, "vlan 100")
    for node in (HERE, ELSEWHERE):
        for kind in ("qemu-server", "lxc"):
            hypervisor.path(f"{node}/{kind}").mkdir(parents=True)
    for kind in ("qemu-server", "lxc"):
        hypervisor.path(f"{ROOT}/{kind}").symlink_to(f"nodes/pve1/{kind}")
    hypervisor.write(f"{HERE}/qemu-server/100.conf", MACHINE.format(more=",firewall=0"))
    hypervisor.write(f"{HERE}/lxc/200.conf", CONTAINER)
    hypervisor.add_bridge("vmbr0")
    # An uplink, which vmbr0 has on every Proxmox host. It must never be taken for a guest.
    hypervisor.ip("link add uplink type vxlan id 5 dstport 4789", "link set uplink master vmbr0 up")
    return Proxmox(hypervisor)


def test_a_virtual_machine_starts_and_stops(proxmox: Proxmox) -> None:
    proxmox.phase(100, "pre-start")
    assert served(proxmox.host) == ["vmbr0"]  # before the machine exists
    guest = proxmox.start(100, "tap100i0")
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    proxmox.phase(100, "pre-stop")
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    proxmox.unplug(guest)
    proxmox.phase(100, "post-stop")
    assert served(proxmox.host) == []


def apply_configuration(host: Hypervisor) -> None:
    """Do to our port what "Apply Configuration" does, by ``ifreload -a`` of ifupdown2."""
    host.ip("link set vmbr0b nomaster", "link set vmbr0b down")


def test_the_next_start_of_a_guest_repairs_what_apply_configuration_breaks(proxmox: Proxmox) -> None:
    guest = proxmox.start(100, "tap100i0")
    apply_configuration(proxmox.host)
    with pytest.raises(ProcessError):
        guest.get(SERVICE_ADDRESS, 80, timeout=0.5)
    proxmox.start(200, "veth200i0")
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"


def test_a_watcher_repairs_what_apply_configuration_breaks(proxmox: Proxmox) -> None:
    host = proxmox.host
    host.write("/run/tproxy.yaml", CONFIG + "tproxy_watch: true\n")
    guest = proxmox.start(100, "tap100i0")
    log = host.path("/var/log/one_tproxy.log")
    for _ in eventually():
        if "watching bridges" in log.read_text():
            break
    apply_configuration(host)
    for _ in eventually():
        if "repaired: make vmbr0b a port of vmbr0" in log.read_text():
            break
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"


def test_a_port_of_the_firewall_that_stays_does_not_keep_the_bridge_up(proxmox: Proxmox) -> None:
    host = proxmox.host
    proxmox.phase(200, "pre-start")
    host.add_bridge("fwbr200i0")
    host.ip(
        "link add name fwpr200p0 type veth peer name fwln200i0",
        "link set fwln200i0 master fwbr200i0 up",
        "link set fwpr200p0 master vmbr0 up",
    )
    guest = proxmox.plug("veth200i0", "fwbr200i0")
    proxmox.phase(200, "post-start")
    assert served(host) == ["vmbr0"]
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    proxmox.phase(200, "post-stop")  # the port fwpr200p0 is still on vmbr0
    assert served(host) == []


def test_a_bridge_stays_up_for_its_second_guest(proxmox: Proxmox) -> None:
    first, second = proxmox.start(100, "tap100i0"), proxmox.start(200, "veth200i0")
    proxmox.unplug(first)
    proxmox.phase(100, "post-stop")
    assert second.get(SERVICE_ADDRESS, 80) == "hello"
    proxmox.unplug(second)
    proxmox.phase(200, "post-stop")
    assert served(proxmox.host) == []


def test_a_vlan_on_a_plain_bridge_has_a_bridge_and_services_of_its_own(proxmox: Proxmox) -> None:
    host = proxmox.host
    host.write(f"{HERE}/qemu-server/100.conf", MACHINE.format(more=",tag=100,firewall=0"))
    proxmox.phase(100, "pre-start")
    assert served(host) == []  # Proxmox makes the bridge with the tap
    host.add_bridge("vmbr0v100")
    guest = proxmox.plug("tap100i0", "vmbr0v100")
    proxmox.phase(100, "post-start")
    assert served(host) == ["vmbr0v100"]
    assert guest.get(SERVICE_ADDRESS, 90) == "vlan 100"
    proxmox.unplug(guest)
    proxmox.phase(100, "post-stop")
    assert served(host) == []


def test_a_vlan_of_a_vlan_aware_bridge_is_refused_in_one_line_and_stops_no_guest(proxmox: Proxmox) -> None:
    host = proxmox.host
    host.tproxy("install", "proxmox", "--snippets", SNIPPETS, "--strict")
    host.write(f"{HERE}/qemu-server/100.conf", MACHINE.format(more=",tag=100"))
    # The kernel may lack VLAN filtering, so a file in place of its sysfs says that the bridge has it.
    host.run("mount", "-t", "tmpfs", "none", "/sys/class/net/vmbr0/bridge")
    host.write("/sys/class/net/vmbr0/bridge/vlan_filtering", "1\n")
    done = [proxmox.call("100", phase) for phase in ("pre-start", "post-start", "post-stop")]
    assert [each.returncode for each in done] == [0, 0, 0]
    assert [each.stderr.count("\n") for each in done] == [1, 0, 0]
    assert "VLAN-aware" in done[0].stderr
    assert "VLAN-aware" in host.path("/var/log/one_tproxy.log").read_text()
    assert served(host) == []
    # A guest without a tag is in the same VLAN of such a bridge as our port, so it is served.
    host.write(f"{HERE}/qemu-server/100.conf", MACHINE.format(more=""))
    guest = proxmox.start(100, "tap100i0")
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"


def test_a_migrated_guest_is_served_here_and_leaves_nothing_when_it_leaves(
    proxmox: Proxmox,
) -> None:
    host = proxmox.host
    mine, theirs = (host.path(f"{node}/qemu-server/100.conf") for node in (HERE, ELSEWHERE))
    mine.rename(theirs)  # the configuration arrives at the end of the migration
    coming = {"PVE_MIGRATED_FROM": "pve2"}
    proxmox.phase(100, "pre-start", env=coming)
    guest = proxmox.plug("tap100i0", "vmbr0")
    proxmox.phase(100, "post-start", env=coming)
    theirs.rename(mine)
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    # On the way out the configuration has moved before the guest is stopped here.
    mine.rename(theirs)
    proxmox.unplug(guest)
    proxmox.phase(100, "post-stop")
    assert served(host) == []


def test_a_migration_that_fails_leaves_nothing(proxmox: Proxmox) -> None:
    host = proxmox.host
    host.path(f"{HERE}/qemu-server/100.conf").rename(host.path(f"{ELSEWHERE}/qemu-server/100.conf"))
    proxmox.phase(100, "pre-start", env={"PVE_MIGRATED_FROM": "pve2"})
    guest = proxmox.plug("tap100i0", "vmbr0")
    proxmox.unplug(guest)
    proxmox.phase(100, "post-stop")
    assert served(host) == []


def test_gc_removes_what_a_guest_without_post_stop_leaves(proxmox: Proxmox) -> None:
    host = proxmox.host
    proxmox.unplug(proxmox.start(100, "tap100i0"))
    assert served(host) == ["vmbr0"]
    other = proxmox.start(200, "veth200i0")
    host.tproxy("gc", "--grace", "0")
    assert other.get(SERVICE_ADDRESS, 80) == "hello"  # gc leaves a bridge with a guest alone
    proxmox.unplug(other)
    host.tproxy("gc", "--grace", "0")
    assert served(host) == []


def test_a_guest_is_served_when_it_starts_again_after_a_crash(proxmox: Proxmox) -> None:
    proxmox.unplug(proxmox.start(100, "tap100i0"))
    guest = proxmox.start(100, "tap100i0")
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"


BAD_CALLS = {
    "": "without the number",
    "100": "without the number",
    "../100 pre-start": "not the number of a guest",
    "1;reboot pre-start": "not the number of a guest",
    "999 pre-start": "no configuration of guest 999",
    "999 post-stop": "no configuration of guest 999",
}
BAD_NICS = {
    "bridge=../../vmbr0": "may hold only",
    "bridge=vmbr0;reboot": "may hold only",
    "bridge=vmbr\udcff": "may hold only",
    "bridge=vmbr\0": "may hold only",
    "bridge=" + "x" * 300: "longer than",
    "bridge=vmbr0,tag=abc": "no VLAN",
    "bridge=twelve-bytes,tag=1000": "longer than",
}


def test_bad_input_is_an_error_of_one_line_stops_no_guest_and_changes_nothing(proxmox: Proxmox) -> None:
    host = proxmox.host
    for words, reason in BAD_CALLS.items():
        done = proxmox.call(*words.split())
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), words
        assert reason in done.stderr, words
    path = host.path(f"{HERE}/qemu-server/100.conf")
    for options, reason in BAD_NICS.items():
        path.write_bytes(f"net0: virtio=BC:24:11:5A:0F:31,{options}\n".encode(errors="surrogateescape"))
        done = proxmox.call("100", "pre-start")
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), options
        assert reason in done.stderr, options
    path.write_bytes(b"net0: bridge=vmbr0\n" + b"#" * (1 << 20))
    assert "larger than" in proxmox.call("100", "pre-start").stderr
    for harmless in ("", "net0\nnet0:\nnet0: \nnet0: model=virtio,bridge=\nnet100: bridge=vmbr0\n"):
        path.write_text(harmless)
        proxmox.phase(100, "pre-start")
    path.write_text("net0: bridge=none\nnet1: bridge=lo\n")
    assert proxmox.call("100", "pre-start").stderr.count("lo is no Linux bridge") == 1
    assert proxmox.call("100", "post-start").stderr.count("bridge none does not exist") == 1
    assert proxmox.call("100", "unheard-of").stderr == ""
    done = host.run(*NOBODY, f"{SNIPPETS}/tproxy", "100", "pre-start", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "must be run as root" in done.stderr
    assert served(host) == []


def test_a_strict_hookscript_stops_the_guest(proxmox: Proxmox) -> None:
    host = proxmox.host
    host.tproxy("install", "proxmox", "--snippets", SNIPPETS, "--strict")
    proxmox.phase(100, "pre-start")
    proxmox.phase(100, "post-stop")
    host.write("/run/tproxy.yaml", "tproxy: [")
    done = proxmox.call("100", "pre-start")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert served(host) == []


def test_uninstall_leaves_files_of_others_alone(proxmox: Proxmox) -> None:
    host = proxmox.host
    host.write(f"{SNIPPETS}/mine.yaml", "#cloud-config\n")
    host.tproxy("uninstall", "proxmox", "--snippets", SNIPPETS)
    assert host.run("find", SNIPPETS, "-type", "f", "-not", "-name", ".*").stdout == f"{SNIPPETS}/mine.yaml\n"
