"""Routes to addresses that the gateway reaches, and what a gateway refuses and counts."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import ENDPOINTS
from tests.netns.inward.site import Site
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.lab import asking
from tproxy.lab.hypervisor import Hypervisor
from tproxy.proxy_protocol import SIGNATURE

CONFIG = """
tproxy_gateway_ranges: [10.9.0.0/24, 'fd00:9::/64']
tproxy_routes:
- {id: page, addr: 10.9.0.2, port: 80, port_tls: 443, domain: page.example.net}
- {id: six, addr: 'fd00:9::2', port: 80, domain: six.example.net}
- {id: inner, addr: 10.9.0.2, port: 80, domain: ended.example.com, tls: terminate}
- {id: port, addr: 10.9.0.2, port: 7, gateway_port: 10001}
- {id: told, addr: 10.9.0.2, port: 7, gateway_port: 10002, proxy_protocol: v2}
- {id: outside, addr: 10.8.0.2, port: 80, domain: outside.example.net}
- {id: own, addr: 10.9.0.1, port: 80, domain: own.example.net}
"""


@pytest.fixture(scope="module")
def site(real_kernel: None) -> Iterator[Site]:
    """A gateway beside a machine at 10.9.0.2 and fd00:9::2."""
    with Hypervisor() as host:
        host.ip(
            *("netns add machine", "link add m0 type veth peer name eth0 netns machine"),
            *("address add 10.9.0.1/24 dev m0", "address add fd00:9::1/64 dev m0 nodad", "link set m0 up"),
        )
        host.ip(
            *(
                "link set lo up",
                "address add 10.9.0.2/24 dev eth0",
                "address add fd00:9::2/64 dev eth0 nodad",
            ),
            "link set eth0 up",
            netns="machine",
        )
        for address in ("10.9.0.2", "fd00:9::2"):
            page = ("python3", "-m", "tproxy.lab.inside", "answer", address, "80", "machine")
            host.serve(*page, netns="machine")
        host.serve(sys.executable, str(ENDPOINTS), "echo", "10.9.0.2", "7", netns="machine")
        yield Site(host, CONFIG)


def test_routes_lead_to_addresses_within_the_ranges_that_the_gateway_allows(site: Site) -> None:
    assert site.curl("http://page.example.net/").stdout == "machine"
    assert site.curl("https://ended.example.com/").stdout == "machine"
    for port, begins in (("10001", b"hello"), ("10002", SIGNATURE)):
        _, data = site.host.run(*program("said_by_port", port)).stdout.split()
        assert bytes.fromhex(data).startswith(begins)


def test_route_list_and_test_know_addresses(site: Site) -> None:
    listed = {line.split()[0]: line for line in site.tproxy("route", "list").stdout.splitlines()}
    assert "10.9.0.2:443" in listed["page/tls"]
    assert listed["six"].endswith("by HAProxy")
    assert "good  addr: accepts at [fd00:9::2]:80, after " in site.tproxy("route", "test", "six").stdout
    shut = site.tproxy("route", "test", "page/tls", check=False)
    assert shut.returncode == 1
    assert "bad   addr: 10.9.0.2:443: Connection refused (" in shut.stdout


def test_clients_of_ipv4_reach_ipv6_and_clients_of_ipv6_reach_ipv4(site: Site) -> None:
    assert site.curl("http://six.example.net/").stdout == "machine"
    by_ipv6 = ("--resolve", "page.example.net:80:[::1]")
    assert site.curl("http://page.example.net/", *by_ipv6).stdout == "machine"


def test_addresses_that_are_not_allowed_have_no_route_and_are_named(site: Site) -> None:
    said = site.up().stderr
    assert "9: tproxy_routes: outside: addr 10.8.0.2 is not within tproxy_gateway_ranges" in said
    assert "10: tproxy_routes: own: addr 10.9.0.1 is an address of the gateway itself" in said
    for name in ("outside", "own"):
        assert site.curl(f"http://{name}.example.net/").stdout == "no such site"


def test_a_route_ends_when_it_expires_also_when_nobody_applies_anything(site: Site) -> None:
    end = int(time.time()) + 5
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    brief = f"- {{id: brief, addr: 10.9.0.2, port: 80, domain: brief.example.net, expires: '{moment}'}}\n"
    site.configure(CONFIG + brief)
    site.up()
    for _ in eventually():
        if site.curl("http://brief.example.net/", "-o", "/dev/null", "-w", "%{http_code}").stdout == "404":
            break
    assert time.time() >= end
    site.configure(CONFIG)
    site.up()


def test_unknown_names_and_a_name_behind_the_first_record_are_refused_and_counted(site: Site) -> None:
    """HAProxy reads one TLS record; a ClientHello may have several."""
    before = refused(site)
    assert site.curl("https://unknown.example.net/").returncode != 0
    with asking.inside(Path(f"/proc/{site.host.pid}/ns/net")):
        assert said_to(in_two_records(hello("ended.example.com"), 60)) == b""
        assert said_to(in_two_records(hello("ended.example.com"), 400))[:1] == b"\x16"
    after = refused(site)
    assert after["no_name"] == before["no_name"] + 1
    assert after["no_route"] == before["no_route"] + 1
    shown = site.tproxy("gateway", "status").stdout
    assert f"refused: {after['no_name']} (no TLS, or no name in the first record of the ClientHello)" in shown


def refused(site: Site) -> dict[str, int]:
    found: dict[str, int] = json.loads(site.tproxy("gateway", "status", "--json").stdout)["refused"]
    return found


def hello(name: str) -> bytes:
    """Return the ClientHello that OpenSSL would send, in one record."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a peer")


def in_two_records(record: bytes, length: int) -> bytes:
    """Cut a record in two behind this many bytes, as RFC 8446, 5.1, allows."""
    parts = record[5 : 5 + length], record[5 + length :]
    return b"".join(record[:3] + len(part).to_bytes(2, "big") + part for part in parts)


def said_to(data: bytes) -> bytes:
    """Return what the gateway says first to this; nothing for a reset too."""
    with socket.create_connection(("127.0.0.1", 443)) as sock:
        sock.sendall(data)
        try:
            return sock.recv(100)
        except ConnectionResetError:
            return b""
