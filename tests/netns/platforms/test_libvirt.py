"""Events of libvirt, replayed through the installed hooks on real bridges.

The order of calls and the XML were recorded with libvirt 9.0 and QEMU. tests/vm/test_libvirt.py uses libvirt
itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.netns.conftest import NOBODY
from tests.netns.ruleset import lasting, links
from tests.netns.serving import served
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

CONFIG = """
tproxy:
- {service_port: 80, remote_addr: 10.11.12.13, remote_port: 8080}
- {service_port: 90, remote_addr: 10.11.12.14, remote_port: 8080, networks: blue}
- {service_port: 90, remote_addr: 10.11.12.15, remote_port: 8080, networks: br0}
"""
HOOKS = "/mnt/hooks"  # the tests mount a file system of their own on /mnt

# The XML that `virsh dumpxml` prints for a running guest; hooks get the same.
DOMAIN = """<domain type='kvm' id='7'>
  <name>{name}</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='KiB'>262144</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><source file='/var/lib/libvirt/images/web.qcow2' index='1'/></disk>
    {interfaces}
    <serial type='pty'><source path='/dev/pts/3'/><target type='isa-serial' port='0'/></serial>
  </devices>
</domain>"""
INTERFACE = """<interface type='{kind}'>
      <mac address='52:54:00:6b:3c:58'/>
      <source {source}/>
      {more}
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>"""
NETWORK = """<hookData>
  <network>
    <name>{name}</name>
    <uuid>afca425a-2c3a-420c-b2fb-dd7b4950d722</uuid>
    <forward mode='nat'/>
    <bridge name='{bridge}' stp='on' delay='0'/>
    <mac address='52:54:00:0d:7b:1f'/>
    <ip address='192.168.122.1' netmask='255.255.255.0'/>
  </network>
  {port}
</hookData>"""
PORT = """<networkport>
    <uuid>5d744f21-ba4a-4d6e-bdb2-30a35ff3207d</uuid>
    <owner><name>web</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid></owner>
    <mac address='52:54:00:6b:3c:58'/>
    <plug type='network' bridge='{bridge}'/>
  </networkport>"""


def domain(*interfaces: str, name: str = "web") -> str:
    return DOMAIN.format(name=name, interfaces="\n    ".join(interfaces))


def on_bridge(bridge: str, tap: str = "") -> str:
    target = f"<target dev='{tap}'/>" if tap else ""
    return INTERFACE.format(kind="bridge", source=f"bridge='{bridge}'", more=target)


def on_network(network: str, bridge: str = "", tap: str = "") -> str:
    """An interface on a network. The XML names the bridge only from `start` until before `stopped`."""
    actual = f" portid='5d744f21-ba4a-4d6e-bdb2-30a35ff3207d' bridge='{bridge}'" if bridge else ""
    target = f"<target dev='{tap}'/>" if tap else ""
    return INTERFACE.format(kind="network", source=f"network='{network}'{actual}", more=target)


class Libvirt:
    """libvirt's daemons: calls of hooks, which must leave stdout empty."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host

    def call(self, kind: str, *arguments: str, xml: str = "") -> subprocess.CompletedProcess[str]:
        done = self.host.run(
            f"{HOOKS}/{kind}.d/tproxy",
            *arguments,
            input=xml,
            check=False,
            env={"TPROXY_CONFIG": "/run/tproxy.yaml"},
        )
        assert done.stdout == ""
        return done

    def guest(
        self, operation: str, xml: str, extra: str = "-", *, kind: str = "qemu", name: str = "web"
    ) -> None:
        """Call a hook for an operation that must succeed without an error message."""
        sub = "end" if operation in ("stopped", "release") else "begin"
        done = self.call(kind, name, operation, sub, extra, xml=xml)
        assert done.returncode == 0
        assert done.stderr == "" or "left alone" in done.stderr

    def network(self, operation: str, name: str, bridge: str) -> None:
        sub = "end" if operation == "stopped" else "begin"
        port = PORT.format(bridge=bridge) if operation.startswith("port-") else ""
        xml = NETWORK.format(name=name, bridge=bridge, port=port)
        done = self.call("network", name, operation, sub, "-", xml=xml)
        assert done.returncode == 0
        assert done.stderr == "" or "left alone" in done.stderr

    def start(self, bridge: str, xml: Callable[[str], str], kind: str = "qemu", name: str = "web") -> Guest:
        """Start a guest on a bridge that its XML names from the first; ``xml`` makes the XML for its tap."""
        self.guest("prepare", xml(""), kind=kind, name=name)
        guest = self.host.add_guest(name, bridge)
        for operation in ("start", "started"):
            self.guest(operation, xml(guest.port), kind=kind, name=name)
        return guest


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    hypervisor.run("mount", "-t", "tmpfs", "none", "/mnt")
    hypervisor.tproxy("install", "libvirt", "--hooks", HOOKS)
    hypervisor.write("/run/tproxy.yaml", CONFIG)
    for last, body in ((13, "everywhere"), (14, "blue"), (15, "br0")):
        hypervisor.add_endpoint(f"10.11.12.{last}", 8080, body)
    hypervisor.add_bridge("br0")
    return hypervisor


