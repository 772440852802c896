"""``tproxy_zones``: each fault is one line with key and value, and means that nothing is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.config import reader as config_reader
from tproxy.config.file import DOCUMENT
from tproxy.errors import ConfigError
from tproxy.inward.names import reader

GOOD = """
tproxy_zones:
- &base
  domain: Apps.Example.com.
  powerdns: http://127.0.0.1:8081/
  key_file: /etc/tproxy/pdns.key
  gateways:
  - {name: gw1, addr: [192.0.2.1, '2001:DB8::1'], nameservers: [NS1.example.net]}
  - {name: gw2, addr: 192.0.2.2}
  dnssec: true
- {<<: *base, domain: customer.example, owner: customer, proof: nameserver}
- {domain: elsewhere.example, owner: other}
- {domain: bind.example, rfc2136: '[2001:db8::53]:5353', key_file: /k, gateways: [{name: a, addr: 192.0.2.9}]}
"""


def test_zones_with_all_keys() -> None:
    zones, problems = reader.parse(GOOD)
    assert not problems
    first, second, third, fourth = zones
    assert (first.domain, first.line, first.nameservers) == ("apps.example.com", 3, ("ns1.example.net",))
    assert first.gateways[0].addresses == ("192.0.2.1", "2001:db8::1")
    assert str(first.server) == "PowerDNS at http://127.0.0.1:8081"
    assert (second.domain, second.owner, second.server, second.dnssec) == (
        "customer.example",
        "customer",
        first.server,
        True,
    )
    assert third.server is None
    assert fourth.server is not None
    assert fourth.server.at == "[2001:db8::53]:5353"


BASE = (
    "domain: a.example, powerdns: 'http://[::1]:8081', key_file: /k, gateways: [{name: g, addr: 192.0.2.1}]"
)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{}", "entry 1: domain is missing"),
        ("7", "entry 1: '7' is not a mapping of keys to values"),
        ("{domain: 'a..b', owner: x}", "domain 'a..b' is no domain name"),
        ("{domain: [a], owner: x}", "domain (a list) is not a text"),
        ("{domain: a.example}", "a.example: powerdns or rfc2136 is missing"),
        (f"{{{BASE}, ttl: 0}}", "ttl '0' is not a number of seconds, 1 to 86400"),
        (f"{{{BASE}, dnsec: true}}", "key 'dnsec' is unknown (did you mean dnssec?)"),
        (f"{{{BASE}, rfc2136: 192.0.2.1}}", "only one can be the server"),
        (f"{{{BASE}, proof: ns}}", "proof 'ns' is not one of any, txt, nameserver"),
        (f"{{{BASE}, lease: 1}}", "lease '1' is not never, or a number of seconds, 5 to 86400"),
        (BASE.join("{}").replace("192.0.2.1", "300.0.0.1"), "addr '300.0.0.1' is not an IP address"),
        (BASE.join("{}").replace("192.0.2.1", "127.0.0.1"), "is no address that clients can reach"),
        (BASE.join("{}").replace("name: g", "name: G_"), "name 'G_' is not up to 32 small letters"),
        (BASE.join("{}").replace("http://[::1]", "http://192.0.2.5"), "https is needed"),
        (BASE.join("{}").replace(", key_file: /k", ""), "key_file is missing"),
        (BASE.join("{}").replace("/k", "k"), "key_file 'k' is not an absolute path"),
        ("{domain: a.example, owner: x, proof: nameserver}", "proof 'nameserver' is for zones with a server"),
        ("{domain: a.example, rfc2136: ns.example, key_file: /k}", "rfc2136 'ns.example' is not an address"),
        ("{domain: a.example, rfc2136: 192.0.2.1, key_file: /k}", "gateways is missing"),
        (f"{{{BASE}}}\n- {{{BASE}}}", "domain 'a.example' is there already, in line 2"),
    ],
)
def test_faults(entry: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "tproxy.yaml"
    file.write_text(f"tproxy_zones:\n- {entry}\n")
    with pytest.raises(ConfigError) as raised:
        reader.load(str(file))
    assert str(raised.value).startswith(f"{file}:{3 if said.endswith('line 2') else 2}: tproxy_zones")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_zones() -> None:
    assert reader.parse("tproxy: []\n") == ((), [])
    assert reader.parse("tproxy_zones:\n") == ((), [])
    assert reader.parse("tproxy_zones: 7\n")[1][0].text == "tproxy_zones '7' is not a list"


def test_two_owners_may_wish_for_one_domain() -> None:
    text = "tproxy_zones: [{domain: a.example, owner: one}, {domain: a.example, owner: two}]"
    assert len(reader.parse(text)[0]) == 2


def test_the_reader_of_hooks_leaves_the_key_alone_and_knows_its_name() -> None:
    assert not config_reader.parse("f", GOOD, thorough=True).warnings
    said = config_reader.parse("f", "tproxy_zone: []\n", thorough=True).warnings
    assert "did you mean tproxy_zones?" in said[0].text


def test_a_document_of_the_fleet_adds_zones_and_the_file_of_the_host_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "tproxy_zones: [{domain: a.example, owner: fleet}, {domain: b.example, owner: fleet, ttl: 7}]"
    document = tmp_path / "document.yaml"
    monkeypatch.setattr(reader, "document", document.read_text)
    file = tmp_path / "tproxy.yaml"
    document.write_text(text)
    file.write_text("tproxy_zones: [{domain: b.example, owner: fleet, ttl: 8}]")
    zones, problems = reader.of_file(str(file))
    assert [(each.domain, each.ttl, bool(each.origin)) for each in zones] == [
        ("b.example", 8, False),
        ("a.example", 30, True),
    ]
    document.write_text(text.replace("ttl: 7", "ttl: x"))
    zones, problems = reader.of_file(str(file))
    assert problems[0].at(str(file)).startswith(f"{DOCUMENT}:1: tproxy_zones")
