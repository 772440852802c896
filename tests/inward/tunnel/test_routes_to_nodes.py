"""Routes of a gateway that lead through tunnels: to a port of a node, and to a guest of a node."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.inward.tunnel.sites import World, signalled, world
from tests.netns.conftest import ENDPOINTS
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy import proxy_protocol

GUEST = "{id: guest, network: blue, guest_addr: 10.0.0.5, port: 80, domain: guest.example.com"
ROUTES = f"""
tproxy_routes:
- {GUEST}, node: site-a}}
- {{id: page, node: site-a, port: 8080, domain: page.example.com}}
- {{id: told, node: site-a, port: 7, gateway_port: 10007, proxy_protocol: v2}}
- {{id: off, node: site-b, port: 8080, domain: off.example.com}}
- {{id: hidden, node: site-a, port: 22, domain: hidden.example.com}}
- {{id: over, node: site-a, port: 8080, domain: over.example.com, expires: 2001-01-01}}
tproxy_tunnels:
- {{nodes: 'site-*', offer: [in, 'page:8080', 'echo:7'], routes: true}}
- {{nodes: 'site-*', offer: ssh}}
"""


@pytest.fixture(scope="module")
def net(real_kernel: None) -> Iterator[World]:
    """A gateway, and a node that has a guest with a web server, and a web server of its own."""
    with world(1) as found:
        found.write_policy(ROUTES)
        site = found.sites[0]
        site.host.add_bridge("br0")
        site.host.add_guest("one", "br0", "10.0.0.5/24")
        answer = ("python3", "-m", "tproxy.lab.inside", "answer")
        site.host.serve(*answer, "10.0.0.5", "80", "the guest", netns="one")
        site.host.serve(*answer, "127.0.0.1", "8080", "the node")
        site.host.serve(sys.executable, str(ENDPOINTS), "echo", "127.0.0.1", "7")
        site.host.write("/run/etc/tproxy.yaml", f"tproxy_routes:\n- {GUEST}}}\n")
        site.tproxy("hook", "up", "--bridge", "br0", "--network", "blue")
        offers = {"ssh": "127.0.0.1:22", "in": "", "page": "127.0.0.1:8080", "echo": "127.0.0.1:7"}
        found.serve()
        site.configure(found.token("site-*", "--approve"), name="site-a", offer=json.dumps(offers))
        site.start()
        found.await_offer("site-a", "in")
        found.tproxy("gateway", "up", "--ports", "10000-10009")
        yield found


def curl(net: World, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask for a page at the gateway, as a client at the desk."""
    url = ("--resolve", f"{name}:80:198.51.100.1", f"http://{name}/")
    return net.desk.run("curl", "-sS", "--max-time", "60", *options, *url, check=False)


def test_a_route_leads_to_a_guest_of_a_node_behind_nat(net: World) -> None:
    assert curl(net, "guest.example.com").stdout == "the guest"
    assert net.await_audit("ended", who="routes", node="site-a", offer="in")


def test_a_route_leads_to_a_port_of_a_node(net: World) -> None:
    assert curl(net, "page.example.com").stdout == "the node"


def test_a_node_is_told_the_clients_address(net: World) -> None:
    """rathole-org/rathole#142: the client's address is lost."""
    port, data = net.gateway.run(*program("said_by_port", "10007")).stdout.split()
    start = proxy_protocol.START + proxy_protocol.length(bytes.fromhex(data)[: proxy_protocol.START])
    header = proxy_protocol.decode(bytes.fromhex(data)[:start])
    assert (header.source, header.destination) == (("127.0.0.1", int(port)), ("127.0.0.1", 10007))
    assert bytes.fromhex(data)[start:] == b"hello"


def test_a_route_to_a_node_that_is_not_here_or_not_for_routes_fails_at_once(net: World) -> None:
    for name in ("off.example.com", "hidden.example.com"):
        assert curl(net, name, "-o", "/dev/null", "-w", "%{http_code}").stdout == "502"
    assert net.await_audit("refused", "node site-b is unknown", who="routes")
    assert net.await_audit("refused", "routes may not lead to /tunnel/site-a/ssh", who="routes")
    assert curl(net, "over.example.com").stdout != "the node"


def test_each_hop_of_a_route_to_a_node_is_shown(net: World) -> None:
    for id_ in ("page", "guest"):
        assert "good  node: accepts at site-a" in net.tproxy("route", "test", id_).stdout
    done = net.tproxy("route", "test", "off", check=False)
    assert done.returncode == 1
    assert "bad   node: site-b: node site-b is unknown" in done.stdout


def test_a_gateway_that_was_killed_serves_its_nodes_again(net: World) -> None:
    assert net.process is not None
    signalled(net.process, signal.SIGKILL)
    net.process.wait()
    for _ in eventually():
        if curl(net, "page.example.com", "-o", "/dev/null", "-w", "%{http_code}").stdout == "503":
            break
    net.serve()
    net.await_offer("site-a", "page")
    assert curl(net, "page.example.com").stdout == "the node"