@pytest.fixture
def libvirt(host: Hypervisor) -> Libvirt:
    return Libvirt(host)


def unplug(guest: Guest) -> None:
    """Remove the guest's tap, as when QEMU ends."""
    guest.hypervisor.ip(f"link del {guest.port}")


def assert_fetches(guest: Guest, own: str) -> None:
    assert guest.get(SERVICE_ADDRESS, 80) == "everywhere"
    assert guest.get(SERVICE_ADDRESS, 90) == own


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_a_guest_on_a_bridge_starts_and_shuts_down(libvirt: Libvirt, kind: str) -> None:
    libvirt.guest("prepare", domain(on_bridge("br0")), kind=kind)
    assert served(libvirt.host) == ["br0"]  # before the guest exists
    guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)), kind=kind)
    assert_fetches(guest, "br0")
    unplug(guest)
    libvirt.guest("stopped", domain(on_bridge("br0")), kind=kind)
    assert served(libvirt.host) == ["br0"]
    libvirt.guest("release", domain(on_bridge("br0")), "shutdown", kind=kind)
    assert served(libvirt.host) == []


def test_a_guest_on_a_network_starts_and_shuts_down_and_the_network_stops(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.add_bridge("virbr0")
    libvirt.call("network", "blue", "start", "begin", "-", xml=NETWORK)
    libvirt.network("started", "blue", "virbr0")
    assert served(host) == []
    libvirt.guest("prepare", domain(on_network("blue")))
    libvirt.network("port-created", "blue", "virbr0")
    guest = host.add_guest("web", "virbr0")
    running = domain(on_network("blue", "virbr0", guest.port))
    libvirt.guest("start", running)
    libvirt.guest("started", running)
    assert served(host) == ["virbr0"]
    assert_fetches(guest, "blue")
    unplug(guest)
    libvirt.guest("stopped", domain(on_network("blue")))
    libvirt.network("port-deleted", "blue", "virbr0")
    assert served(host) == []
    libvirt.guest("release", domain(on_network("blue")))
    host.ip("link del virbr0")
    libvirt.network("stopped", "blue", "virbr0")
    assert served(host) == []
    assert list(host.path("/run/tproxy/libvirt").iterdir()) == []


def test_guests_of_two_networks_on_one_bridge_are_served_by_their_own(libvirt: Libvirt) -> None:
    """The one of the network ``blue``, the other of the network ``br0``, which has another endpoint."""
    for name in ("blue", "br0"):
        libvirt.network("started", name, "br0")
    guests = []
    for number, name in enumerate(("blue", "br0")):
        mac = f"52:54:00:6b:3c:0{number}"
        guest = libvirt.host.add_guest(name, "br0", f"10.0.0.{5 + number}/24")
        guest.ip(f"link set eth0 address {mac}")
        plugged = domain(on_network(name, "br0", guest.port).replace("52:54:00:6b:3c:58", mac))
        for operation in ("start", "started"):
            libvirt.guest(operation, plugged, name=name)
        guests.append(guest)
    for guest, name in zip(guests, ("blue", "br0"), strict=True):
        assert_fetches(guest, name)


def test_a_network_with_a_long_name_is_served(libvirt: Libvirt) -> None:
    host, name = libvirt.host, "внутренняя сеть " * 7 + "x"  # 211 bytes, which libvirt allows
    host.write("/run/tproxy.yaml", CONFIG.replace("networks: blue", f"networks: '{name}'"))
    host.add_bridge("virbr0")
    libvirt.network("started", name, "virbr0")
    libvirt.network("port-created", name, "virbr0")
    guest = libvirt.start("virbr0", lambda tap: domain(on_network(name, "virbr0" if tap else "", tap)))
    assert_fetches(guest, "blue")
    unplug(guest)
    libvirt.guest("release", domain(on_network(name)))
    assert served(host) == []


def test_a_network_that_ran_before_the_hooks_were_installed_is_served(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.add_bridge("virbr0")
    libvirt.guest("prepare", domain(on_network("blue")))  # the bridge of the network is not known yet
    guest = host.add_guest("web", "virbr0")
    libvirt.guest("start", domain(on_network("blue", "virbr0", guest.port)))
    assert_fetches(guest, "blue")


def test_a_network_that_stops_under_its_guests_loses_its_services(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.add_bridge("virbr0")
    libvirt.network("started", "blue", "virbr0")
    libvirt.network("port-created", "blue", "virbr0")
    libvirt.start("virbr0", lambda tap: domain(on_network("blue", "virbr0", tap)))
    host.ip("link del virbr0")
    libvirt.network("stopped", "blue", "virbr0")
    assert served(host) == []


def test_a_bridge_stays_up_for_its_second_guest(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.add_bridge("virbr0")
    libvirt.network("started", "blue", "virbr0")
    guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap), on_network("blue", "virbr0")))
    assert served(host) == ["br0", "virbr0"]
    other = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)), name="other")
    unplug(guest)
    libvirt.guest("release", domain(on_bridge("br0"), on_network("blue")))
    assert served(host) == ["br0"]
    assert_fetches(other, "br0")


