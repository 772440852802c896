"""Names by RFC 2136 with TSIG, and several gateways at one server: real BIND, which signs the zone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.inward.names.gateway_site import Site
from tests.inward.names.name_servers import TSIG_FILE, start_bind, start_unbound, status
from tests.netns.waiting import await_equal
from tproxy.lab.hypervisor import Hypervisor

NS = "127.0.0.54"
RESOLVER = "127.0.0.55"
NAME = "www.apps.example.org"
ROUTES = f"""
tproxy_routes:
- {{id: www, network: blue, guest_addr: 10.0.0.5, port: 80, domain: {NAME}}}
- {{id: wild, network: blue, guest_addr: 10.0.0.5, port: 80, domain: '*.wild.apps.example.org'}}
"""
ZONES = f"""
tproxy_zones:
- domain: apps.example.org
  rfc2136: {NS}
  key_file: {TSIG_FILE}
  lease: 5
  gateways:
  - {{name: gw1, addr: [192.0.2.1, '2001:db8::1']}}
  - {{name: gw2, addr: 192.0.2.2}}
"""
BIND_ZONE = """
zone "apps.example.org" {
    type primary;
    file "apps.zone";
    allow-update { key gateways; };
    allow-transfer { key gateways; };
    dnssec-policy default;
    inline-signing no;
};
"""
ZONE_FILE = """$TTL 60
@ IN SOA ns hostmaster 1 3600 600 1209600 30
@ IN NS ns
ns IN A 127.0.0.54
mail IN A 198.51.100.1
"""
BOTH = ["192.0.2.1", "192.0.2.2"]


@pytest.fixture(scope="module")
def site(name_servers: None) -> Iterator[Site]:
    with Hypervisor() as host:
        host.write("/run/bind/apps.zone", ZONE_FILE)
        start_bind(host, NS, BIND_ZONE)
        yield Site(host, NS, ROUTES + ZONES)


def test_each_gateway_has_its_own_addresses_at_a_name(site: Site) -> None:
    site.tproxy("names", "run", "--once", "--gateway", "gw2")
    assert "192.0.2.2" in site.dig(NAME, "A")
    site.apply()
    assert site.dig(NAME, "A") == BOTH
    assert site.dig(NAME, "AAAA") == ["2001:db8::1"]
    assert site.dig("a.wild.apps.example.org", "A") == BOTH
    assert site.dig("mail.apps.example.org", "A") == ["198.51.100.1"]


def test_a_validating_resolver_takes_the_names_of_a_signed_zone(site: Site) -> None:
    site.apply()
    site.tproxy("names", "apply", "--gateway", "gw2")
    anchor = [
        each
        for each in site.tproxy("names", "parent", "apps.example.org").stdout.splitlines()
        if " DS " in each
    ]
    start_unbound(
        site.host,
        RESOLVER,
        f"""    trust-anchor: "{anchor[0]}"
    domain-insecure: "none.example"
stub-zone:
    name: "apps.example.org"
    stub-addr: {NS}
""",
    )
    for name in (NAME, "a.wild.apps.example.org"):
        found, flags, said = status(site.host, RESOLVER, name, "A")
        assert found == "NOERROR", said
        assert "ad" in flags
        assert "192.0.2.2" in said
        assert "RRSIG" in said


def test_a_gateway_that_has_died_is_withdrawn_by_another_and_comes_back(site: Site) -> None:
    first, second = site.keep("gw1"), site.keep("gw2")
    await_equal(lambda: site.dig(NAME, "A"), BOTH)
    await_equal(lambda: site.dig("gw2._tproxy-alive.apps.example.org", "TXT")[0].split()[0], '"tproxy')
    second.process.kill()
    second.process.wait()
    await_equal(lambda: site.dig(NAME, "A"), ["192.0.2.1"])
    assert "gateway gw2 has been silent" in first.said
    second = site.keep("gw2")
    await_equal(lambda: site.dig(NAME, "A"), BOTH)
    first.end()
    second.end()


def test_a_guest_that_ends_takes_its_name_along_and_brings_it_back(site: Site) -> None:
    running = site.keep("gw1")
    await_equal(lambda: site.dig(NAME, "AAAA"), ["2001:db8::1"])
    site.guest.kill()
    site.guest.wait()
    await_equal(lambda: site.dig(NAME, "AAAA"), [])
    await_equal(lambda: site.dig("a.wild.apps.example.org", "AAAA"), [])
    assert f"{NAME}: withdrawn: route www: refused" in running.said
    site.guest = site.start_guest()
    await_equal(lambda: site.dig(NAME, "AAAA"), ["2001:db8::1"])
    site.tproxy("gateway", "down")
    await_equal(lambda: site.dig(NAME, "AAAA"), [])
    assert "HAProxy does not run" in running.said
    site.tproxy("gateway", "up")
    await_equal(lambda: site.dig(NAME, "AAAA"), ["2001:db8::1"])
    running.end()


def test_what_the_server_refuses_is_said_and_changes_nothing(site: Site) -> None:
    site.configure(ROUTES + ZONES.replace("domain: apps.example.org", "domain: other.example.org"))
    done = site.apply(check=False)
    assert done.returncode == 1
    assert "other.example.org" in done.stdout
    site.host.write("/run/wrong.key", "key gateways { algorithm hmac-sha256; secret d3Jvbmc=; };")
    site.configure(ROUTES + ZONES.replace(TSIG_FILE, "/run/wrong.key"))
    done = site.apply(check=False)
    assert done.returncode == 1
    assert "refuses" in done.stdout
    site.configure(ROUTES + ZONES)
    site.apply()
    assert site.dig(NAME, "AAAA") == ["2001:db8::1"]
