"""Names by PowerDNS's API: a gateway whose routes have names, real PowerDNS with sqlite, and dig."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.inward.names.gateway_site import Site
from tests.inward.names.name_servers import API, API_KEY_FILE, api, start_powerdns, status
from tests.netns.waiting import await_equal
from tproxy.lab.hypervisor import Hypervisor

NS = "127.0.0.53"

ROUTES = """
tproxy_routes:
- {id: www, network: blue, guest_addr: 10.0.0.5, port: 80, domain: www.apps.example.com}
- {id: wild, network: blue, guest_addr: 10.0.0.5, port: 80, domain: '*.wild.apps.example.com'}
- {id: away, network: blue, guest_addr: 10.0.0.6, port: 80, domain: away.apps.example.com}
"""
ZONE = f"""
tproxy_zones:
- domain: apps.example.com
  powerdns: {API}
  key_file: {API_KEY_FILE}
  gateways:
  - {{name: gw1, addr: [192.0.2.1, '2001:db8::1'], nameservers: ns1.apps.example.com}}
"""


def rrset(name: str, type_: str, *values: str) -> dict[str, object]:
    records = [{"content": each, "disabled": False} for each in values]
    kind = "REPLACE" if values else "DELETE"
    return {"name": f"{name}.", "type": type_, "ttl": 60, "changetype": kind, "records": records}


def change(site: Site, *rrsets: dict[str, object]) -> None:
    """Change the zone as an operator does."""
    assert api(site.host, "PATCH", "/apps.example.com.", json.dumps({"rrsets": rrsets})) == ""


servers: dict[int, subprocess.Popen[str]] = {}


@pytest.fixture(scope="module")
def site(name_servers: None) -> Iterator[Site]:
    with Hypervisor() as host:
        servers[host.pid] = start_powerdns(host, NS)
        site = Site(host, NS, ROUTES + ZONE)
        site.said = site.apply().stdout
        yield site


def test_names_of_routes_have_the_addresses_of_the_gateway(site: Site) -> None:
    assert "apps.example.com: made at PowerDNS" in site.said
    assert site.dig("www.apps.example.com", "A") == ["192.0.2.1"]
    assert site.dig("www.apps.example.com", "AAAA") == ["2001:db8::1"]
    assert site.dig("any.thing.wild.apps.example.com", "A") == ["192.0.2.1"]
    assert site.dig("apps.example.com", "NS") == ["ns1.apps.example.com."]
    assert site.dig("ns1.apps.example.com", "A") == ["192.0.2.1"]


def test_a_name_with_nothing_healthy_behind_it_has_no_address_and_no_wildcard_answers_for_it(
    site: Site,
) -> None:
    assert "away.apps.example.com: withdrawn: route away" in site.said
    found, _, said = status(site.host, NS, "away.apps.example.com", "A")
    assert found == "NOERROR"
    assert "ANSWER: 0" in said


def test_a_second_pass_changes_nothing(site: Site) -> None:
    serial = site.dig("apps.example.com", "SOA")
    site.apply()
    assert site.dig("apps.example.com", "SOA") == serial


def test_a_route_that_is_gone_takes_its_name_along_and_leaves_what_others_made(site: Site) -> None:
    site.apply()
    change(
        site,
        rrset("mail.apps.example.com", "A", "198.51.100.1"),
        rrset("www.apps.example.com", "MX", "10 mail.apps.example.com."),
    )
    site.configure("tproxy_routes: []\n" + ZONE)
    site.apply()
    assert site.dig("www.apps.example.com", "A") == []
    assert site.dig("www.apps.example.com", "MX") == ["10 mail.apps.example.com."]
    assert site.dig("mail.apps.example.com", "A") == ["198.51.100.1"]
    assert "_tproxy.www" not in api(site.host, "GET", "/apps.example.com.")
    site.configure(ROUTES + ZONE)
    site.apply()
    assert site.dig("www.apps.example.com", "A") == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("type_", "value", "said"),
    [("A", "198.51.100.7", "A 198.51.100.7 is there"), ("CNAME", "elsewhere.example.com.", "is a CNAME")],
)
def test_a_name_that_somebody_else_made_is_left_alone(site: Site, type_: str, value: str, said: str) -> None:
    name = f"{type_.lower()}.apps.example.com"
    change(site, rrset(name, type_, value))
    site.configure(
        ROUTES + f"- {{id: x, network: blue, guest_addr: 10.0.0.5, port: 80, domain: {name}}}\n" + ZONE
    )
    site.tproxy("refresh")
    site.tproxy("gateway", "up")
    assert f"{name}: {said}" in site.apply().stdout
    assert site.dig(name, type_) == [value]
    site.configure(ROUTES + ZONE)
    site.apply()
    assert site.dig(name, type_) == [value]


def test_one_record_that_powerdns_refuses_applies_nothing(site: Site) -> None:
    serial = site.dig("apps.example.com", "SOA")
    bad = {
        "rrsets": [
            rrset("good.apps.example.com", "A", "192.0.2.9"),
            rrset("bad.apps.example.com", "A", "none"),
        ]
    }
    assert "error" in api(site.host, "PATCH", "/apps.example.com.", json.dumps(bad))
    assert site.dig("good.apps.example.com", "A") == []
    assert site.dig("apps.example.com", "SOA") == serial


def test_a_server_that_is_down_is_named_and_tried_again(site: Site) -> None:
    running = site.keep("gw1")
    server = servers.pop(site.host.pid)
    server.kill()
    server.wait()
    await_equal(lambda: "does not answer: Connection refused: tried again later" in running.said, True)
    site.configure(ROUTES.replace("www.apps", "new.apps") + ZONE)
    start_powerdns(site.host, NS)
    await_equal(lambda: site.dig("new.apps.example.com", "A"), ["192.0.2.1"])
    await_equal(lambda: site.dig("www.apps.example.com", "A"), [])
    assert running.said.count("does not answer") == 1
    running.end()
    site.configure(ROUTES + ZONE)
    site.apply()
