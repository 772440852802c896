"""``tproxy hook ... --dry-run`` prints what would be done, and does nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.netns.ruleset import lasting
from tests.netns.waiting import eventually
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.lab.hypervisor import Hypervisor

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    configure(hypervisor, 8080)
    hypervisor.add_bridge("br0")
    return hypervisor


def configure(host: Hypervisor, remote: int) -> None:
    host.write(CONFIG, f"tproxy: [{{service_port: 80, remote_addr: {ENDPOINT}, remote_port: {remote}}}]\n")


def hook(host: Hypervisor, command: str, *options: str) -> list[str]:
    config = ["--config", CONFIG] if command == "up" else []
    done = host.tproxy("hook", command, "--bridge", "br0", *config, *options)
    assert done.stderr == ""
    return done.stdout.splitlines()


def state(host: Hypervisor) -> str:
    """All that a hook could change."""
    commands = (
        "nft list ruleset",
        # Without the state of the carrier, which the kernel determines a little later.
        "grep . /sys/class/net/*/ifindex /sys/class/net/*/iflink /sys/class/net/*/mtu /sys/class/net/*/flags",
        "ls -l /sys/class/net/*/master",
        "ip netns list",
        "find /run /var/log -not -path '/run/netns/*' | sort",
        "cat /var/log/*.log",
        "ps -e -o pid,args | grep one_tproxy | grep -v grep",
    )
    return lasting(host.run("sh", "-c", "; ".join(commands), check=False).stdout)


def test_a_dry_run_prints_the_actions_in_order_and_changes_nothing(host: Hypervisor) -> None:
    before = state(host)
    assert hook(host, "up", "--dry-run") == [
        "load guards of br0",
        "create namespace one_tproxy_br0",
        "create veth br0b with peer br0a in namespace one_tproxy_br0",
        "set 30 sysctls in namespace one_tproxy_br0",
        "configure br0a: address 169.254.16.9/32, MAC 06:00:a9:fe:10:09, MTU 1500, default route, up",
        "make br0b a port of br0: MTU 1500, up",
        "load service map of br0",
        "start the daemon one_tproxy",
        "start relay one_tproxy_br0",
        "port 80 leads to 10.11.12.13:8080",
    ]
    assert hook(host, "down", "--dry-run") == []
    assert state(host) == before


def test_a_dry_run_prints_only_what_differs(host: Hypervisor) -> None:
    hook(host, "up")
    before = state(host)
    assert hook(host, "up", "--dry-run") == []
    configure(host, 8081)
    assert hook(host, "up", "--dry-run") == [
        "load service map of br0",
        "port 80 leads to 10.11.12.13:8081, no longer to 10.11.12.13:8080",
    ]
    assert state(host) == before

    host.ip("link set br0b nomaster")
    host.tproxy("stop")
    before = state(host)
    assert hook(host, "up", "--dry-run") == [
        "make br0b a port of br0: MTU 1500, up",
        "load service map of br0",
        "start the daemon one_tproxy",
        "start relay one_tproxy_br0",
        "port 80 leads to 10.11.12.13:8081, no longer to 10.11.12.13:8080",
    ]
    assert state(host) == before


def test_a_dry_run_of_down_prints_what_would_be_removed_or_the_guests_that_prevent_it(
    host: Hypervisor,
) -> None:
    hook(host, "up")
    relay = host.tproxy("status").stdout.split()[-1]
    before = state(host)
    assert hook(host, "down", "--dry-run") == [
        "delete map and guards of br0",
        f"end relay one_tproxy_br0, process {relay}",
        "delete link br0b",
        "remove namespace one_tproxy_br0",
        "delete those of the tables one_tproxy that are empty then",
        "end the daemon one_tproxy, unless it is a service or keeps a watcher",
    ]
    assert state(host) == before

    guest = host.add_guest("guest", "br0")
    done = host.tproxy("hook", "down", "--bridge", "br0", "--dry-run", check=False)
    assert (done.returncode, done.stdout) == (EXIT_IN_USE, "")
    assert done.stderr == f"tproxy: bridge br0 is in use by {guest.port}: left alone\n"
    assert hook(host, "down", "--dry-run", "--force")


def test_a_dry_run_prints_the_watcher_that_the_daemon_would_start(host: Hypervisor) -> None:
    host.write(CONFIG, "tproxy_watch: true\n" + host.path(CONFIG).read_text())
    said = hook(host, "up", "--dry-run")
    assert said[said.index("start the daemon one_tproxy") + 1] == "start the watcher tproxy-watch"
    hook(host, "up")
    for _ in eventually():
        if "tproxy-watch" in host.run("ps", "-eo", "args").stdout:
            break
    assert hook(host, "up", "--dry-run") == []


def test_a_closed_output_pipe_causes_no_message(host: Hypervisor) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    up = [sys.executable, "-m", "tproxy", "hook", "up", "--bridge", "br0", "--config", CONFIG, "--dry-run"]
    done = host.popen(*up, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.communicate()[1], done.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("up", "--bridge", "nobr", "--config", CONFIG), "bridge nobr does not exist"),
        (("up", "--bridge", "br0", "--config", "/run/none"), "/run/none"),
        (("down", "--bridge", "a;b"), "may hold only letters"),
    ],
)
def test_a_dry_run_refuses_what_a_hook_refuses(
    host: Hypervisor, arguments: tuple[str, ...], said: str
) -> None:
    before = state(host)
    done = host.tproxy("hook", *arguments, "--dry-run", check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""
    assert state(host) == before