def test_a_guest_that_starts_while_the_last_one_ends_has_its_services(libvirt: Libvirt) -> None:
    first = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)))
    libvirt.guest("prepare", domain(on_bridge("br0"), name="next"), name="next")
    unplug(first)
    libvirt.guest("release", domain(on_bridge("br0")))
    second = libvirt.host.add_guest("next", "br0")
    libvirt.guest("start", domain(on_bridge("br0", second.port), name="next"), name="next")
    assert_fetches(second, "br0")


def test_a_guest_is_served_after_restore_and_after_migration(libvirt: Libvirt) -> None:
    for operation, reason in (("restore", "saved"), ("migrate", "migrated")):
        libvirt.guest(operation, domain(on_bridge("br0")))
        guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)), name=operation)
        assert_fetches(guest, "br0")
        unplug(guest)
        for end in ("stopped", "release"):
            libvirt.guest(end, domain(on_bridge("br0")), reason)
        assert served(libvirt.host) == []


def test_attaching_a_nic_brings_its_bridge_up_and_detaching_takes_it_down(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.add_bridge("virbr0")
    guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)))
    libvirt.network("port-created", "blue", "virbr0")
    assert served(host) == ["br0", "virbr0"]
    # This stands for a second NIC of the same guest: guests of the stand-in have one interface.
    nic = host.add_guest("nic", "virbr0")
    assert_fetches(nic, "blue")
    unplug(nic)
    libvirt.network("port-deleted", "blue", "virbr0")
    assert served(host) == ["br0"]
    assert_fetches(guest, "br0")


def test_a_migration_that_fails_leaves_nothing(libvirt: Libvirt) -> None:
    incoming = domain(on_bridge("br0"))
    libvirt.guest("migrate", incoming)
    libvirt.guest("prepare", incoming)
    guest = libvirt.host.add_guest("web", "br0")
    for operation in ("start", "started"):
        libvirt.guest(operation, domain(on_bridge("br0", guest.port)))
    unplug(guest)
    for operation in ("stopped", "release"):
        libvirt.guest(operation, domain(on_bridge("br0")), "failed")
    assert served(libvirt.host) == []


def test_a_guest_that_shuts_down_or_crashes_leaves_nothing(libvirt: Libvirt) -> None:
    for reason in ("shutdown", "crashed"):
        guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)), name=reason)
        unplug(guest)
        for operation in ("stopped", "release"):
            libvirt.guest(operation, domain(on_bridge("br0")), reason)
        assert served(libvirt.host) == []


def test_a_tap_that_stays_after_its_guest_does_not_keep_the_bridge_up(libvirt: Libvirt) -> None:
    guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)))
    guest.ip("link set eth0 down")  # the other end of the port is closed
    for operation in ("stopped", "release"):
        libvirt.guest(operation, domain(on_bridge("br0", guest.port)))
    assert served(libvirt.host) == []


def test_a_tap_that_another_guest_has_by_now_keeps_the_bridge_up(libvirt: Libvirt) -> None:
    guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)))
    libvirt.guest("release", domain(on_bridge("br0", guest.port), name="former"), name="former")
    assert_fetches(guest, "br0")


