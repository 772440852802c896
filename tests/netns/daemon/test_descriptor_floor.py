"""Nothing starts where processes may have too few descriptors to serve anybody; one line says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.netns.conftest import ENDPOINTS
from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.talk import Talk
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.kernel.limits import FLOOR
from tproxy.lab.hypervisor import Hypervisor

CONFIG = "/run/tproxy.yaml"
UP = ("hook", "up", "--bridge", "br0", "--config", CONFIG)
REFUSED = (
    "the limit of open descriptors is 256 (RLIMIT_NOFILE, ulimit -Hn), "
    "but the daemon and its workers need at least 512"
)


def limited(host: Hypervisor, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tproxy where a process may have so many descriptors."""
    command = f"ulimit -n {limit}; exec {sys.executable} -m tproxy {' '.join(arguments)}"
    return host.run("sh", "-c", command, check=False)


def test_a_hook_that_would_start_a_daemon_with_256_descriptors_fails_and_leaves_nothing(
    hypervisor: Hypervisor,
) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.write(CONFIG, f"tproxy: [{{remote_addr: {ENDPOINT}, remote_port: 80}}]\n")
    done = limited(hypervisor, 256, *UP)
    assert (done.returncode, done.stderr) == (1, f"tproxy: {REFUSED}\n")
    assert hypervisor.tproxy("status").stdout == ""
    assert hypervisor.run("nft", "list", "ruleset").stdout == ""
    assert "one_tproxy" not in hypervisor.run("ip", "netns", "list").stdout


@pytest.mark.parametrize("command", ["restart", "daemon"])
def test_a_new_daemon_with_256_descriptors_takes_over_from_none(hypervisor: Hypervisor, command: str) -> None:
    lab = OneBridge(hypervisor)
    before = lab.pids()
    done = limited(hypervisor, 256, command)
    assert (done.returncode, done.stderr) == (1, f"tproxy: {REFUSED}\n")
    assert lab.pids() == before
    assert lab.ask() == "one"


def test_where_a_daemon_runs_a_hook_needs_few_descriptors(hypervisor: Hypervisor) -> None:
    lab = OneBridge(hypervisor)
    assert (limited(hypervisor, 64, *UP).returncode, lab.ask()) == (0, "one")


def test_with_the_fewest_descriptors_idle_connections_block_nobody(hypervisor: Hypervisor) -> None:
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
    hypervisor.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
    hypervisor.add_endpoint(ENDPOINT, 8080, "one")
    entries = "".join(f"- {{remote_addr: {ENDPOINT}, remote_port: {port}}}\n" for port in (9000, 8080))
    hypervisor.write(CONFIG, f"tproxy_workers: 1\ntproxy:\n{entries}")
    for bridge in ("br0", "br1"):
        done = limited(hypervisor, FLOOR, "hook", "up", "--bridge", bridge, "--config", CONFIG)
        assert (done.returncode, done.stderr) == (0, "")
    guest, other = (hypervisor.add_guest(f"guest-{bridge}", bridge) for bridge in ("br0", "br1"))
    idle = [Talk(guest, 9000) for _ in range(8)]
    assert other.get(SERVICE_ADDRESS, 8080) == "one"
    assert [each.say("still here") for each in idle] == ["still here"] * len(idle)
