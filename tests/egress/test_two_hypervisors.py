"""A hypervisor that uses the egress node of another: certificates on both sides, and claims are checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.egress.node import PROGRAMS, Node
from tests.egress.up import TPROXY, up
from tests.netns.waiting import eventually
from tproxy import proxy_protocol
from tproxy.lab.egress.guest import CONFIG, SERVICES, Guest
from tproxy.lab.hypervisor import Hypervisor

# Both hypervisors have a network "build", and both say that they are hv1.
POLICY = """\
listen: {hosts: 8444}
rules:
  - {networks: [build], hypervisors: [hv1], get: ["https://host.example/near/*"]}
  - {networks: [build], hypervisors: [hv2], get: ["https://host.example/far/*"]}
  - {networks: [lab], get: ["https://host.example/*"]}
"""
# Through the link, each service has the header, and the resolver answers over TCP only.
FAR_SERVICES = SERVICES.replace("remote_port: 8480", "remote_port: 8480, proxy_protocol: v2").replace(
    "protocol: [tcp, udp]", "proxy_protocol: v2"
)
NODE, FAR = "10.77.0.1", "10.77.0.2"
NEAR_FILE, FAR_FILE = "https://host.example/near/a", "https://host.example/far/a"


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Node]:
    with Node(POLICY, mirror=True, squid=False, hypervisor=True) as node:
        node.site("host.example", "/near/a", "near\n")
        node.site("host.example", "/far/a", "far\n")
        node.host.write(CONFIG, SERVICES)
        up(node)
        for _ in eventually():
            if node.host.run("ss", "-Hltn", "sport = 8444").stdout:
                break
        yield node


@pytest.fixture(scope="module")
def far(node: Node) -> Iterator[Hypervisor]:
    """The other hypervisor, which may claim the network "build" and no other."""
    with Hypervisor() as host:
        node.host.add_cable(host, "cable")
        node.host.ip(f"address add {NODE}/24 dev cable")
        host.ip(f"address add {FAR}/24 dev cable")
        words = ("host", "add", "hv2", "--network", "build", "--node", f"{NODE}:8444")
        link = node.run(*TPROXY, *words, "--root", str(node.root)).stdout
        root = node.root / "far"
        (root / "etc").mkdir(parents=True)
        (root / "etc/egress-link.pem").write_text(link)
        with (root / "link.log").open("w") as log:
            host.popen(*TPROXY, "run", "link", "--root", str(root), stdout=log, stderr=log)
        for _ in eventually():
            if host.run("ss", "-Hltn", "sport = 3128").stdout:
                break
        host.write(CONFIG, FAR_SERVICES)
        yield host


@pytest.fixture(scope="module")
def guest(node: Node, far: Hypervisor) -> Guest:
    found = Guest(far, node.root, "far1", "build")
    found.set_up()  # the scripts come through the link as well
    return found


def test_guests_of_networks_of_one_name_have_the_policy_of_their_hypervisor(node: Node, guest: Guest) -> None:
    assert guest.sh(f"curl -sS {FAR_FILE}").stdout == "far\n"
    assert "no rule allows" in guest.sh(f"curl -sS {NEAR_FILE}").stdout
    near = Guest(node.host, node.root, "near1", "build")
    near.set_up()
    assert near.sh(f"curl -sS {NEAR_FILE}").stdout == "near\n"
    assert "no rule allows" in near.sh(f"curl -sS {FAR_FILE}").stdout


def test_a_guest_that_knows_no_proxy_gets_there_too(guest: Guest) -> None:
    get = "curl -sS --noproxy '*' --connect-to host.example:443:169.254.16.9:443"
    assert guest.sh(f"{get} {FAR_FILE}").stdout == "far\n"


def test_a_network_that_the_certificate_does_not_list_gets_nothing(node: Node, far: Hypervisor) -> None:
    lab = Guest(far, node.root, "far2", "lab")
    assert lab.sh("curl -sS -m 20 http://169.254.16.9:8480/setup", check=False).returncode != 0
    done = lab.sh(f"curl -sSk -m 20 --proxy http://169.254.16.9:3128 {FAR_FILE}", check=False)
    assert done.returncode != 0
    assert "far\n" not in done.stdout
    assert "may not claim network 'lab'" in (node.root / "up.log").read_text()


def test_without_a_certificate_nobody_gets_to_the_node(far: Hypervisor) -> None:
    forged = proxy_protocol.encode(
        ("10.0.0.9", 1), ("169.254.16.9", 3128), {proxy_protocol.OF_NETWORK: "build"}
    )
    request = b"GET http://host.example/ HTTP/1.1\r\nHost: host.example\r\n\r\n"
    raw = (sys.executable, str(PROGRAMS / "raw.py"), f"{NODE}:8444", (forged + request).hex())
    assert "HTTP/1.1" not in far.run(*raw, check=False).stdout
    done = far.run("curl", "-sSk", "-m", "20", f"https://{NODE}:8444/", check=False)
    assert done.returncode != 0
    assert not done.stdout


def test_only_workers_may_use_the_link(far: Hypervisor) -> None:
    words = ("setpriv", "--reuid=65534", "--clear-groups", "curl", "-sS", "-m", "5", "http://127.0.0.1:3128/")
    assert far.run(*words, check=False).returncode == 7


def test_a_host_that_was_removed_is_refused(node: Node, guest: Guest) -> None:
    assert node.run(*TPROXY, "host", "list", "--root", str(node.root)).stdout == "hv2: build\n"
    node.run(*TPROXY, "host", "remove", "hv2", "--root", str(node.root))
    assert guest.sh(f"curl -sS -m 20 {FAR_FILE}", check=False).returncode != 0
