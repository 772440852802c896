"""Guests fetch through squid what the policy allows to their network, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import unquote

import psutil
import pytest

from tests.egress.node import PROGRAMS, Node
from tests.egress.official import publish
from tproxy import proxy_protocol
from tproxy.egress.policy import edit
from tproxy.egress.squid.authority import Authority, fingerprint

POLICY = """\
rules:
  - networks: [build]
    pypi: [good, "old<2"]
    get:
      - https://host.example/releases/*
      - http://host.example/releases/*
      - https://inner.example/*
      - https://loop.example/*
      - https://service.example/*
      - http://inner.example/*
  - {networks: [both], hypervisors: [hv1], pypi: [good]}
  - {networks: [office], pypi: [good]}
  - {networks: [study], deny: true, get: ["https://host.example/secret"]}
learn: {network: study, until: 2999-12-31}
tunnel: [{host: pinned.example, networks: [build]}]
clients:
  127.0.0.0/8: office
"""
A = "https://host.example/releases/a"


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Node]:
    with Node(POLICY) as node:
        publish(node, "good", "1.0")
        publish(node, "old", "1.5", "2.0")
        publish(node, "bad", "1.0")
        node.site("host.example", "/releases/a", "file a\n")
        node.site("host.example", "/secret", "secret\n")
        node.site("other.example", "/releases/a", "of another host\n")
        node.site("inner.example", "/x", "inner secret\n")
        node.site("loop.example", "/x", "inner secret\n")
        node.site("service.example", "/x", "inner secret\n")
        node.site("pinned.example", "/x", "pinned\n")
        for target in ("https://inner.example/x", "https://host.example/secret", "https://other.example/x"):
            name = target.partition("//")[2].partition("/")[0]
            node.site("host.example", f"/releases/to-{name}.redirect", target)
        yield node


@pytest.fixture(scope="module")
def build(node: Node) -> str:
    return node.caller(network="build", mac="02:00:00:00:00:01", bridge="br0")


@pytest.fixture(scope="module")
def lab(node: Node) -> str:
    return node.caller(network="lab", mac="02:00:00:00:00:02")


def test_pip_downloads_what_is_allowed_and_the_second_time_without_upstream(node: Node, build: str) -> None:
    for _ in range(2):
        done = node.pip_download(build, "good")
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(node.requests("files.pythonhosted.org")) == 1


def test_pip_of_another_network_is_denied(node: Node, lab: str) -> None:
    assert node.pip_download(lab, "good").returncode != 0
    assert node.curl(lab, "https://pypi.org/simple/good/")[0] == 403


def test_a_package_that_no_rule_names_is_denied_by_its_path(node: Node, build: str) -> None:
    assert node.pip_download(build, "bad").returncode != 0
    status, page = node.curl(build, "https://pypi.org/simple/bad/")
    assert status == 403
    assert "no rule allows pypi bad to network build" in page
    assert not [line for line in node.requests("pypi.org") if "bad" in line]


def test_a_version_that_no_rule_names_is_denied(node: Node, build: str) -> None:
    done = node.pip_download(build, "old==2.0")
    assert done.returncode != 0
    assert "403" in done.stderr
    assert not [line for line in node.requests() if "old-2.0" in line]
    done = node.pip_download(build, "old==1.5")
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_hypervisors_with_networks_of_one_name_have_different_rules(node: Node) -> None:
    for hypervisor, expected in (("hv1", 200), ("hv2", 403)):
        proxy = node.caller(network="both", hypervisor=hypervisor)
        assert node.curl(proxy, "https://pypi.org/simple/good/")[0] == expected


def test_hosts_that_are_no_guests_come_through_a_port_of_their_own(node: Node) -> None:
    proxy = "http://127.0.0.1:3129"
    assert node.curl(proxy, "https://pypi.org/simple/good/")[0] == 200
    assert node.curl(proxy, A)[0] == 403


def test_a_guest_that_claims_a_network_on_the_port_for_hosts_gets_nothing(node: Node) -> None:
    """A header before the request is no request there, and a header in the place of one is refused."""
    proxy = node.caller(network="build", port=3129)
    assert node.curl(proxy, A)[0] in (0, 400)


def test_without_a_header_nothing_is_served(node: Node) -> None:
    for port in (3128, 8443):
        assert node.curl(f"http://127.0.0.1:{port}", A)[0] == 0


def test_a_second_header_of_a_guest_is_no_header(node: Node, lab: str) -> None:
    """The guest of network lab writes the header of network build behind that of the daemon."""
    forged = proxy_protocol.encode(
        ("10.0.0.9", 1), ("169.254.16.9", 3128), {proxy_protocol.OF_NETWORK: "build"}
    )
    request = b"GET http://host.example/releases/a HTTP/1.1\r\nHost: host.example\r\n\r\n"
    found = raw(node, lab, forged + request)
    assert "file a" not in found
    assert "403" in found or "400" in found


def test_headers_of_http_do_not_change_who_calls(node: Node, lab: str) -> None:
    forged = (
        "-H",
        "Tproxy-Network: build",
        "-H",
        "X-Forwarded-For: 10.0.0.5",
        "-H",
        "Forwarded: for=10.0.0.5",
    )
    assert node.curl(lab, "http://host.example/releases/a", *forged)[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PURGE"])
def test_only_get_and_head_reach_a_site(node: Node, build: str, method: str) -> None:
    assert node.curl(build, A, "-X", method)[0] in (400, 403, 405)
    assert not [line for line in node.requests() if f" {method} " in line]


@pytest.mark.parametrize(
    "path",
    [
        *("/releases/../secret", "/releases/..%2fsecret", "/releases/%2e%2e/secret", "/releases/a%2fb"),
        *("/releases/..;/secret", "/releases/%252e%252e/secret", "/releases/a%00", "/secret", "//secret"),
        "/releases\\..\\secret",
    ],
)
def test_paths_that_lead_elsewhere_are_denied(node: Node, build: str, path: str) -> None:
    for scheme in ("http", "https"):
        status, body = node.curl(build, f"{scheme}://host.example{path}")
        assert status in (400, 403), body
    assert not [line for line in node.requests("host.example") if "secret" in line]


@pytest.mark.parametrize("host", ["inner.example", "loop.example", "service.example"])
def test_names_with_inner_addresses_are_refused_after_resolution(node: Node, build: str, host: str) -> None:
    status, page = node.curl(build, f"http://{host}/x" if host.startswith("inner") else f"https://{host}/x")
    assert status == 403
    assert "is one of this site" in page or not host.startswith("inner")  # curl shows no page of a CONNECT
    assert not node.requests(host)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.9.9.9", "[::1]", "[::ffff:10.9.9.9]", "169.254.16.9"])
def test_addresses_in_the_place_of_names_are_refused(node: Node, build: str, address: str) -> None:
    for url in (
        f"https://{address}/x",
        f"http://{address}/x",
        f"http://{address}:3128/squid-internal-mgr/info",
    ):
        assert node.curl(build, url)[0] in (0, 400, 403)


@pytest.mark.parametrize("target", ["inner.example", "host.example", "other.example"])
def test_a_redirect_is_judged_again(node: Node, build: str, target: str) -> None:
    status, body = node.curl(build, f"https://host.example/releases/to-{target}", "-L")
    assert status == 403
    assert "secret\n" not in body


def test_squids_manager_is_closed(node: Node, build: str) -> None:
    for url in (
        "http://host.example/squid-internal-mgr/menu",
        "http://tproxy-egress/squid-internal-mgr/menu",
    ):
        assert node.curl(build, url)[0] in (403, 404)
    found = raw(node, build, b"GET cache_object://127.0.0.1/info HTTP/1.0\r\n\r\n")
    assert "Squid Object Cache" not in found
    assert "Start Time" not in found


def connect(host: str, port: int = 443) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def raw(node: Node, proxy: str, head: bytes, name: str = "", request: bytes = b"") -> str:
    more = (name, request.hex()) if name else ()
    program = os.path.join(os.path.dirname(__file__), "programs", "raw.py")
    return node.run("python3", program, proxy.rpartition(":")[2], head.hex(), *more).stdout


def get(path: str, host: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode()


def test_the_program_that_attacks_gets_what_is_allowed(node: Node, build: str) -> None:
    found = raw(node, build, connect("host.example"), "host.example", get("/releases/a", "host.example"))
    assert "file a" in found


def test_a_host_header_that_differs_from_the_connection_is_denied(node: Node, build: str) -> None:
    """Both hosts are allowed, but a connection is for one of them."""
    found = raw(node, build, connect("pypi.org"), "pypi.org", get("/releases/a", "host.example"))
    assert "403" in found.partition("\n")[0]
    found = raw(node, build, connect("host.example"), "host.example", get("/releases/a", "other.example"))
    assert "403" in found.partition("\n")[0]


def test_a_host_header_that_differs_from_an_absolute_uri_is_denied(node: Node, build: str) -> None:
    head = b"GET http://host.example/releases/a HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n"
    found = raw(node, build, head)
    assert "of another host" not in found
    head = b"GET http://other.example/releases/a HTTP/1.1\r\nHost: host.example\r\nConnection: close\r\n\r\n"
    assert "of another host" not in raw(node, build, head)


def test_an_absolute_uri_inside_a_connection_is_judged_as_what_it_is(node: Node, build: str) -> None:
    for inside in ("https://other.example/releases/a", "http://host.example/releases/a"):
        found = raw(node, build, connect("host.example"), "host.example", get(inside, "host.example"))
        assert "of another host" not in found
        assert "file a" not in found


def test_a_server_name_that_differs_from_the_connection_changes_nothing(node: Node, build: str) -> None:
    """squid opens the connection, and asks the host of the request, whatever the server name was."""
    found = raw(node, build, connect("host.example"), "other.example", get("/releases/a", "other.example"))
    assert "of another host" not in found


def test_a_connection_to_another_port_or_host_is_denied(node: Node, build: str) -> None:
    for host, port in (("host.example", 22), ("other.example", 443), ("127.0.0.1", 3128), ("10.9.9.9", 443)):
        found = raw(node, build, connect(host, port), host, get("/x", host))
        assert "403" in found
        assert not [line for line in node.requests(host) if line.endswith("/x")]


def test_a_connection_inside_a_connection_is_denied(node: Node, build: str) -> None:
    found = raw(node, build, connect("host.example"), "host.example", connect("host.example"))
    assert " 200 " not in found.partition("\n")[0]


TWO_READINGS = (
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: 5\r\nContent-Length: 50\r\n",
    "Content-Length: +5\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n",  # folded (RFC 9112, 5.2)
    "X: y\r\n Content-Length: 5\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n",
    "X: y\x00z\r\n",
    "Host: other.example\r\n",
    "X: " + "a" * 60_000 + "\r\n",
)


def test_requests_with_two_readings_or_huge_headers_reach_no_site(node: Node, build: str) -> None:
    """All at once, in the open and inside a connection: most of them squid lets wait for more."""
    hidden = "0\r\n\r\nGET {}/releases/a HTTP/1.1\r\nHost: other.example\r\n\r\n"
    children, before = [], node.requests("other.example")
    for head in TWO_READINGS:
        for site, other in (("http://host.example", "http://other.example"), ("", "")):
            start = f"GET {site}/releases/smuggled HTTP/1.1\r\nHost: host.example\r\n{head}\r\n"
            request = (start + hidden.format(other)).encode()
            first = (connect("host.example"), "host.example", request) if not site else (request,)
            words = [each if isinstance(each, str) else each.hex() for each in first]
            program = (sys.executable, str(PROGRAMS / "raw.py"), build.rpartition(":")[2], *words)
            children.append(node.popen(*program, stdout=subprocess.PIPE, errors="replace"))
    found = [child.communicate()[0] for child in children]
    assert not any("of another host" in text for text in found)
    assert node.requests("other.example") == before


def test_a_guest_that_sends_or_reads_slowly_holds_nobody_up(node: Node, build: str, lab: str) -> None:
    node.site("host.example", "/releases/unread", os.urandom(10_000_000))
    children = [
        node.start(sys.executable, str(PROGRAMS / "slow.py"), build.rpartition(":")[2], "8", head.hex())
        for head in (
            b"GET http://host.example/releases/a HTTP/1.1\r\nHost: host.ex",
            # Without no-cache, squid gives what the first one fetches to those that come later.
            b"GET http://host.example/releases/unread HTTP/1.1\r\nHost: host.example\r\n"
            b"Cache-Control: no-cache\r\n\r\n",
            b"CONNECT host.example:443 HTTP/1.1\r\n",
        )
    ]
    try:
        # All of them, so that none comes in the time of another test.
        unread = "http host.example GET /releases/unread"
        node.wait_for(lambda: node.requests().count(unread) == 8, "downloads that nobody reads")
        assert node.curl(build, A) == (200, "file a\n")
        assert node.curl(lab, A)[0] == 403
    finally:
        for child in children:
            child.terminate()
            child.wait()


def test_a_tunnel_shows_the_sites_own_certificate_and_is_logged_as_opaque(
    node: Node, build: str, lab: str
) -> None:
    own = ("--cacert", str(node.root / "sites-ca.pem"))
    assert node.curl(build, "https://pinned.example/x", *own) == (200, "pinned\n")
    assert node.curl(lab, "https://pinned.example/x", *own)[0] != 200
    assert any(
        "tunnel%2Fpinned.example" in line or "tunnel/pinned.example" in line for line in node.access_log()
    )


def test_a_tunnel_is_for_its_server_name_only(node: Node, build: str) -> None:
    before = node.requests()
    found = raw(node, build, connect("pinned.example"), "other.example", get("/releases/a", "other.example"))
    assert "of another host" not in found
    assert node.requests() == before


def test_a_change_applies_within_a_second_and_drops_no_download(node: Node, build: str) -> None:
    node.site("host.example", "/releases/large", os.urandom(30_000_000))
    url = "https://host.example/releases/large"
    slow = node.popen_curl(build, url, "--limit-rate", "4M")
    node.wait_for(lambda: any("large" in line for line in node.requests()), "a download")
    assert node.curl(build, "https://pypi.org/simple/bad/")[0] == 403
    edit.set_pypi(node.policy, "bad", "build", allow=True)
    # The next request has the new policy, so there is no time to measure.
    assert node.curl(build, "https://pypi.org/simple/bad/")[0] == 200
    edit.set_pypi(node.policy, "bad", "build", allow=False)
    assert node.curl(build, "https://pypi.org/simple/bad/")[0] == 403
    output, _ = slow.communicate()
    assert (slow.returncode, output.strip()) == (0, "200 30000000")


def test_a_network_that_learns_gets_all_but_what_is_denied_and_rules_are_proposed(node: Node) -> None:
    study = node.caller(network="study")
    url = "https://other.example/releases/a"
    assert node.curl(study, url) == (200, "of another host\n")
    assert node.curl(study, "https://host.example/secret")[0] == 403
    assert node.curl(study, "https://inner.example/x")[0] == 403
    node.wait_for(lambda: any("study" in line for line in node.access_log()), "a line in the log")
    command = (sys.executable, "-m", "tproxy", "egress", "learned", "--root", str(node.root))
    node.wait_for(lambda: url in node.run(*command).stdout, "a rule is proposed")
    assert "secret" not in node.run(*command).stdout


def test_a_broken_policy_changes_nothing(node: Node, build: str) -> None:
    text = node.policy.read_text()
    try:
        node.write_policy("rules: [")
        assert node.curl(build, A)[0] == 200
        assert node.curl(build, "https://other.example/x")[0] == 403
    finally:
        node.write_policy(text)


def test_every_line_of_the_log_is_json_and_names_the_caller(node: Node) -> None:
    proxy = node.caller(network='x"y\\')
    node.curl(proxy, "http://host.example/releases/x")
    node.wait_for(lambda: any("x%22y" in line for line in node.access_log()), "a line in the log")
    records = [json.loads(line) for line in node.access_log()]
    assert 'x"y\\' in [unquote(each["network"]) for each in records]
    allowed = next(each for each in records if each["url"].endswith("good/") and each["status"] == "200")
    assert unquote(allowed["rule"]).startswith("egress.yaml:")


def test_the_authoritys_key_is_secret_and_its_fingerprint_is_shown(node: Node) -> None:
    authority = Authority(node.layout.authority)
    assert authority.key.stat().st_mode & 0o777 == 0o600
    assert f"SHA-256 fingerprint: {fingerprint(authority.load())}" in node.prepared
    assert "-----BEGIN CERTIFICATE-----" in node.prepared
    shown = node.run(
        "openssl", "x509", "-noout", "-sha256", "-fingerprint", "-in", str(authority.certificate)
    )
    assert shown.stdout.strip().endswith(fingerprint(authority.load()))


def helpers(node: Node) -> list[psutil.Process]:
    """Return the processes that judge this node's requests."""
    words = {"tproxy.egress.squid.external_acl", str(node.policy)}
    return [each for each in psutil.process_iter(["cmdline"]) if words <= set(each.info["cmdline"] or ())]


