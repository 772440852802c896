"""Domains of owners: delegation by a signed parent (BIND), proofs, DNSSEC by PowerDNS, unbound validates."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.inward.names.gateway_site import Site
from tests.inward.names.name_servers import (
    API,
    API_KEY_FILE,
    TSIG_FILE,
    start_bind,
    start_pebble,
    start_powerdns,
    start_unbound,
    status,
)
from tests.netns.waiting import await_equal
from tproxy.lab.hypervisor import Hypervisor

NS = "192.0.2.1"
PARENT = "127.0.0.54"
RESOLVER = "127.0.0.55"
NAME = "www.customer.example.net"
TOP = """
tproxy_routes:
- {id: www, owner: customer, network: blue, guest_addr: 10.0.0.5, port: 80, domain: www.customer.example.net}
- {id: shop, owner: seller, network: blue, guest_addr: 10.0.0.5, port: 80, domain: shop.example.net}
- {id: thief, owner: thief, network: blue, guest_addr: 10.0.0.5, port: 80, domain: x.shop.example.net}
"""
ZONES = f"""
tproxy_zones:
- &base
  domain: apps.example.com
  powerdns: {API}
  key_file: {API_KEY_FILE}
  resolver: {RESOLVER}
  gateways:
  - {{name: gw1, addr: {NS}, nameservers: ns1.apps.example.com}}
- <<: *base
  domain: customer.example.net
  owner: customer
  dnssec: true
- {{domain: shop.example.net, owner: seller, resolver: {RESOLVER}}}
- {{domain: x.shop.example.net, owner: thief, resolver: {RESOLVER}}}
"""
BIND_ZONE = """
zone "example.net" {
    type primary;
    file "parent.zone";
    allow-update { key gateways; };
    dnssec-policy default;
    inline-signing no;
};
"""
ZONE_FILE = """$TTL 1
@ IN SOA ns hostmaster 1 3600 600 1209600 1
@ IN NS ns
ns IN A 127.0.0.54
"""


class Net(Site):
    """The site, with a parent zone whose owner's changes are ``parent``, and a resolver that validates."""

    def parent(self, *lines: str) -> None:
        said = "\n".join([f"server {PARENT}", "zone example.net", *lines, "send", ""])
        self.host.run("nsupdate", "-k", TSIG_FILE, input=said)

    def prove(self, domain: str) -> str:
        return self.tproxy("names", "prove", domain, check=False).stdout

    def delegate(self) -> str:
        """Have the parent lead to the owner's name of the name server; return that name."""
        unique = next(each.split()[-1] for each in self.records("customer.example.net") if " NS " in each)
        name = "customer.example.net"
        self.parent(f"update delete {name} NS", f"update add {name} 1 NS {unique}")
        await_equal(lambda: self.prove(name).partition(":")[0], "proved")
        self.apply()
        return unique

    def certify(self, domain: str) -> None:
        """Set the text that proves a domain."""
        name, _, rest = next(each for each in self.records(domain) if " TXT " in each).partition(" ")
        assert name == f"_tproxy-challenge.{domain}."
        self.parent(f"update add {name} 1 {rest}")
        await_equal(lambda: self.prove(domain).partition(":")[0], "proved")

    def records(self, domain: str) -> list[str]:
        return self.tproxy("names", "parent", domain).stdout.splitlines()

    def state(self, kind: str, name: str) -> str:
        said = json.loads(self.tproxy("names", "list", "--json").stdout)
        key = kind.removesuffix("s")
        return next(str(each["state"]) for each in said[kind] if each[key] == name)


@pytest.fixture(scope="module")
def net(name_servers: None) -> Iterator[Net]:
    with Hypervisor() as host:
        host.ip(f"address add {NS}/32 dev lo")
        host.write("/run/bind/parent.zone", ZONE_FILE)
        start_bind(host, PARENT, BIND_ZONE)
        start_powerdns(host, NS)
        await_equal(
            lambda: "DNSKEY" in status(host, PARENT, "example.net", "DNSKEY")[2].split("ANSWER")[-1], True
        )
        keys = host.run("dig", "+short", f"@{PARENT}", "example.net", "DNSKEY").stdout.split("\n")
        start_unbound(
            host,
            RESOLVER,
            f"""    trust-anchor: "example.net. DNSKEY {keys[0]}"
    domain-insecure: "example.com"
stub-zone:
    name: "example.net"
    stub-addr: {PARENT}
stub-zone:
    name: "apps.example.com"
    stub-addr: {NS}
""",
        )
        net = Net(host, NS, TOP + ZONES)
        net.apply()
        yield net


def test_a_nameserver_of_the_gateway_proves_nothing_and_one_of_the_owner_does(net: Net) -> None:
    net.apply()
    assert "has not proved" in net.state("names", NAME)
    assert net.dig(NAME, "A") == []
    assert net.page(NAME) == "no such site"
    net.parent("update add customer.example.net 1 NS ns1.apps.example.com")
    said = net.prove("customer.example.net")
    assert said.startswith("not proved: customer.example.net by customer")
    assert "the parent has other name servers: ns1.apps.example.com" in said
    unique = net.delegate()
    assert unique.endswith(".ns1.apps.example.com.")
    assert net.dig(unique, "A") == [NS]
    assert net.state("names", NAME) == "granted"
    assert net.dig(NAME, "A") == [NS]
    assert net.dig("customer.example.net", "NS") == [unique]
    assert net.page(NAME) == "one"


