"""Routes in the configuration file."""

from __future__ import annotations

import pytest

from tests.unit.config.files import Load
from tproxy.config.routes import routes_for
from tproxy.model import Network

GOOD = "{id: web, network: blue, guest_addr: 10.0.0.5, port: 80}"


def test_a_route_for_tls_with_a_port_of_its_own_is_a_second_one(loaded: Load) -> None:
    found = loaded(
        "tproxy_routes: [{id: web, network: blue, guest_addr: 10.0.0.5, port: 80, port_tls: 443, "
        "domain: Www.example.com, expires: 2030-01-01, proxy_protocol: v2, max_connections_per_client: 3}]\n"
    )
    assert found.warnings == ()
    routes, problems = routes_for(found.routes, [Network("blue")])
    assert problems == []
    assert {each.id: (each.endpoint.port, each.expires) for each in routes.values()} == {
        "web": (80, 1893456000),
        "web/tls": (443, 1893456000),
    }
    assert {each.service.max_connections_per_guest for each in routes.values()} == {3}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{id: web, network: blue, port: 80}", "web: guest_addr, guest_mac or bridge_port is needed"),
        ("{id: web, network: blue, guest_addr: 224.0.0.5, port: 80}", "guest_addr 224.0.0.5 is no address"),
        (
            "{id: web, network: blue, guest_addr: 169.254.16.9, port: 80}",
            "is no address that a guest can have",
        ),
        ("{id: web, network: blue, guest_addr: 10.0.0.5, port: 0}", "port '0' is not a port, 1 to 65535"),
        ("{id: a/b, network: blue, guest_addr: 10.0.0.5, port: 80}", "id 'a/b' is not up to 64 letters"),
        ("{id: web, network: blue, guest_mac: 5, port: 80}", "guest_mac '5' is not a MAC address"),
        (
            "{id: web, network: blue, guest_addr: 10.0.0.5, port: 80, expires: soon}",
            "expires 'soon' is not a date",
        ),
        ("{id: web, network: blue, guest_addr: 10.0.0.5, port: 80, tls: maybe}", "tls 'maybe' is not one of"),
        (
            "{id: web, network: blue, guest_addr: 10.0.0.5, port: 80, tls: terminate, port_tls: 443}",
            "port_tls is for tls: passthrough",
        ),
        ("{id: web, port: 80}", "web: network, node or addr is needed"),
        ("{id: web, guest_addr: 10.0.0.5, port: 80}", "guest_addr is for a guest, whose network is missing"),
        ("{id: web, addr: 10.1.0.1, node: n, port: 80}", "addr and node exclude each other"),
        ("{id: web, node: '*', port: 80}", "node * is for guests"),
        ("{id: web, addr: 10.1.0.1, network: n, port: 80}", "addr and network exclude each other"),
        ("{id: web, addr: 10.1.0.1, port: 80, idle_timeout: 5}", "idle_timeout is for routes to guests"),
        ("{id: web, addr: 127.0.0.1, port: 80}", "addr 127.0.0.1 is loopback"),
        ("{id: web, addr: '::1', port: 80}", "addr ::1 is loopback"),
        ("{id: web, addr: '::ffff:127.0.0.1', port: 80}", "stands for an IPv4 address"),
        ("{id: web, addr: 169.254.16.9, port: 80}", "is a link-local address"),
        ("{id: web, addr: 'fe80::1', port: 80}", "is a link-local address"),
        ("{id: web, addr: 10.1, port: 80}", "addr 10.1 is no IPv4 or IPv6 address"),
        (f"{GOOD}, {GOOD}", "the id is that of the entry in line 1"),
        (
            "{id: a, network: n, guest_addr: 10.0.0.5, port: 80, domain: a.org}, "
            "{id: b, network: n, guest_addr: 10.0.0.6, port: 80, domain: A.org}",
            "domain a.org is that of route a in line 1",
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_skipped_with_one_line(loaded: Load, entry: str, said: str) -> None:
    (warning,) = loaded(f"tproxy_routes: [{entry}]\n").warnings
    assert said in warning.text
    assert warning.text.endswith("entry skipped")


def test_macs_of_digits_and_ids_of_digits_are_text(loaded: Load) -> None:
    found = loaded("tproxy_routes: [{id: 7, network: 0, guest_mac: 52:54:00:12:34:56, port: 80}]\n")
    assert found.warnings == ()
    assert (found.routes[0].id, found.routes[0].guest_mac) == ("7", "52:54:00:12:34:56")


def test_a_route_is_for_its_network_also_when_it_has_expired(loaded: Load) -> None:
    found = loaded(f"tproxy_routes: [{GOOD[:-1]}, expires: 2001-01-01}}]\n")
    (route,) = routes_for(found.routes, [Network("blue")])[0].values()
    assert route.has_expired(978307200)
    assert not route.has_expired(978307199)
    assert routes_for(found.routes, [Network("red")]) == ({}, [])


def test_on_a_bridge_with_several_networks_a_route_names_the_guests_mac(loaded: Load) -> None:
    found = loaded(f"tproxy_routes: [{GOOD}]\n")
    routes, (problem,) = routes_for(found.routes, [Network("blue"), Network("red")])
    assert routes == {}
    assert "its bridge has several networks: guest_mac is needed" in problem.text


def test_of_two_owners_who_wish_for_one_domain_both_stay_since_the_gateway_judges(loaded: Load) -> None:
    entries = ", ".join(
        f"{GOOD[:-1]}, domain: a.org, owner: {each}}}".replace("web", each) for each in ("x", "y")
    )
    found = loaded(f"tproxy_routes: [{entries}]\n")
    assert not found.warnings
    assert [each.owner for each in found.routes] == ["x", "y"]
