"""A service on a machine: a bridge with one guest, an endpoint that echoes, and the configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from tests.netns.asking import Asking
from tests.netns.conftest import ENDPOINTS
from tests.netns.talk import Talk
from tests.packages.machine import CHECKOUT, Guest, Machine
from tproxy.lab import hypervisor

CONFIG = "tproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n"


class Service:
    """What a guest of the machine sees: a connection that stays open, and one after the other."""

    def __init__(self, machine: Machine, endpoint: subprocess.Popen[str]) -> None:
        self.machine, self.endpoint = machine, endpoint
        self.guest = Guest(machine, "guest", "br0")

    def connect(self) -> None:
        """Open the connection that stays, and let the guest make others from now on."""
        guest = cast(hypervisor.Guest, self.guest)  # only ``popen`` is used
        self.talk = Talk(guest)
        self.asking = Asking(guest, 80)

    def assert_unharmed(self) -> None:
        """Fail the test when the connection was lost, or one that the guest tried in the meantime."""
        assert self.talk.say("still there") == "still there"
        self.asking.go_on(3)
        assert self.asking.end() == []
        self.talk.end()


@contextmanager
def service(machine: Machine) -> Iterator[Service]:
    """Make the bridge, the guest and the endpoint; the bridge is not up yet."""
    machine.sh("ip link add br0 type bridge; ip link set br0 up; ip link set lo up")
    machine.sh("ip address add 10.11.12.13/32 dev lo; mkdir -p /etc/tproxy")
    machine.path("/etc/tproxy/tproxy.yaml").write_text(CONFIG)
    command = (sys.executable, ENDPOINTS, "echo", "10.11.12.13", "80")
    endpoint = machine.popen(*command, stdout=subprocess.PIPE, cwd=CHECKOUT)
    assert endpoint.stdout is not None
    assert endpoint.stdout.readline() == "ready\n"
    try:
        yield Service(machine, endpoint)
    finally:
        endpoint.kill()
        endpoint.wait()