def test_the_ds_record_that_is_printed_makes_the_zone_valid(net: Net) -> None:
    net.delegate()
    ds = [each for each in net.records("customer.example.net") if " DS " in each]
    assert ds
    found, flags, said = status(net.host, RESOLVER, NAME, "A")
    assert found == "NOERROR", said
    assert "ad" not in flags
    name, _, rest = ds[0].partition(" ")
    net.parent(f"update add {name} 1 {rest}")

    def validated() -> bool:
        found, flags, said = status(net.host, RESOLVER, NAME, "A")
        return found == "NOERROR" and "ad" in flags and "RRSIG" in said

    await_equal(validated, True)
    found, flags, _ = status(net.host, RESOLVER, "none.customer.example.net", "A")
    assert (found, "ad" in flags) == ("NXDOMAIN", True)


def test_a_zone_stays_signed_while_its_parent_says_so(net: Net) -> None:
    net.delegate()
    for line in net.records("customer.example.net"):
        if " DS " in line:
            net.parent(f"update add {line.replace(' DS', ' 1 DS')}")
    net.configure(TOP + ZONES.replace("dnssec: true", "dnssec: false"))
    done = net.apply(check=False)
    assert done.returncode == 1
    assert "stays signed while its parent has a DS record" in done.stdout
    net.parent("update delete customer.example.net DS")
    await_equal(lambda: "is no longer signed" in net.apply(check=False).stdout, True)
    await_equal(lambda: status(net.host, RESOLVER, NAME, "A")[0], "NOERROR")
    assert not [each for each in net.records("customer.example.net") if " DS " in each]
    net.configure(TOP + ZONES)
    net.apply()


def test_a_text_of_the_owner_proves_and_the_first_owner_keeps_what_overlaps(net: Net) -> None:
    net.certify("shop.example.net")
    net.certify("x.shop.example.net")
    assert net.state("names", "shop.example.net") == "granted"
    assert "overlaps shop.example.net, which is seller's" in net.state("zones", "x.shop.example.net")
    assert "seller's" in net.state("names", "x.shop.example.net")


def test_a_proof_of_another_owner_is_none(net: Net) -> None:
    net.certify("shop.example.net")
    stolen = ZONES.replace(
        "{domain: shop.example.net, owner: seller", "{domain: shop.example.net, owner: thief"
    )
    net.configure(TOP + stolen)
    assert "not proved" in net.prove("shop.example.net")
    net.configure(TOP + ZONES)
    await_equal(lambda: net.prove("shop.example.net").partition(":")[0], "proved")


def test_what_nobody_can_tell_changes_nothing_and_a_proof_that_is_gone_suspends(net: Net) -> None:
    net.delegate()
    net.configure(TOP + ZONES.replace(f"resolver: {RESOLVER}", f"resolver: {PARENT}"))
    said = net.prove("customer.example.net")
    assert "is no resolver" in said
    assert net.state("names", NAME) == "granted"
    net.configure(TOP + ZONES)
    net.parent("update delete customer.example.net NS")
    await_equal(lambda: net.prove("customer.example.net").partition(":")[0], "not proved")
    net.apply()
    assert net.dig(NAME, "A") == [NS]  # within the grace
    net.configure(TOP + ZONES.replace("dnssec: true", "proof_grace: 0"))
    assert "is suspended" in net.state("names", NAME)
    net.apply()
    assert net.dig(NAME, "A") == []
    assert net.page(NAME) == "no such site"


def test_a_ledger_that_is_lost_withdraws_nothing_until_there_are_answers(net: Net) -> None:
    net.delegate()
    net.host.path("/run/names/ledger.json").unlink()
    net.configure(TOP + ZONES.replace(f"resolver: {RESOLVER}", f"resolver: {PARENT}"))
    net.apply()
    assert net.dig(NAME, "A") == [NS]
    net.configure(TOP + ZONES)
    await_equal(lambda: net.prove("customer.example.net").partition(":")[0], "proved")
    net.apply()
    assert net.dig(NAME, "A") == [NS]


def test_an_issuer_is_asked_for_granted_names_only_and_by_dns(net: Net) -> None:
    """traefik/traefik#3653: one issuer, proved names only. lego has a provider for PowerDNS."""
    ended = "network: blue, guest_addr: 10.0.0.5, port: 80, tls: terminate"
    more = f"- {{id: star, {ended}, domain: '*.star.apps.example.com'}}\n"
    more += f"- {{id: no, owner: thief, {ended}, domain: www.nobody.example.net}}\n"
    net.configure(TOP + more + ZONES)
    net.tproxy("refresh")
    start_pebble(net.host, RESOLVER)
    # lego asks the zone's name servers, whose names the host's resolver has to know.
    net.host.write("/run/resolv.conf", f"nameserver {RESOLVER}\n")
    net.host.run("mount", "--bind", "/run/resolv.conf", "/etc/resolv.conf")
    options = ("--acme", "https://localhost:14000/dir", "--acme-ca", "/run/issuer/ca.pem")
    done = net.tproxy("gateway", "up", *options, "--state", "/run/acme")
    assert "certificate for *.star.apps.example.com: issued" in done.stdout
    assert "www.nobody.example.net is in no zone of tproxy_zones" in done.stderr
    assert "certificate for www.nobody" not in done.stdout
    assert net.dig("_acme-challenge.star.apps.example.com", "TXT") == []
    shown = net.tproxy("names", "acme", "*.star.apps.example.com").stdout
    assert "PDNS_API_URL=http://127.0.0.1:8081" in shown
    refused = net.tproxy("names", "acme", "www.nobody.example.net", check=False)
    assert "is not proved, so it gets no certificate" in refused.stderr
    net.configure(TOP + ZONES)
    net.tproxy("refresh")
    net.tproxy("gateway", "up")
