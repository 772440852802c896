"""Routes: what leads from outside to guests, from the configuration to the guest's answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.inward.streams import ask, await_in_log, connect, everything, start
from tproxy.lab.hypervisor import Hypervisor

CONFIG = """
tproxy: [{service_port: 5030, remote_addr: 10.11.12.13, remote_port: 8080}]
tproxy_routes:
- {id: blue, network: blue, guest_addr: 10.0.0.5, port: 80}
- {id: red, network: red, guest_addr: 10.0.0.5, port: 80}
- {id: echo, network: blue, guest_addr: 10.0.0.5, port: 7}
- {id: closed, network: blue, guest_addr: 10.0.0.5, port: 81}
- {id: gone, network: blue, guest_addr: 10.0.0.77, port: 80}
- {id: old, network: blue, guest_addr: 10.0.0.5, port: 80, expires: 2001-01-01}
"""


@pytest.fixture(scope="module")
def host(real_kernel: None) -> Iterator[Hypervisor]:
    """Two tenants on two bridges, each with a guest at 10.0.0.5 that serves a page."""
    with Hypervisor() as stand_in:
        config = stand_in.write("/run/tproxy.yaml", CONFIG)
        for bridge, network in (("br0", "blue"), ("br1", "red")):
            stand_in.add_bridge(bridge)
            guest = stand_in.add_guest(network, bridge)
            stand_in.serve(
                *("python3", "-m", "tproxy.lab.inside", "answer", "10.0.0.5", "80", network), netns=network
            )
            if network == "blue":
                start(guest, "echo", 7)
            stand_in.tproxy("hook", "up", "--bridge", bridge, "--network", network, "--config", config)
        yield stand_in


def test_two_tenants_have_the_same_guest_address_on_two_bridges(host: Hypervisor) -> None:
    assert ask(host, "blue") == "blue"
    assert ask(host, "red") == "red"
    await_in_log(host, "route=red bridge=br1 client=198.51.100.7:40000 guest=10.0.0.5:80 ")


def test_each_direction_ends_by_itself(host: Hypervisor) -> None:
    with connect(host, "echo", b"one") as stream:
        assert stream.recv(100) == b"one"
        stream.sendall(b"x" * 1_000_000)
        stream.shutdown(1)
        assert len(everything(stream)) == 1_000_000
    await_in_log(host, "route=echo bridge=br0 client=198.51.100.7:40000 guest=10.0.0.5:7 to_guest=1000003")


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ("closed", "route=closed bridge=br0 client=198.51.100.7:40000 guest=10.0.0.5:81 "),
        ("gone", "end=not_there"),
        ("old", "a stream for route 'old' was refused: there is no such route"),
        ("nothing", "a stream for route 'nothing' was refused: there is no such route"),
    ],
)
def test_a_client_learns_at_once_that_the_guest_cannot_be_reached(
    host: Hypervisor, route: str, why: str
) -> None:
    assert ask(host, route) == ""
    await_in_log(host, why)
