"""What the policy allows and denies."""

from __future__ import annotations

import pytest

from tests.unit.egress.policies import BUILD, DIGEST, LAB, parse
from tproxy.egress.model import Artifact, Caller
from tproxy.egress.policy import judging
from tproxy.egress.policy.rules import Policy

FILES = "https://files.pythonhosted.org/packages/aa/bb"
HUB = "https://registry-1.docker.io/v2"
POOL = "http://deb.debian.org/debian/pool/main/h/hello"


@pytest.mark.parametrize(
    "url",
    [
        "https://pypi.org/simple/requests/",
        "https://pypi.org/simple/Requests/",
        "https://pypi.org/simple/django/",  # its index lists allowed versions
        f"{FILES}/requests-2.31.0-py3-none-any.whl",
        f"{FILES}/requests-2.31.0-py3-none-any.whl.metadata",
        f"{FILES}/Django-4.2.tar.gz",
        "https://pypi.org/simple/everyone/",
        "http://deb.debian.org/debian/dists/bookworm/InRelease",
        "http://deb.debian.org/debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/" + "0" * 64,
        f"{POOL}/hello_2.10-3_amd64.deb",
        f"{HUB}/",
        f"{HUB}/library/alpine/manifests/latest",
        f"{HUB}/library/alpine/blobs/{DIGEST}",
        "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/alpine:pull",
        f"https://quay.io/v2/org/app/manifests/{DIGEST}",
        "https://galaxy.ansible.com/api/",
        "https://galaxy.ansible.com/api/v3/collections/community/general/versions/?limit=100",
        "https://host.example/a.tgz",
        "https://host.example/releases/v1.tgz",
        "https://x.cdn.example/f?sig=a/b",
    ],
)
def test_what_a_rule_names_is_allowed(url: str) -> None:
    assert judging.request(parse(), BUILD, "GET", url).allowed


@pytest.mark.parametrize(
    "url",
    [
        "https://pypi.org/simple/",  # the list of all projects
        "https://pypi.org/simple/flask/",
        "https://pypi.org/pypi/requests/json",
        "https://pypi.org/simple/evil/",
        f"{FILES}/Django-4.1.tar.gz",
        f"{FILES}/requests-2.31.0.exe",
        f"{FILES}/",
        "https://evil.example/requests-2.31.0-py3-none-any.whl",
        "http://deb.debian.org/debian/dists/sid/InRelease",
        "http://deb.debian.org/debian/project/trace/master",
        f"{HUB}/other/app/manifests/latest",
        f"{HUB}/library/a/b/manifests/latest",
        "https://quay.io/v2/org/app/manifests/latest",  # only one digest of it is allowed
        "https://auth.docker.io/token?scope=repository:library/alpine:pull,push",
        "https://auth.docker.io/token?scope=repository:library/alpine:pull&scope=repository:o/x:pull",
        "https://galaxy.ansible.com/api/v3/collections/community/docker/versions/",
        "https://host.example/releases/a/b",
        "https://host.example/releases/v1.tgz?x=1",
        "https://host.example:8443/releases/v1.tgz",
        "http://host.example/releases/v1.tgz",
        "https://a.b.cdn.example/f?sig=1",
        "https://cdn.example/f?sig=1",
        "https://x.cdn.example/f",
    ],
)
def test_what_no_rule_names_is_denied(url: str) -> None:
    assert not judging.request(parse(), BUILD, "GET", url).allowed


@pytest.mark.parametrize(
    "url",
    [
        "https://host.example/releases/../secret",
        "https://host.example/releases/..%2fsecret",
        "https://host.example/releases/%2e%2e/secret",
        "https://host.example/releases/a%2Fb",
        "https://host.example/releases/a%5cb",
        "https://host.example/releases/a\\b",
        "https://host.example/releases/a%00",
        "https://host.example/releases/a%252fb",
        "https://host.example//releases/a",
        "https://host.example/releases/a#b",
        "https://host.example/releases/a;/../b",
        "https://user@host.example/releases/a",
        "https://host.example:99999999/releases/a",
        "https://host.example@evil.example/releases/a",
        "https://host.example /releases/a",
        "https://169.254.169.254/releases/a",
        "https://[::1]/releases/a",
        "https://0x7f000001/releases/a",
        "https://host.example/releases/a%",
        "https://host.example/releases/a\r\nX: y",
        "https://host.example/releases/" + "a" * 9000,
        "ftp://host.example/releases/a",
        "host.example:443",
        "-",
        "",
    ],
)
def test_what_can_be_read_in_two_ways_is_denied(url: str) -> None:
    verdict = judging.request(parse(), BUILD, "GET", url)
    assert not verdict.allowed
    assert verdict.reason.startswith("the URL ")


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"]
)
def test_only_get_and_head_are_allowed(method: str) -> None:
    assert not judging.request(parse(), BUILD, method, "https://pypi.org/simple/requests/").allowed


