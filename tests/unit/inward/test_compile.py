"""The gateway's files for HAProxy, and its unit for systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tproxy.config.routes import RouteEntry
from tproxy.inward import acme, haproxy, maps
from tproxy.inward import compile as compiled
from tproxy.inward.options import Options
from tproxy.inward.runtime import Certificate

ENTRIES = [
    RouteEntry(1, "web", 80, "n", "10.0.0.5", domain="Web.example.com", port_tls=443),
    RouteEntry(2, "shop", 80, "n", "10.0.0.6", domain="shop.example.com", tls="terminate"),
    RouteEntry(3, "all", 80, "n", "10.0.0.7", domain="*.example.org"),
    RouteEntry(4, "ssh", 22, "n", "10.0.0.5", gateway_port=10022),
    RouteEntry(5, "old", 80, "n", "10.0.0.5", domain="old.example.com", expires=1),
    RouteEntry(6, "lan", 80, addr="10.1.0.1", domain="lan.example.net", port_tls=443, proxy_protocol="v2"),
    RouteEntry(7, "api", 8080, addr="10.1.0.2", domain="api.example.net", tls="terminate", expires=9),
    RouteEntry(8, "site", 80, node="site-1", domain="site.example.net", tls="terminate"),
    RouteEntry(9, "far", 80, "n", "10.0.0.5", node="site-1", gateway_port=10080),
]


def test_maps_lead_from_names_to_ids() -> None:
    found = {file: text for file, text in maps.maps(ENTRIES, 2).items() if text}
    assert found == {
        "passthrough.map": "lan.example.net lan/tls\nweb.example.com web/tls\n",
        "passthrough.wild.map": ".example.org all\n",
        "terminate.map": "api.example.net api\nshop.example.com shop\nsite.example.net site\n",
        "host.map": "api.example.net api\nlan.example.net lan\nshop.example.com shop\n"
        "site.example.net site\nweb.example.com web\n",
        "host.wild.map": ".example.org all\n",
        "ports.map": "10022 ssh\n10080 far\n",
        "leads.map": "api addr/9/10.1.0.2/8080\nfar nodes/0\nlan told/0/10.1.0.1/80\n"
        "lan/tls told/0/10.1.0.1/443\nsite nodes/0\n",
    }


def test_addresses_are_those_that_the_gateway_allows() -> None:
    found, problems = maps.within(ENTRIES, ["10.1.0.0/24"], ["10.1.0.2"])
    assert [each.id for each in found if each.addr] == ["lan"]
    (problem,) = problems
    assert problem.text == (
        "tproxy_routes: api: addr 10.1.0.2 is an address of the gateway itself: "
        "a node can offer a port of its own: entry skipped"
    )
    problems = maps.within(ENTRIES, ["10.2.0.0/16", "fd00::/8"], [])[1]
    assert [each.text.partition("addr ")[2] for each in problems] == [
        f"{address} is not within tproxy_gateway_ranges of the gateway: entry skipped"
        for address in ("10.1.0.1", "10.1.0.2")
    ]


def test_a_wildcard_that_is_passed_through_is_told_where_it_covers_another_route() -> None:
    """dlundquist/sniproxy#178, keycloak/keycloak#50602: HTTP/2 reaches the wrong site."""
    assert maps.shared(ENTRIES) == []
    other = RouteEntry(10, "own", 80, "n", "10.0.0.5", domain="a.example.org", tls="terminate")
    (problem,) = maps.shared([*ENTRIES, other])
    assert (
        "all: *.example.org is passed through: browsers may send requests for a.example.org" in problem.text
    )


def test_the_issuer_is_asked_for_names_that_the_gateway_allows_and_has_no_file_for() -> None:
    may, others = acme.wanted(ENTRIES, ["example.com", "site.example.net"], ["*.example.net"], 2)
    assert (may, others) == (["shop.example.com"], [])
    assert acme.wanted(ENTRIES, ["example.net."], [], 2) == (
        ["api.example.net", "site.example.net"],
        ["shop.example.com"],
    )
    assert acme.wanted(ENTRIES, ["ample.net"], [], 10)[0] == []


def test_a_certificate_is_renewed_when_a_third_of_its_time_is_left() -> None:
    certificate = Certificate(("a.example.com",), 0, 90)
    assert not acme.is_due(certificate, 59)
    assert acme.is_due(certificate, 61)


def test_after_failures_the_issuer_is_asked_later_and_later() -> None:
    """traefik/traefik#3653: limits of an issuer took sites offline."""
    failure = None
    waits = []
    for _ in range(12):
        failure = acme.after_failure(failure, "no answer", 1000)
        waits.append(failure.again - 1000)
    assert waits[:3] == [900, 1800, 3600]
    assert waits[-1] == 86_400
    assert failure
    assert failure.times == 12


@pytest.mark.parametrize(
    "options", [Options(), Options(ports="10000-10009", address="127.0.0.1", http_port=8080)]
)
def test_haproxy_takes_the_configuration(tmp_path: Path, options: Options) -> None:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("needs haproxy")
    for file, text in {**maps.maps(ENTRIES, 2), "challenges.map": "", "certificates.list": ""}.items():
        (tmp_path / file).write_text(text)
    text = compiled.configuration(options._replace(most=100, user="root"), str(tmp_path), "/", "test")
    (tmp_path / "haproxy.cfg").write_text(text)
    done = subprocess.run(
        [program, "-c", "-f", str(tmp_path / "haproxy.cfg")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert all("no SSL certificate specified" in each for each in warnings), warnings


def test_the_units_have_the_options_that_up_had(tmp_path: Path) -> None:
    text = haproxy.units(tmp_path, "/etc/tproxy/100%.yaml", Options(ports="10000-10009"))[haproxy.UNIT]
    assert " gateway compile --config=/etc/tproxy/100%%.yaml --ports=10000-10009\n" in text
    assert "@" not in text
    assert "MemoryMax=" in text
    issuer = "https://issuer.example/dir"
    texts = haproxy.units(tmp_path, "/etc/tproxy/tproxy.yaml", Options(acme=issuer))
    assert f" gateway up --config=/etc/tproxy/tproxy.yaml --acme={issuer}\n" in texts[haproxy.RENEWAL]
    assert "OnUnitActiveSec" in texts[haproxy.TIMER]
