"""A certificate for a wildcard: lego proves the name by PowerDNS to a test server of ACME."""

from __future__ import annotations

import json

import pytest

from tests.inward.names.name_servers import API, API_KEY_FILE, api, start_powerdns
from tests.netns.inward.site import Site
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

NS = "127.0.0.53"
CONFIG = """
tproxy_gateway_domains: [example.org]
tproxy_routes:
- {id: wild, network: blue, guest_addr: 10.0.0.5, port: 80, tls: terminate, domain: '*.example.org'}
"""
PEBBLE = {
    "listenAddress": "127.0.0.1:14000",
    "managementListenAddress": "127.0.0.1:15000",
    "certificate": "/run/issuer/localhost.pem",
    "privateKey": "/run/issuer/localhost.pem",
    "httpPort": 80,
    "tlsPort": 443,
    "ocspResponderURL": "",
}


@pytest.mark.usefixtures("name_servers")
def test_a_wildcard_gets_a_certificate_by_dns() -> None:
    with Hypervisor() as host:
        site = Site(host, CONFIG)
        start_powerdns(host, NS)
        zone = {"name": "example.org.", "kind": "Native", "nameservers": ["ns.example.org."]}
        record = {
            "name": "ns.example.org.",
            "type": "A",
            "ttl": 5,
            "records": [{"content": NS, "disabled": False}],
        }
        api(host, "POST", "", json.dumps({**zone, "rrsets": [record]}))
        host.run("mount", "--bind", host.write("/run/resolv.conf", f"nameserver {NS}\n"), "/etc/resolv.conf")
        site.make_certificate("localhost", "/run/issuer")
        host.write("/run/issuer/pebble.json", json.dumps({"pebble": PEBBLE}))
        issuer = ("pebble", "-config", "/run/issuer/pebble.json", "-dnsserver", f"{NS}:53")
        host.popen(*issuer, env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"})
        url = "https://localhost:14000/dir"
        for _ in eventually():
            if host.run("curl", "-ksf", url, check=False).returncode == 0:
                break
        site.environment |= {"PDNS_API_URL": API, "PDNS_API_KEY_FILE": API_KEY_FILE, "PDNS_TTL": "5"}
        by_dns = ("--acme", url, "--acme-ca", "/run/issuer/localhost.pem.crt", "--acme-dns", "pdns")
        assert "certificate for *.example.org: issued" in site.up(*by_dns).stdout
        assert site.curl("https://any.example.org/").stdout == "one"
