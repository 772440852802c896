"""Debian's cloud-init, unmodified, in guests of two networks that have the same address.

It asks 169.254.169.254 as in a cloud. A metadata server tells the guests apart by the PROXY header alone.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.netns.program import program
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

ROOT = Path(__file__).parents[3]
TREE = ROOT / "build" / "cloud-init"
GUEST = Path(__file__).parents[1] / "programs" / "cloud_guest.sh"
ENDPOINT = "10.11.12.13"
CONFIG = f"""
tproxy:
- service_addr: 169.254.169.254
  service_port: 80
  remote_addr: {ENDPOINT}
  remote_port: 8775
  proxy_protocol: v2
"""


@pytest.fixture(autouse=True)
def cloud_init() -> None:
    if not TREE.exists():
        reason = "needs cloud-init, which .ci/setup unpacks"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def boot(host: Hypervisor, network: str, bridge: str) -> subprocess.Popen[str]:
    """Boot a guest of the network at this bridge."""
    guest = host.add_guest(network, bridge, "10.0.0.5/24", route=False)
    guest.ip("route add 169.254.169.254 dev eth0")
    own = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child")
    return guest.popen(*own, str(GUEST), str(TREE), f"/run/guest-{network}", stdout=subprocess.PIPE)


def test_cloud_init_gets_instance_host_name_and_user_data_of_its_own_network(hypervisor: Hypervisor) -> None:
    hypervisor.write("/run/tproxy.yaml", CONFIG)
    hypervisor.add_endpoint(ENDPOINT, 8775, program=program("metadata"))
    networks = {"blue": "br0", "red": "br1"}
    for network, bridge in networks.items():
        hypervisor.add_bridge(bridge)
        call = ("--bridge", bridge, "--network", network, "--config", "/run/tproxy.yaml")
        hypervisor.tproxy("hook", "up", *call)
    guests = {network: boot(hypervisor, network, bridge) for network, bridge in networks.items()}
    for network, guest in guests.items():
        said = guest.communicate(timeout=10 * PATIENCE)[0]
        assert said.splitlines() == [
            f"instance i-{network}",
            f"hostname {network}-guest",
            f"told {network}",
            f"ran {network}",
            f"key {network}-key",
            "status status: done",
        ], said