def test_nothing_is_served_while_nobody_judges(node: Node, build: str) -> None:
    """The helper stands still, so no request gets an answer; when it goes on, the answer comes."""
    (helper,) = helpers(node)
    helper.suspend()
    try:
        assert node.curl(build, A, "-m", "2")[0] == 0
    finally:
        helper.resume()
    assert node.curl(build, A)[0] == 200


def test_a_killed_helper_is_replaced_and_its_requests_are_denied(node: Node, build: str) -> None:
    (helper,) = helpers(node)
    helper.kill()
    helper.wait()
    node.wait_for(lambda: node.curl(build, A)[0] == 200, "another helper judges")
    assert node.curl(build, "https://pypi.org/simple/bad/")[0] == 403


def test_a_sealed_site_asks_no_site(engines: None) -> None:
    """Without a mirror nothing can be served, and no request goes out, not even for what a rule allows."""
    with Node("mode: sealed\n" + POLICY, mirror=True) as node:
        node.site("host.example", "/releases/a", "file a\n")
        proxy = node.caller(network="build")
        for url in (A, "https://pypi.org/simple/good/", "http://host.example/releases/a"):
            status, body = node.curl(proxy, url)
            assert status in (403, 502, 503, 504), body
        assert node.curl(proxy, "https://pypi.org/simple/bad/")[0] in (403, 503)  # nobody records denials
        assert node.requests() == []