def test_the_first_rule_that_matches_decides() -> None:
    url = f"{FILES}/Django-4.1.tar.gz"
    assert judging.request(parse(), BUILD, "GET", url).rule == "egress.yaml:3"
    assert judging.request(parse(), BUILD, "GET", f"{FILES}/Django-4.2.tar.gz").rule == "egress.yaml:6"


def test_networks_with_different_rules_get_different_verdicts_from_one_address() -> None:
    url = "https://pypi.org/simple/requests/"
    assert judging.request(parse(), BUILD, "GET", url).allowed
    assert not judging.request(parse(), LAB, "GET", url).allowed


def test_a_network_is_found_by_its_id_too() -> None:
    caller = Caller(network="renamed", network_id="build")
    assert judging.request(parse(), caller, "GET", "https://pypi.org/simple/requests/").allowed


def test_two_hypervisors_may_have_networks_of_one_name() -> None:
    for hypervisor, allowed in (("hv1", True), ("hv2", False), ("", False)):
        caller = Caller(hypervisor=hypervisor, network="both")
        verdict = judging.request(parse(), caller, "GET", "https://pypi.org/simple/requests/")
        assert verdict.allowed == allowed


def test_a_caller_of_no_network_is_denied_even_what_all_networks_may() -> None:
    verdict = judging.request(parse(), Caller(address="10.0.0.5"), "GET", "https://pypi.org/simple/everyone/")
    assert not verdict.allowed


def test_without_rules_everything_is_denied() -> None:
    assert not judging.request(Policy(), BUILD, "GET", "https://pypi.org/simple/requests/").allowed


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("pypi.org", 443, True),
        ("files.pythonhosted.org", 443, True),
        ("registry-1.docker.io", 443, True),
        ("a.cdn.example", 443, True),
        ("PYPI.org.", 443, True),
        ("pypi.org", 22, False),
        ("pypi.org", 80, False),
        ("evil.example", 443, False),
        ("127.0.0.1", 443, False),
        ("a.b.cdn.example", 443, False),
    ],
)
def test_a_connect_is_judged_by_its_destination(host: str, port: int, allowed: bool) -> None:
    verdict = judging.destination(parse(), BUILD, host, port)
    assert (verdict.allowed, verdict.opaque) == (allowed, False)


def test_a_tunnel_is_opaque_and_for_its_networks_only() -> None:
    assert judging.destination(parse(), BUILD, "pinned.example", 443).opaque
    assert not judging.destination(parse(), LAB, "pinned.example", 443).allowed
    assert not judging.destination(parse(), BUILD, "pinned.example", 8443).allowed


def test_a_sealed_site_has_no_tunnels() -> None:
    sealed = parse("mode: sealed\ntunnel: [pinned.example]\n")
    assert not judging.destination(sealed, BUILD, "pinned.example", 443).allowed


def test_the_suites_that_list_a_package_decide_where_the_mirror_knows_them() -> None:
    wanted = Artifact("deb", "hello", "2.10-3")
    assert judging.artifact(parse(), BUILD, wanted, suites={"bookworm", "sid"}).allowed
    assert not judging.artifact(parse(), BUILD, wanted, suites={"sid"}).allowed
    assert not judging.artifact(parse(), BUILD, wanted, suites=set()).allowed


def test_a_file_is_its_url_and_its_content() -> None:
    good = Artifact("file", url="https://host.example/a.tgz", sha256="1" * 64)
    assert judging.artifact(parse(), BUILD, good).allowed
    other = Artifact("file", url="https://host.example/a.tgz", sha256="2" * 64)
    assert not judging.artifact(parse(), BUILD, other).allowed


def test_limits_of_the_first_rule_that_has_some_are_used() -> None:
    policy = parse(
        "limits: {bytes_per_second: 9}\n"
        "rules:\n"
        "  - {networks: [a], pypi: [x]}\n"
        "  - {networks: [a], limits: {bytes_per_second: 10k}}\n"
    )
    assert judging.limits(policy, Caller(network="a")).bytes_per_second == 10_000
    assert judging.limits(policy, Caller(network="b")).bytes_per_second == 9


def test_hosts_of_allowing_rules_and_tunnels_are_known() -> None:
    found = judging.hosts(parse())
    assert {"pypi.org", "deb.debian.org", "host.example", "*.cdn.example", "pinned.example"} <= found
