"""Tunnels: nodes behind NAT enrol, are approved, and are reached by plain ssh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.inward.sites import World, world


@pytest.fixture(scope="module")
def net(real_kernel: None) -> Iterator[World]:
    with world(2) as found:
        found.serve()
        yield found


def test_a_node_waits_for_approval_and_is_then_reached_by_ssh(net: World) -> None:
    site = net.sites[0]
    site.configure(net.token("site-*"), name="site-a", offer="{ssh: '127.0.0.1:22'}")
    site.start()
    net.await_state("site-a", "waiting")
    net.tproxy("node", "approve", "site-a")
    net.await_state("site-a", "up")
    net.await_offer("site-a", "ssh")
    net.add_operator("alice", "site-*")
    assert net.ssh("site-a", "ip", "-o", "-4", "address").stdout.count(site.address) == 1