def test_a_reconnect_of_libvirts_daemon_repairs_what_is_missing(libvirt: Libvirt) -> None:
    guest = libvirt.start("br0", lambda tap: domain(on_bridge("br0", tap)))
    running = domain(on_bridge("br0", guest.port))
    libvirt.guest("reconnect", running)
    assert_fetches(guest, "br0")
    libvirt.host.run("sh", "-c", "nft flush ruleset; ip link del br0b")
    done = libvirt.call("qemu", "web", "reconnect", "begin", "-", xml=running)
    assert done.returncode == 0
    assert "maps and guards of br0 are restored" in done.stderr
    assert_fetches(guest, "br0")


def test_other_operations_and_guests_without_bridges_change_nothing(libvirt: Libvirt) -> None:
    for operation in ("stopped", "unheard-of", ""):
        libvirt.guest(operation, "not even XML")
    libvirt.network("unheard-of", "blue", "br0")
    libvirt.guest("start", domain())
    libvirt.guest("start", domain(INTERFACE.format(kind="direct", source="dev='eth0' mode='vepa'", more="")))
    libvirt.guest("start", domain(INTERFACE.format(kind="user", source="", more="")))
    assert served(libvirt.host) == []


def test_open_vswitch_is_refused_in_one_line_and_stops_no_guest(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.tproxy("install", "libvirt", "--hooks", HOOKS, "--strict")
    port = "<virtualport type='openvswitch'/>"
    xml = domain(INTERFACE.format(kind="bridge", source="bridge='br0'", more=port))
    done = [libvirt.call("qemu", "web", each, "begin", "-", xml=xml) for each in ("prepare", "start")]
    assert [each.returncode for each in done] == [0, 0]
    assert [each.stderr.count("Open vSwitch") for each in done] == [0, 1]
    assert "Open vSwitch" in host.path("/var/log/one_tproxy.log").read_text()
    assert served(host) == []


def state(host: Hypervisor) -> list[str]:
    """Return everything that a hook could leave on the host."""
    looks = (
        ("nft", "list", "ruleset"),
        ("find", "/run/netns", "/run/tproxy/libvirt", "-printf", "%p %y\n"),
        ("pgrep", "-af", "^one_tproxy|^tproxy-"),
    )
    return [links(host), *(lasting(host.run(*look, check=False).stdout) for look in looks)]


GOOD = domain(on_bridge("br0"))
ENTITIES = "<!DOCTYPE domain [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]>"
BAD_XML = {
    "nothing": ("", "no XML"),
    "truncated": (GOOD[: len(GOOD) // 2], "not XML"),
    "no XML": ("VM 7 is well\n", "not XML"),
    "another root": ("<network/>", "not a 'domain'"),
    "entities": (ENTITIES + GOOD.replace("web", "&b;"), "document type"),
    "external entity": ("<!DOCTYPE d SYSTEM 'file:///etc/passwd'>" + GOOD, "document type"),
    "unknown entity": (GOOD.replace("web", "&who;"), "not XML"),
    "unknown encoding": ("<?xml version='1.0' encoding='klingon'?>" + GOOD, "not XML"),
    "not text": ("\udcff\udcfe" + GOOD, "not XML"),
    "huge": (GOOD + " " * (4 << 20), "larger than"),
}
HOSTILE = (
    "../../br0",
    "br0;reboot",
    "$(reboot)",
    "--force",
    "-x y",
    "br0&#10;br1",
    "br0&#x9b;2J",
    "brüx",
    "x" * 300,
    "one_tproxy_br0/",
)


def test_bad_xml_is_an_error_of_one_line_and_changes_nothing(libvirt: Libvirt) -> None:
    before = state(libvirt.host)
    for case, (xml, reason) in BAD_XML.items():
        operation = "release" if case == "truncated" else "prepare"
        done = libvirt.call("qemu", "web", operation, "begin", "-", xml=xml)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), case
        assert reason in done.stderr, case
    for xml in ("<hookData/>", "<hookData><network/></hookData>", GOOD):
        done = libvirt.call("network", "blue", "started", "begin", "-", xml=xml)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), xml
    assert state(libvirt.host) == before


def test_a_hostile_name_is_an_error_of_one_line_and_changes_nothing(libvirt: Libvirt) -> None:
    before = state(libvirt.host)
    for name in HOSTILE:
        xml = domain(on_bridge(name), on_network(name))
        done = libvirt.call("qemu", "web", "start", "begin", "-", xml=xml)
        assert (done.returncode, done.stderr.count("\n")) == (0, 2), name
        assert "may hold only" in done.stderr or "longer than" in done.stderr or "not exist" in done.stderr
        assert "its bridge is not known" in done.stderr
    assert state(libvirt.host) == before


def test_a_network_can_have_any_name(libvirt: Libvirt) -> None:
    host = libvirt.host
    names = ("..", "../../../etc/passwd", "a b --force", "ü" * 20, "network:x", "$(reboot)", "x" * 300)
    for name in names:
        libvirt.network("started", name, "br0")
    assert len(list(host.path("/run/tproxy/libvirt").iterdir())) == len(names)
    for name in names[1:]:
        libvirt.network("stopped", name, "br0")
    libvirt.guest("prepare", domain(on_network(names[0])))
    assert served(host) == ["br0"]


def test_a_guests_name_cannot_forge_a_line_of_the_log(libvirt: Libvirt) -> None:
    forged = "x\n2030-01-01T00:00:00.000 1 ERROR all is lost\x1b[2J\r"
    done = libvirt.call("qemu", forged, "prepare", "begin", "-", xml="<")
    assert done.stderr.count("\n") == 1
    log = libvirt.host.path("/var/log/one_tproxy.log").read_text()
    assert not any(line.startswith("2030") for line in log.splitlines())
    assert "\x1b" not in log + done.stderr


def test_a_wrong_call_is_an_error_of_one_line_and_stops_no_guest(libvirt: Libvirt) -> None:
    host, hook = libvirt.host, f"{HOOKS}/qemu.d/tproxy"
    calls = {
        hook: "without the name",
        f"{hook} web": "without the name",
        f"{hook} web start begin - <&-": "standard input is closed",
        f"{hook} web start begin - </dev/null": "no XML",
        f"{hook} web start begin - 0>/dev/null": "standard input cannot be read",
        f"{' '.join(NOBODY)} {hook} web start begin -": "must be run as root",
    }
    before = state(host)
    for call, reason in calls.items():
        done = host.run("sh", "-c", call, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1), call
        assert reason in done.stderr, call
    assert state(host) == before


def test_the_other_bridges_are_served_when_one_fails(libvirt: Libvirt) -> None:
    xml = domain(on_bridge("none"), on_bridge("br0"), on_bridge("lo"))
    done = libvirt.call("qemu", "web", "start", "begin", "-", xml=xml)
    assert done.returncode == 0
    assert "bridge none does not exist" in done.stderr
    assert "lo is not a bridge" in done.stderr
    assert served(libvirt.host) == ["br0"]
    assert "bridge none does not exist" in libvirt.host.path("/var/log/one_tproxy.log").read_text()


def test_a_strict_hook_stops_a_starting_guest_and_never_kills_a_running_one(libvirt: Libvirt) -> None:
    host = libvirt.host
    host.tproxy("install", "libvirt", "--hooks", HOOKS, "--strict")
    libvirt.guest("prepare", GOOD)  # a call that succeeds
    host.write("/run/tproxy.yaml", "tproxy: [")
    failing = ("prepare", "start", "started", "migrate", "restore", "reconnect")
    done = {each: libvirt.call("qemu", "web", each, "begin", "-", xml=GOOD) for each in failing}
    assert {each for each in failing if done[each].returncode == 0} == {"reconnect"}
    assert all("tproxy.yaml" in each.stderr for each in done.values())
    assert served(host) == ["br0"]
    host.tproxy("install", "libvirt", "--hooks", HOOKS)
    assert libvirt.call("qemu", "web", "start", "begin", "-", xml=GOOD).returncode == 0


def test_hooks_without_tproxy_stop_no_guest(libvirt: Libvirt) -> None:
    hook = libvirt.host.path(f"{HOOKS}/qemu.d/tproxy")
    text = hook.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("python="))
    for python in ("/nowhere/python", "/bin/false"):
        hook.write_text(text.replace(line, f"python={python}"))
        assert libvirt.call("qemu", "web", "start", "begin", "-", xml=GOOD).returncode == 0


def test_install_and_uninstall_leave_files_of_others_alone(libvirt: Libvirt) -> None:
    host = libvirt.host
    others = f"{HOOKS}/qemu.d/50-mine"
    host.write(others, "#!/bin/sh\n")
    assert host.tproxy("install", "libvirt", "--hooks", HOOKS).stdout == "everything is in place\n"
    host.tproxy("uninstall", "libvirt", "--hooks", HOOKS)
    assert host.run("find", HOOKS, "-type", "f", "-not", "-name", ".*").stdout == f"{others}\n"
    host.write(f"{HOOKS}/qemu.d/tproxy", "#!/bin/sh\n# somebody else's\n")
    done = host.tproxy("install", "libvirt", "--hooks", HOOKS, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    host.tproxy("uninstall", "libvirt", "--hooks", HOOKS)
    assert "somebody else's" in host.path(f"{HOOKS}/qemu.d/tproxy").read_text()
