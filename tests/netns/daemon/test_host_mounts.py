"""Calls from a mount namespace of their own, as of a program that systemd runs with PrivateTmp=."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.one_bridge import OneBridge
from tests.netns.ruleset import links
from tests.netns.waiting import await_equal
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

Done = subprocess.CompletedProcess[str]

# systemd's are slaves, unless a unit says MountFlags=private.
OWN = ["slave", "private"]
# The same, without the right to look at process 1: then the daemon's mounts are the host's.
WITHOUT_PTRACE = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")

WORDS = (
    "this process has a mount namespace of its own",
    "nothing was changed; run it in the host's, for example with `nsenter --target 1 --mount tproxy ...`",
)


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    # As under systemd. A stand-in's mounts are private otherwise.
    hypervisor.run("mount", "--make-rshared", "/")
    return OneBridge(hypervisor)


def call(lab: OneBridge, propagation: str, *arguments: str, by: tuple[str, ...] = ()) -> Done:
    unshare = ("unshare", "--mount", "--propagation", propagation)
    return lab.host.run(*unshare, *by, sys.executable, "-m", "tproxy", *arguments, check=False)


def hook(lab: OneBridge, propagation: str, command: str, bridge: str, *more: str) -> Done:
    return call(lab, propagation, "hook", command, "--bridge", bridge, "--config", lab.config, *more)


def state(lab: OneBridge) -> str:
    """All that a hook changes, but for what changes by itself."""
    shown = [
        re.sub(r"expires \w+|elements = .*timeout.*", "", lab.host.run("nft", "list", "ruleset").stdout),
        lab.host.run("ls", "/run/netns", "/proc/1/root/run/netns").stdout,
        links(lab.host),
        lab.host.run("sh", "-c", "ls /run/tproxy/*/used").stdout,
        str(lab.pids()),
    ]
    return "\n".join(shown)


def assert_refused(done: Done) -> None:
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for words in WORDS:
        assert words in done.stderr


@pytest.mark.parametrize("propagation", OWN)
@pytest.mark.parametrize("command", ["up", "down"])
def test_a_hook_that_would_build_or_remove_a_bridge_is_refused(
    lab: OneBridge, propagation: str, command: str
) -> None:
    lab.host.add_bridge("br1")
    if command == "down":
        lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    before = state(lab)
    assert_refused(hook(lab, propagation, command, "br1"))
    assert state(lab) == before
    lab.host.tproxy("hook", command, "--bridge", "br1", "--config", lab.config)
    assert lab.ask() == "one"


@pytest.mark.parametrize("propagation", OWN)
def test_a_hook_without_the_right_to_look_at_process_1_is_refused_too(
    lab: OneBridge, propagation: str
) -> None:
    lab.host.add_bridge("br1")
    up = ("hook", "up", "--bridge", "br1", "--config", lab.config)
    before = state(lab)
    assert_refused(call(lab, propagation, *up, by=WITHOUT_PTRACE))
    assert state(lab) == before


@pytest.mark.parametrize("propagation", OWN)
def test_a_hook_that_finds_everything_in_order_or_changes_only_services_works(
    lab: OneBridge, propagation: str
) -> None:
    before = state(lab)
    assert hook(lab, propagation, "up", "br0").returncode == 0
    assert state(lab) == before
    file = lab.host.path(lab.config)
    file.write_text(file.read_text().replace("8080", "8081"))
    assert hook(lab, propagation, "up", "br0").returncode == 0
    assert lab.ask() == "two"


def test_a_hook_that_cannot_see_the_namespace_of_a_bridge_takes_it_not_down(lab: OneBridge) -> None:
    """Its mount namespace is older than the bridge's namespace."""
    lab.host.add_bridge("br1")
    guest = lab.host.add_guest("other", "br1")
    up = f"{sys.executable} -m tproxy hook up --bridge br1 --config {lab.config}"
    down = f"{sys.executable} -m tproxy hook down --bridge br1 --force"
    waiting = f"echo ready; read line; {up}; echo up=$?; {up} --dry-run; echo dry=$?; {down}; echo down=$?"
    early = lab.host.serve("unshare", "--mount", "--propagation", "private", "sh", "-c", waiting)
    early.kill()
    early = lab.host.popen(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", waiting),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert early.stdout is not None
    assert early.stdout.readline() == "ready\n"
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    before = state(lab)
    out, error = early.communicate("go\n", timeout=PATIENCE)
    assert out == "up=1\ndry=1\ndown=1\n"
    assert error.count(WORDS[0]) == error.count("\n") == 3
    assert state(lab) == before
    assert guest.get("169.254.16.9", 5030) == "one"


def test_mounts_that_propagate_to_the_host_work_as_the_hosts_own(lab: OneBridge) -> None:
    lab.host.add_bridge("br1")
    guest = lab.host.add_guest("other", "br1")
    assert hook(lab, "shared", "up", "br1").returncode == 0
    assert guest.get("169.254.16.9", 5030) == "one"
    before = state(lab)
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    assert state(lab) == before
    assert hook(lab, "shared", "down", "br1", "--force").returncode == 0
    assert not lab.host.path("/run/netns/one_tproxy_br1").exists()


def test_the_first_hook_of_a_host_works_where_its_mounts_reach_the_host(hypervisor: Hypervisor) -> None:
    hypervisor.run("mount", "--make-rshared", "/")
    for propagation, code in (("slave", 1), ("private", 1), ("shared", 0)):
        hypervisor.write("/run/tproxy.yaml", "tproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n")
        hypervisor.ip(*([] if propagation != "slave" else ["link add br0 type bridge", "link set br0 up"]))
        up = (sys.executable, "-m", "tproxy", "hook", "up", "--bridge", "br0", "--config", "/run/tproxy.yaml")
        done = hypervisor.run("unshare", "--mount", "--propagation", propagation, *up, check=False)
        assert done.returncode == code
        seen = hypervisor.run("ip", "netns", "list").stdout
        assert ("one_tproxy_br0" in seen) == (code == 0)


@pytest.mark.parametrize("command", ["start", "restart"])
def test_no_daemon_starts_where_the_hosts_namespaces_do_not_appear(lab: OneBridge, command: str) -> None:
    before = lab.pids()
    if command == "start":
        kill_daemon(lab.host)
        del before["one_tproxy"]
    assert_refused(call(lab, "private", command))
    assert lab.pids() == before
    assert call(lab, "slave", command).returncode == 0
    assert lab.ask() == "one"
    lab.add_bridge("br1")  # the new daemon sees its namespace


def test_gc_from_a_mount_namespace_of_its_own_removes_nothing(lab: OneBridge) -> None:
    lab.host.ip("link del br0")
    before = lab.pids()
    done = call(lab, "slave", "gc", "--grace", "0")
    assert done.returncode == 1
    assert WORDS[0] in done.stderr
    assert lab.pids() == before
    assert "ep_br0" in lab.host.run("nft", "list", "ruleset").stdout
    assert "one_tproxy_br0" in lab.host.run("ip", "netns", "list").stdout
    assert "br0b" in lab.host.run("ip", "link").stdout
    lab.host.tproxy("gc", "--grace", "0")
    assert lab.pids() == {}


def test_a_watcher_with_a_mount_namespace_of_its_own_breaks_nothing(lab: OneBridge) -> None:
    lab.host.write("/run/watch.yaml", f"tproxy_bridges: []\n{lab.host.path(lab.config).read_text()}")
    watch = (sys.executable, "-m", "tproxy", "watch", "--config", "/run/watch.yaml")
    lab.host.popen("unshare", "--mount", "--propagation", "private", *watch)
    lab.await_in_log("watching bridges")
    lab.add_bridge("br1")  # the watcher does not see its namespace
    lab.host.run("ip", "link", "set", "br1b", "mtu", "1400")
    lab.await_in_log("bridge br1 is broken and cannot be repaired: this process has a mount namespace")
    assert set(lab.pids()) == {"one_tproxy", "one_tproxy_br0", "one_tproxy_br1"}
    await_equal(lab.ask, "one")
