"""tproxy install opennebula, uninstall opennebula, and OpenNebula's own implementation beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.opennebula_node import ONEADMIN, REMOTES, THEIR_COMMAND, TPROXY, Node, OwnDriver, furnish
from tests.opennebula_vm import nic, vm
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def bare_node(hypervisor: Hypervisor, tmp_path: Path) -> Node:
    return furnish(hypervisor, tmp_path)


@pytest.fixture
def node(bare_node: Node) -> Node:
    bare_node.install("--sudoers", "/etc/sudoers.d")
    return bare_node


def test_hooks_do_nothing_where_opennebulas_own_driver_serves_the_bridges(node: Node) -> None:
    remotes = node.host.path(REMOTES)
    (remotes / "vnm/tproxy.rb").write_text("module VNMMAD\n")  # an upgrade of OpenNebula brought it
    node.host.add_bridge("onebr0")
    before = node.state()
    done = node.hook("pre", vm(nic()))
    assert done.stdout == (
        "tproxy: OpenNebula's own driver serves the bridges, because of :tproxy: in "
        f"{REMOTES}/etc/vnm/OpenNebulaNetwork.conf; nothing is done\n"
    )
    assert done.returncode == 0
    assert node.state() == before


def test_hooks_do_nothing_where_the_command_is_opennebulas_own(node: Node) -> None:
    remotes = node.host.path(REMOTES)
    (remotes / "vnm/tproxy").write_text(THEIR_COMMAND)  # an upgrade of OpenNebula brought it back
    done = node.hook("pre", vm(nic()))
    assert done.returncode == 0
    assert done.stdout == (
        f"tproxy: {REMOTES}/vnm/tproxy is OpenNebula's own: nothing is done; "
        "tproxy install opennebula replaces it\n"
    )


def test_opennebulas_own_driver_can_use_our_command(bare_node: Node) -> None:
    node, host, driver = bare_node, bare_node.host, OwnDriver(bare_node)
    (host.path(REMOTES) / "vnm/tproxy.rb").write_text("module VNMMAD\n")
    node.install("--drop-in", "--sudoers", "/etc/sudoers.d")
    host.add_endpoint("10.11.12.14", 8080, "other")
    before = node.state()
    for bridge in ("onebr0", "onebr1"):
        host.add_bridge(bridge)
    driver.enable("onebr0")
    driver.enable("onebr1", endpoint="10.11.12.14")
    one, two = node.boot("one", "onebr0"), node.boot("two", "onebr1")
    assert one.get(SERVICE_ADDRESS, 5030) == "hello"
    assert two.get(SERVICE_ADDRESS, 5030) == "other"
    titles = [each.partition(":")[0] for each in driver.call("status").stdout.splitlines()]
    assert titles == ["one_tproxy", "one_tproxy_onebr0", "one_tproxy_onebr1"]
    # For another guest of the bridge the driver does the same again; the processes stay.
    running = driver.call("status").stdout
    driver.enable("onebr0")
    assert driver.call("status").stdout == running
    assert one.get(SERVICE_ADDRESS, 5030) == "hello"
    driver.enable("onebr0", endpoint="10.11.12.14")
    assert one.get(SERVICE_ADDRESS, 5030) == "other"
    driver.call("restart")
    assert one.get(SERVICE_ADDRESS, 5030) == "other"
    node.shut_down(two)
    driver.disable("onebr1")
    titles = [each.partition(":")[0] for each in driver.call("status").stdout.splitlines()]
    assert titles == ["one_tproxy", "one_tproxy_onebr0"]
    assert one.get(SERVICE_ADDRESS, 5030) == "other"
    node.shut_down(one)
    driver.disable("onebr0")
    assert driver.call("status").stdout == ""
    host.ip("link del onebr0", "link del onebr1")
    host.run("nft", "delete table ip one_tproxy; delete table bridge one_tproxy")  # the driver leaves them
    assert node.state() == before


def tree(host: Hypervisor, *folders: str) -> str:
    """Return the names, owners, modes and contents of all files in the folders."""
    find = ("find", *folders, "-printf", "%p %u %g %m %y %l\\n", "-type", "f", "-exec", "md5sum", "{}", ";")
    return host.run("sh", "-c", '"$@" | sort', "find", *find).stdout


def test_uninstall_restores_what_was_there_before_install(bare_node: Node) -> None:
    host, folders = bare_node.host, (REMOTES, "/etc/sudoers.d")
    vnm = host.path(REMOTES) / "vnm"
    (vnm / "bridge/pre.d").mkdir()  # an empty folder of OpenNebula
    (vnm / "bridge/clean.d").mkdir()
    (vnm / "bridge/clean.d/firecracker").write_text("#!/bin/sh\n")
    host.run("chown", "-R", f"{ONEADMIN}:{ONEADMIN}", REMOTES)
    before = tree(host, *folders)
    options = ("--sudoers", "/etc/sudoers.d", "--strict", "--config", "/etc/tproxy/tproxy.yaml")
    said = bare_node.install(*options).stdout.splitlines()
    installed = tree(host, *folders)
    assert set(said) == set(
        host.run(
            "find", *folders, "-name", "tproxy*", "-not", "-name", "*.before-tproxy", "-type", "f"
        ).stdout.split()
    )
    # onehost sync runs as oneadmin, which must be able to read all files, and to replace them later.
    assert host.run("find", REMOTES, "-not", "-user", str(ONEADMIN)).stdout == ""
    assert host.run("find", "/etc/sudoers.d", "-type", "f", "-perm", "440", "-user", "root").stdout
    assert bare_node.install(*options).stdout == "everything is in place\n"
    assert tree(host, *folders) == installed
    uninstall = (str(TPROXY), "uninstall", "opennebula", "--remotes", REMOTES)
    host.run(*uninstall, "--sudoers", "/etc/sudoers.d")
    assert tree(host, *folders) == before
    assert host.run(*uninstall).stdout == "nothing of ours is there\n"


def test_an_older_version_of_ours_is_replaced_and_opennebulas_newer_command_is_kept(node: Node) -> None:
    vnm = node.host.path(REMOTES) / "vnm"
    hook = vnm / "vxlan/post.d/tproxy"
    current = hook.read_text()
    hook.write_text("#!/bin/sh\n# Installed by tproxy\nan older one\n")
    (vnm / "tproxy").write_text(THEIR_COMMAND + "# of a later release\n")
    said = node.install().stdout.splitlines()
    assert said == [f"{REMOTES}/vnm/tproxy", f"{REMOTES}/vnm/vxlan/post.d/tproxy"]
    assert hook.read_text() == current
    node.host.run(str(TPROXY), "uninstall", "opennebula", "--remotes", REMOTES)
    assert (vnm / "tproxy").read_text() == THEIR_COMMAND + "# of a later release\n"


def test_uninstall_leaves_later_changes_of_the_tree_alone(node: Node) -> None:
    vnm = node.host.path(REMOTES) / "vnm"
    (vnm / "tproxy").write_text(THEIR_COMMAND + "# of a later release\n")
    (vnm / "bridge/pre.d/firecracker").write_text("#!/bin/sh\n")
    (vnm / "bridge/post.d/tproxy").write_text("#!/bin/sh\n")
    node.host.run(str(TPROXY), "uninstall", "opennebula", "--remotes", REMOTES)
    left = sorted(str(each.relative_to(vnm)) for each in vnm.rglob("*") if not each.is_dir())
    assert left == ["bridge/post.d/tproxy", "bridge/pre.d/firecracker", "tproxy"]
    assert (vnm / "tproxy").read_text() == THEIR_COMMAND + "# of a later release\n"


def test_install_with_drop_in_removes_hooks_of_an_earlier_install(node: Node) -> None:
    node.install("--strict")
    node.install("--drop-in")
    assert not (node.host.path(REMOTES) / "etc/vnm/tproxy.conf").exists()
    vnm = node.host.path(REMOTES) / "vnm"
    assert sorted(each.name for each in vnm.rglob("*tproxy*")) == [
        "tproxy",
        "tproxy.before-tproxy",
        "tproxy.sudoers",
    ]


REFUSALS = {
    "not remotes": ("rm -r /var/tmp/one/vnm", "no folder vnm"),
    "somebody else's hook": (
        "mkdir /var/tmp/one/vnm/bridge/pre.d; echo mine >/var/tmp/one/vnm/bridge/pre.d/tproxy",
        "pre.d/tproxy is not ours",
    ),
    "OpenNebula's own driver": ("touch /var/tmp/one/vnm/tproxy.rb", "give --drop-in"),
    "read-only": ("mount -o remount,ro,bind /var/tmp/one", "Read-only file system"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_install_refuses_in_one_line_and_changes_nothing(bare_node: Node, case: str) -> None:
    prepare, reason = REFUSALS[case]
    bare_node.host.run("sh", "-c", prepare)
    before = tree(bare_node.host, REMOTES)
    done = bare_node.install(check=False)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert tree(bare_node.host, REMOTES) == before


def test_a_refused_install_removes_nothing(node: Node) -> None:
    node.install("--strict")
    (node.host.path(REMOTES) / "vnm/bridge/post.d/tproxy").write_text("#!/bin/sh\n# somebody else's\n")
    before = tree(node.host, REMOTES)
    assert node.install(check=False).returncode == 1
    assert tree(node.host, REMOTES) == before


def test_the_installed_command_names_the_path_where_tproxy_should_be(bare_node: Node) -> None:
    bare_node.install("--command", "/opt/none/tproxy", "--sudoers", "/etc/sudoers.d")
    assert bare_node.hook("pre", vm(nic())).stdout == (
        "tproxy: bridge onebr0: /opt/none/tproxy does not exist: install tproxy on this host\n"
    )
