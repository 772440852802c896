"""Certificates from an issuer: lego against pebble, a small ACME server, through the gateway's port 80."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.netns.inward.site import STATE, Site
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

CONFIG = """
tproxy_gateway_domains: [example.org, example.com]
tproxy_routes:
- {id: file, network: blue, guest_addr: 10.0.0.5, port: 80, tls: terminate, domain: ended.example.com}
- {id: one, network: blue, guest_addr: 10.0.0.5, port: 80, tls: terminate, domain: one.example.org}
- {id: other, network: blue, guest_addr: 10.0.0.6, port: 80, tls: terminate, domain: other.example.net}
- {id: pass, network: blue, guest_addr: 10.0.0.5, port: 80, port_tls: 443, domain: pass.example.org}
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
ISSUER = (
    *("--acme", "https://localhost:14000/dir", "--acme-ca", "/run/issuer/localhost.pem.crt"),
    *("--acme-email", "root@example.org"),
)


class Issuing:
    """A gateway and an issuer that asks at 127.0.0.1 for each name."""

    def __init__(self, site: Site) -> None:
        self.site = site
        site.make_certificate("localhost", "/run/issuer")
        site.host.write("/run/issuer/pebble.json", json.dumps({"pebble": PEBBLE}))
        off = [
            part for each in ("http01", "https01", "tlsalpn01", "defaultIPv6") for part in (f"-{each}", "")
        ]
        site.host.popen("pebble-challtestsrv", *off, "-dns01", "127.0.0.1:8053")
        self.start()

    def start(self) -> None:
        argv = ("pebble", "-config", "/run/issuer/pebble.json", "-dnsserver", "127.0.0.1:8053")
        self.pebble = self.site.host.popen(
            *argv, env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
        )
        url = "https://localhost:14000/dir"
        for _ in eventually():
            if self.site.host.run("curl", "-ksf", url, check=False).returncode == 0:
                break

    def up(self) -> tuple[str, str]:
        done = self.site.up(*ISSUER)
        return done.stdout, done.stderr

    def shown(self, name: str) -> str:
        """The serial number and the issuer of the certificate that clients get; "" for none."""
        done = self.site.host.run(
            *("openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", name), check=False
        )
        text = self.site.host.run(
            "openssl", "x509", "-noout", "-serial", "-issuer", input=done.stdout, check=False
        )
        return text.stdout

    def age(self, name: str) -> None:
        """Put another certificate in the place of the issuer's, which has a quarter of its time left."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(timezone.utc)
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
        builder = x509.CertificateBuilder(named, named, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=60)).not_valid_after(now + timedelta(days=20))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pem += key.private_bytes(serialization.Encoding.PEM, *form)
        self.site.host.write(f"{STATE}/certificates/{name}.pem", pem.decode())


@pytest.fixture(scope="module")
def issuing(real_kernel: None) -> Iterator[Issuing]:
    with Hypervisor() as host:
        yield Issuing(Site(host, CONFIG))


def test_a_route_without_a_file_gets_a_certificate_from_the_issuer_without_a_reload(issuing: Issuing) -> None:
    assert issuing.shown("one.example.org") == ""
    issuing.up()  # another configuration of HAProxy: none
    before = issuing.site.workers
    assert "Pebble" in issuing.shown("one.example.org")
    assert "Pebble" not in issuing.shown("ended.example.com")
    assert issuing.site.curl("https://one.example.org/").stdout == "one"
    done, problems = issuing.up()
    assert done == ""
    assert "other.example.net has no certificate" in problems
    assert issuing.site.workers == before
    assert "one.example.org; until 2" in issuing.site.tproxy("gateway", "status").stdout


def test_a_certificate_is_renewed_in_time_and_without_a_reload(issuing: Issuing) -> None:
    issuing.age("one.example.org")
    before = issuing.site.workers
    done, _ = issuing.up()
    assert "certificate for one.example.org: issued\n" in done
    assert "Pebble" in issuing.shown("one.example.org")
    assert issuing.site.workers == before


def test_a_failure_keeps_the_old_certificate_and_the_issuer_is_not_asked_again_at_once(
    issuing: Issuing,
) -> None:
    """traefik/traefik#3653: limits of the issuer take sites offline."""
    issuing.age("one.example.org")
    issuing.pebble.kill()
    issuing.pebble.wait()
    done, _ = issuing.up()
    assert "certificate for one.example.org: " in done
    assert "connection refused" in done
    assert "old" in issuing.shown("one.example.org")
    assert issuing.site.curl("https://one.example.org/").stdout == "one"
    issuing.start()
    assert issuing.up()[0] == ""
    status = ("gateway", "status")
    assert "no certificate for one.example.org: " in issuing.site.tproxy(*status).stdout
    # This issuer keeps accounts in memory.
    issuing.site.host.run("rm", "-r", f"{STATE}/failures.json", f"{STATE}/lego")
    assert "certificate for one.example.org: issued" in issuing.up()[0]


def test_a_name_that_the_issuer_cannot_reach_gets_none_and_others_do(issuing: Issuing) -> None:
    """A wildcard is proved by DNS alone."""
    ended = "network: blue, port: 80, tls: terminate"
    more = (
        f"- {{id: wild, {ended}, guest_addr: 10.0.0.5, domain: '*.example.org'}}\n"
        f"- {{id: new, {ended}, guest_addr: 10.0.0.6, domain: new.example.org}}\n"
    )
    issuing.site.configure(CONFIG + more)
    issuing.site.tproxy("refresh")
    done, _ = issuing.up()
    assert "certificate for *.example.org: issuers prove a wildcard by DNS only (--acme-dns)\n" in done
    assert issuing.site.curl("https://new.example.org/").stdout == "two"
