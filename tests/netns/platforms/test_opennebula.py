"""Events of OpenNebula, replayed through the installed hooks on real bridges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.opennebula_node import CONF, REMOTES, Node, furnish
from tests.netns.program import program
from tests.opennebula_vm import alias, line, nic, pci, vm, xml
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def node(hypervisor: Hypervisor, tmp_path: Path) -> Node:
    node = furnish(hypervisor, tmp_path)
    node.install("--sudoers", "/etc/sudoers.d")
    return node


@pytest.fixture
def other_node(real_kernel: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Hypervisor() as host:
        node = furnish(host, tmp_path_factory.mktemp("one"))
        node.install("--sudoers", "/etc/sudoers.d")
        yield node


@pytest.mark.parametrize(
    ("driver", "uplink"), [("bridge", ""), ("fw", "eth1"), ("802.1Q", "eth1.100"), ("vxlan", "eth1.100")]
)
def test_a_guest_is_served_from_deploy_to_shutdown(node: Node, driver: str, uplink: str) -> None:
    before = node.state()
    machine = vm(nic(VN_MAD=driver, VLAN_ID="100", PHYDEV="eth1" if uplink else ""))
    node.pre(machine, uplink=uplink, driver=driver)
    guest = node.boot()
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"  # a guest may ask before `post`
    node.post(machine, driver=driver)
    assert node.served() == ["onebr0"]
    uplinks = node.host.run("nft", "list", "set", "bridge", "one_tproxy", "uplinks").stdout
    assert f'"{uplink}" comment' in uplinks or not uplink
    node.shut_down(guest)
    node.clean(machine, uplink=uplink, driver=driver)
    assert node.served() == []
    assert node.state() == before


def test_an_uplink_that_the_network_does_not_name_does_not_keep_a_bridge_up(node: Node) -> None:
    """An administrator can make a bridge with a card or a tunnel on it."""
    node.host.add_bridge("onebr0")
    node.host.ip("link add tunnel type vxlan id 7 dev lo dstport 4789", "link set tunnel master onebr0 up")
    node.pre(vm(nic()))
    guest = node.boot()
    node.silent(node.hook("clean", vm(nic()), "node1"))
    assert node.served() == ["onebr0"]
    node.shut_down(guest)
    node.silent(node.hook("clean", vm(nic()), "node1"))
    assert node.served() == []


def test_poweroff_takes_the_bridge_down_and_resume_brings_it_up(node: Node) -> None:
    before = node.state()
    for _ in range(2):
        node.pre(vm(nic()))
        guest = node.boot()
        node.post(vm(nic()))
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
        node.shut_down(guest)
        node.clean(vm(nic()))
        assert node.state() == before


def test_a_bridge_goes_with_its_last_guest_only(node: Node) -> None:
    """If a guest is shut down from inside, OpenNebula calls clean later, or not at all."""
    first, second = vm(nic()), vm(nic(IP="10.0.0.6", MAC="02:00:0a:00:00:06"))
    before = node.state()
    node.pre(first)
    one = node.boot("one")
    node.post(first)
    node.pre(second)
    two = node.boot("two", address="10.0.0.6/24")
    node.post(second)
    node.shut_down(one)
    assert node.served() == ["onebr0"]
    node.clean(first)
    assert two.get(SERVICE_ADDRESS, 5030) == "hello"
    node.shut_down(two)
    node.clean(second)
    assert node.state() == before


def test_after_a_crash_without_clean_the_next_guest_is_served_and_its_clean_removes_all(node: Node) -> None:
    before = node.state()
    node.pre(vm(nic()))
    node.shut_down(node.boot())  # the guest crashed, perhaps before post
    node.pre(vm(nic()))
    guest = node.boot()
    node.post(vm(nic()))
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    node.shut_down(guest)
    node.clean(vm(nic()))
    assert node.state() == before


def test_a_guest_that_boots_during_the_clean_of_another_has_its_services_after_post(node: Node) -> None:
    node.pre(vm(nic()))
    node.shut_down(node.boot("old"))
    node.pre(vm(nic()))
    # The bridge still exists, because the clean of the old guest and the pre of the new one overlap.
    node.silent(node.hook("clean", vm(nic()), "node1"))
    assert node.served() == []
    guest = node.boot("new")
    node.post(vm(nic()))
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"


SHARED = """
- :service_port: 5031
  :remote_addr: 10.11.12.13
  :remote_port: 8080
  :networks: [NETWORK]
