"""What the tests of docs/contract.md share: a bridge with an endpoint, the hook, and a shell on the host."""

from __future__ import annotations

import subprocess

from tests.netns.operations.test_hook import CONFIG, ENDPOINT
from tproxy.lab.hypervisor import Hypervisor

FILE = "/run/tproxy.yaml"


def furnish(hypervisor: Hypervisor) -> Hypervisor:
    """Add the bridge br0, an endpoint that says "hello", and a configuration file that leads to it."""
    hypervisor.add_bridge("br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    hypervisor.write(FILE, CONFIG)
    return hypervisor


def hook(host: Hypervisor, bridge: str = "br0", *more: str) -> subprocess.CompletedProcess[str]:
    """Run ``hook up`` with that file."""
    return host.tproxy("hook", "up", "--bridge", bridge, "--config", FILE, *more)


def shell(host: Hypervisor, script: str, netns: str | None = None) -> str:
    """Return what a script prints. Raises ProcessError when one of its commands fails."""
    return host.run("sh", "-euc", script, netns=netns).stdout
