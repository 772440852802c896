"""A guest that moves to another node: the gateway's route follows, as `tproxy fleet places` says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.inward.tunnel.sites import World, world
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Guest

GUEST = "{id: guest, network: blue, guest_addr: 10.0.0.5, port: 80, domain: guest.example.com"
ROUTES = f"""
tproxy_routes:
- {GUEST}, node: '*'}}
tproxy_tunnels:
- {{nodes: 'site-*', offer: in, routes: true}}
"""
PLACES = "/run/places.json"


@pytest.fixture
def net(real_kernel: None) -> Iterator[tuple[World, Guest]]:
    """A gateway and two nodes, the first of which has the guest."""
    with world(2) as found:
        found.write_policy(ROUTES)
        for site in found.sites:
            site.host.add_bridge("br0")
            site.host.write("/run/etc/tproxy.yaml", f"tproxy_routes:\n- {GUEST}}}\n")
        first = found.sites[0].host
        guest = first.add_guest("one", "br0", "10.0.0.5/24")
        first.serve(
            "python3", "-m", "tproxy.lab.inside", "answer", "10.0.0.5", "80", "the guest", netns="one"
        )
        found.serve("--places", PLACES)
        for name, site in zip(("site-a", "site-b"), found.sites, strict=True):
            site.tproxy("hook", "up", "--bridge", "br0", "--network", "blue")
            site.configure(found.token(name, "--approve"), name=name, offer=json.dumps({"in": ""}))
            site.start()
            found.await_offer(name, "in")
        found.tproxy("gateway", "up")
        yield found, guest


def tell(net: World, host: str) -> None:
    """Write what `tproxy fleet places --follow` writes."""
    said = {"version": 1, "routes": {"guest": {"host": host, "since": 1795977100.5}}, "problems": []}
    net.gateway.write(PLACES, json.dumps(said))


def page(net: World) -> str:
    url = ("--resolve", "guest.example.com:80:198.51.100.1", "http://guest.example.com/")
    return net.desk.run("curl", "-sS", "--max-time", "60", *url, check=False).stdout


def test_a_route_follows_its_guest_to_another_node(net: tuple[World, Guest]) -> None:
    found, guest = net
    assert "the guest" not in page(found)  # nobody has said where it is
    tell(found, "site-a")
    for _ in eventually():
        if page(found) == "the guest":
            break
    found.sites[1].host.take_over(guest, found.sites[0].host, "br0")
    tell(found, "site-b")
    for _ in eventually():
        if page(found) == "the guest":
            break
    assert found.await_audit("ended", who="routes", node="site-b", offer="in")
    found.gateway.write(PLACES, "{}")  # damaged: guests are where they were
    for _ in eventually():
        if f"cannot use {PLACES}" in found.log():
            break
    assert page(found) == "the guest"