"""


def test_a_reservation_shares_the_bridge_of_its_network(node: Node) -> None:
    """A VM has a card on each, and another VM one on the reservation. Cards are detached, and VMs end."""
    node.host.write(f"{REMOTES}/etc/vnm/OpenNebulaNetwork.conf", CONF + SHARED.replace("NETWORK", "blue"))
    before = node.state()

    def reserved(number: int) -> str:
        return nic(number, NETWORK="blue-reserved", NETWORK_ID="7")

    node.pre(vm(nic(0), reserved(1)))
    first = node.boot("one", nic=0)
    node.post(vm(nic(0), reserved(1)))
    second = vm(reserved(2))
    node.pre(second)
    guest = node.boot("two", address="10.0.0.6/24", nic=2)
    node.post(second)
    assert first.get(SERVICE_ADDRESS, 5031) == "hello"
    with pytest.raises(ProcessError, match="ECONNRESET"):
        guest.get(SERVICE_ADDRESS, 5031)  # which is blue's alone
    assert [each.get(SERVICE_ADDRESS, 5030) for each in (first, guest)] == ["hello", "hello"]
    cards = node.host.run("nft", "list", "set", "ip", "one_tproxy", "pt_onebr0").stdout
    assert all(f'"one-7-{number}" . 02:00:0a:00:00:{5 + number:02x}' in cards for number in range(3))
    members = node.host.run("nft", "list", "set", "ip", "one_tproxy", "gu_onebr0").stdout
    assert members.count('comment "id=0 network=blue"') == 1
    assert members.count('comment "id=7 network=blue-reserved order=2"') == 2
    node.silent(node.hook("clean", vm(nic(0, attach=True), reserved(1)), "node1"))
    services = node.host.run("nft", "list", "map", "ip", "one_tproxy", "ep_onebr0").stdout
    assert "5030 : " in services
    assert "5031 : " not in services
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    node.shut_down(guest)
    node.shut_down(first)
    node.clean(second)
    assert node.state() == before


def test_attach_and_detach_concern_one_bridge(node: Node) -> None:
    node.pre(vm(nic(0)))
    guest = node.boot()
    node.post(vm(nic(0)))
    alone = node.state()
    both = vm(nic(0), nic(1, BRIDGE="onebr1", NETWORK="red", NETWORK_ID="1", attach=True))
    node.pre(both, "onebr1")
    second = node.boot("second", "onebr1", "10.1.0.5/24")
    node.post(both)
    assert node.served() == ["onebr0", "onebr1"]
    assert second.get(SERVICE_ADDRESS, 5030) == "hello"
    # An alias or a passed-through card has no port, so attaching one changes no bridge.
    for other in (alias(2, 0, attach=True), pci(2, attach=True)):
        node.silent(node.hook("clean", vm(nic(0), nic(1, BRIDGE="onebr1"), other), "node1"))
        assert node.served() == ["onebr0", "onebr1"]
    node.shut_down(second)
    node.clean(both, "onebr1")
    assert node.served() == ["onebr0"]
    assert node.state() == alone
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"


def test_a_migrated_guest_is_served_and_leaves_nothing_on_the_source(node: Node, other_node: Node) -> None:
    source, target, machine = node, other_node, vm(nic())
    untouched = source.state()
    source.pre(machine)
    guest = source.boot()
    source.post(machine)
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    target.pre(machine)
    guest = target.host.take_over(guest, source.host, "onebr0")
    source.host.run("ip", "netns", "list")
    source.clean(machine)
    target.post(machine, host="node1")  # OpenNebula passes the name of the source, which the hook ignores
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert target.served() == ["onebr0"]
    assert source.served() == []
    source.host.ip("netns del guest")
    assert source.state() == untouched


def test_after_a_failed_migration_the_source_serves_and_the_target_can_be_cleaned(
    node: Node, other_node: Node
) -> None:
    source, target, machine = node, other_node, vm(nic())
    target.host.add_bridge("onebr0")
    untouched = target.state()
    source.pre(machine)
    guest = source.boot()
    source.post(machine)
    for clean in ("gc", "the next guest"):
        target.pre(machine)  # and no more calls: OpenNebula calls no hook for a failed migration
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
        assert target.served() == ["onebr0"]
        if clean == "gc":
            target.host.tproxy("gc", "--grace", "0")
        else:
            target.pre(machine)
            target.shut_down(target.boot())
            target.silent(target.hook("clean", machine, "node2"))
        assert target.state() == untouched


def test_open_vswitch_is_refused_in_the_log_and_stops_no_guest(node: Node) -> None:
    before = node.state()
    node.install("--strict")
    machine = vm(nic(VN_MAD="ovswitch", BRIDGE_TYPE="openvswitch"))
    done = node.hook("pre", machine, driver="ovswitch")
    assert done.stdout == "tproxy: bridge onebr0 is of Open vSwitch: tproxy serves Linux bridges only\n"
    assert (done.returncode, done.stderr) == (0, "")
    node.silent(node.hook("post", machine, "one-7", "node1", driver="ovswitch"))
    node.silent(node.hook("clean", machine, "node1", driver="ovswitch"))
    assert node.state() == before


HOSTILE = "$(touch x); `touch x` ../../etc 'a' \"b\" \n\u202e é"

BAD_INPUT = {
    "truncated": (line(xml(nic())[:-50]), "not XML"),
    "cut in its base64": (vm(nic())[:-3], "not base64"),
    "not base64": ("<VM></VM>", "not base64"),
    "nothing": ("", "it is empty"),
    "huge": ("A" * (25 << 20), "larger than"),
    "entities": (line('<!DOCTYPE VM [<!ENTITY a "b">]>' + xml(nic())), "document type"),
    "hostile bridge": (vm(nic(BRIDGE=HOSTILE)), "bridge name"),
    "bridge like an option": (vm(nic(BRIDGE="--force")), "does not exist"),
    "bridge of 1000 bytes": (vm(nic(BRIDGE="b" * 1000)), "longer than 15 bytes"),
    "network of a megabyte": (vm(nic(NETWORK="n" * (1 << 20))), "cannot run sudo: "),
    "hostile uplink": (vm(nic(PHYDEV=HOSTILE)), "uplink name"),
    "no such bridge": (vm(nic(BRIDGE="onebr9")), "onebr9"),
}


def test_bad_input_is_an_error_of_one_line_and_stops_no_guest(node: Node) -> None:
    node.host.add_bridge("onebr0")
    before = node.state()
    for case, (stdin, reason) in BAD_INPUT.items():
        done = node.hook("pre", stdin)
        assert reason in done.stdout, case
        assert done.stdout.startswith("tproxy: "), case
        assert done.stdout.endswith("\n"), case
        assert done.stdout[:-1].isprintable(), case
        assert len(done.stdout) < 1000, case
        assert (done.returncode, done.stderr) == (0, ""), case
        assert node.state() == before, case


def test_the_name_of_a_network_can_hold_any_characters(node: Node) -> None:
    node.pre(vm(nic(NETWORK=HOSTILE)))
    assert node.served() == ["onebr0"]
    assert not list(node.host.path(REMOTES).rglob("x"))


def test_the_other_bridges_are_served_when_one_fails(node: Node) -> None:
    node.host.add_bridge("onebr0")
    done = node.hook("pre", vm(nic(0, BRIDGE="onebr9"), nic(1)))
    assert done.stdout.startswith("tproxy: bridge onebr9: ")
    assert node.served() == ["onebr0"]


def test_a_strict_hook_fails_the_start_of_a_guest_but_not_its_end(node: Node) -> None:
    node.install("--strict")
    for phase in ("pre", "post"):
        done = node.hook(phase, vm(nic(BRIDGE="onebr9")))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("tproxy: bridge onebr9: ")
    done = node.hook("clean", "not base64")
    assert done.returncode == 0
    assert "not base64" in done.stdout
    node.pre(vm(nic()))


# Unlike dash, bash passes ignored signals on to its children. It is /bin/sh on hosts of the RHEL kind.
IGNORING_CHILDREN = """exec python3 -c 'import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp("bash", ["bash", *sys.argv[1:]])' """


def test_a_strict_hook_fails_also_where_its_caller_ignores_ended_children(node: Node) -> None:
    node.install("--strict")
    done = node.hook("pre", vm(nic(BRIDGE="onebr9")), shell=IGNORING_CHILDREN)
    assert done.returncode == 1
    assert done.stderr.startswith("tproxy: bridge onebr9: ")


def test_settings_that_cannot_be_read_are_an_error_of_one_line(node: Node) -> None:
    (node.host.path(REMOTES) / "etc/vnm/tproxy.conf").write_text("strict: perhaps\n")
    done = node.hook("pre", vm(nic()))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"tproxy: {REMOTES}/etc/vnm/tproxy.conf: ")
    assert done.stdout.count("\n") == 1


def test_a_bridge_goes_down_with_its_guest_although_the_configuration_file_is_gone(node: Node) -> None:
    before = node.state()
    node.pre(vm(nic()))
    guest = node.boot()
    (node.host.path(REMOTES) / "etc/vnm/OpenNebulaNetwork.conf").unlink()
    done = node.hook("post", vm(nic()))
    assert done.stdout.startswith("tproxy: bridge onebr0: no configuration file")
    assert done.stdout.count("\n") == 1
    assert done.returncode == 0
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    node.shut_down(guest)
    node.clean(vm(nic()))
    assert node.state() == before


SURROUNDINGS = {
    "stdin closed": ("exec 0<&-;", "it is closed"),
    "no python3": ("mkdir -p /run/none; PATH=/run/none;", "python3 ended with 127"),
}


@pytest.mark.parametrize("case", SURROUNDINGS)
def test_without_stdin_or_python_the_hook_prints_the_reason(node: Node, case: str) -> None:
    prepare, reason = SURROUNDINGS[case]
    before = node.state()
    done = node.hook("pre", vm(nic()), shell=prepare)
    assert reason in done.stdout
    assert done.returncode == 0
    assert node.state() == before


def test_without_the_sudoers_snippet_the_hook_names_the_snippet(node: Node) -> None:
    node.host.add_bridge("onebr0")
    before = node.state()
    node.host.run("rm", "/etc/sudoers.d/tproxy")
    done = node.hook("pre", vm(nic()))
    assert done.stdout == (
        f"tproxy: bridge onebr0: sudo: a password is required; see {REMOTES}/vnm/tproxy.sudoers\n"
    )
    assert done.returncode == 0
    assert node.state() == before


def test_services_can_come_from_another_file(node: Node) -> None:
    remotes = node.host.path(REMOTES)
    node.host.write("/run/ours.yaml", CONF)
    (remotes / "etc/vnm/OpenNebulaNetwork.conf").write_text(":vxlan_ttl: 16\n")
    (remotes / "vnm/tproxy.rb").write_text("module VNMMAD\n")  # it does nothing without :tproxy:
    node.pre(vm(nic()))
    assert node.served() == []
    node.install("--config", "/run/ours.yaml")
    node.pre(vm(nic()))
    assert node.served() == ["onebr0"]


def test_errors_go_to_the_syslog_of_the_host(node: Node) -> None:
    # The stand-in shares /dev with this machine, so this test needs a /dev of its own.
    devices = "mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9"
    node.host.run("sh", "-ec", f"mount -t tmpfs -o mode=755 none /dev; {devices}")
    syslog = node.host.serve(*program("syslog_socket"))
    node.host.run("chmod", "666", "/dev/log")
    assert node.hook("pre", vm(nic(BRIDGE="onebr9"))).returncode == 0
    assert syslog.stdout is not None
    ours = next(line for line in syslog.stdout if "one_tproxy: " in line)  # sudo writes to syslog too
    assert ours.endswith("one_tproxy: bridge onebr9: bridge onebr9 does not exist\n")


def test_a_port_that_opennebulas_own_process_holds_is_left_to_it(node: Node) -> None:
    node.host.add_bridge("onebr0")
    node.host.ip("link add onebr0b master onebr0 type veth peer name onebr0a", "netns add one_tproxy_onebr0")
    node.host.ip("link set onebr0b up", "link set onebr0a netns one_tproxy_onebr0")
    node.host.ip(
        f"address add {SERVICE_ADDRESS}/32 dev onebr0a", "link set onebr0a up", netns="one_tproxy_onebr0"
    )
    theirs = node.host.serve(*program("foreign_relay", "onebr0", "5030"), netns="one_tproxy_onebr0")
    done = node.hook("pre", vm(nic()))
    assert done.stdout.count("\n") == 1
    assert "5030" in done.stdout
    assert done.returncode == 0
    assert node.host.run("nft", "list", "ruleset").stdout == ""
    assert node.host.tproxy("status").stdout == ""
    assert theirs.poll() is None
