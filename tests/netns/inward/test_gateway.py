"""The gateway: HAProxy before routes, by real clients: curl with HTTP/1 and HTTP/2, and openssl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.netns.inward.site import CERTIFICATES, CONFIG, Site
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy import proxy_protocol
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture(scope="module")
def site(real_kernel: None) -> Iterator[Site]:
    with Hypervisor() as host:
        yield Site(host)


def test_port_80_leads_by_host(site: Site) -> None:
    assert site.curl("http://plain.example.com/").stdout == "one"
    assert site.curl("http://ended.example.com/").stdout == "two"
    assert site.curl("http://a.wild.example.com/").stdout == "one"
    assert site.curl("http://plain.example.com.evil.net/").stdout == "no such site"
    assert site.curl("http://x.plain.example.com/").stdout == "no such site"


def test_tls_is_passed_through_to_the_guest_by_its_name(site: Site) -> None:
    done: Any = None
    for _ in eventually():
        done = site.curl("https://plain.example.com/", "-v")
        if done.returncode == 0:
            break
    assert "subject: CN=plain.example.com" in done.stderr
    assert "s_server" in done.stdout


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_tls_ends_at_the_gateway_with_certificates_of_files(site: Site, version: str) -> None:
    done = site.curl("https://ended.example.com/", version, "-v")
    assert done.stdout == "two"
    assert "subject: CN=ended.example.com" in done.stderr
    assert site.curl("https://b.wild.example.com/", version).stdout == "one"


def test_one_connection_with_several_hosts_reaches_the_right_guest_for_each_request(site: Site) -> None:
    """HTTP/2 clients send requests for several names on one connection (coalescing)."""
    for version in ("--http1.1", "--http2"):
        urls = "https://ended.example.com/"
        done = site.curl(urls, version, urls, "-H", "Host: b.wild.example.com", urls)
        assert done.stdout == "one" * 3
        assert site.curl(urls, version, urls).stdout == "twotwo"


def test_what_is_no_tls_or_has_an_unknown_name_is_refused(site: Site) -> None:
    assert site.curl("https://unknown.example.com/").returncode != 0
    plain = site.host.run("curl", "-sS", "--max-time", "60", "http://127.0.0.1:443/", check=False)
    assert plain.returncode != 0


def test_a_request_for_a_name_that_is_passed_through_gets_421_where_tls_ends(site: Site) -> None:
    """keycloak/keycloak#50602, dlundquist/sniproxy#178: HTTP/2 coalescing reaches the wrong site."""
    url = "https://ended.example.com/"
    told = ("-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n")
    done = site.curl(url, "--http2", *told, url, "-H", "Host: plain.example.com", *told)
    assert done.stdout == "421 1\n421 0\n"


def test_a_protocol_whose_server_speaks_first_and_changes_to_tls_later_works(site: Site) -> None:
    """traefik/traefik#12866: STARTTLS broken."""
    site.host.serve(*program("starttls", "10.0.0.5", "25", "/run/guest/plain.example.com.pem"), netns="one")
    done = site.host.run(
        *("openssl", "s_client", "-quiet", "-starttls", "smtp", "-connect", "127.0.0.1:10025"),
        input="NOOP\r\nQUIT\r\n",
        check=False,
    )
    assert done.stdout.count("250 ok, inside TLS") == 2


def test_a_guest_that_refuses_is_told_to_the_client_at_once(site: Site) -> None:
    url = "https://closed.example.com/"
    done = site.curl(url, "--http1.1", "-o", "/dev/null", "-w", "%{http_code}")
    assert done.stdout == "502"
    assert site.curl(url, "--http2").returncode != 0  # HAProxy tells HTTP/2 by REFUSED_STREAM


def test_one_client_has_a_limit_of_its_own_at_the_gateway(site: Site) -> None:
    assert "another configuration" in site.up("--most-per-client", "3").stdout
    with ExitStack() as held:
        for _ in range(3):
            process = site.host.popen(
                *program("held_port", "10007"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            held.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        assert site.curl("http://plain.example.com/").returncode != 0
        other = site.curl("http://plain.example.com/", "--interface", "127.0.0.2")
        assert other.stdout == "one"
    site.up()


def test_a_port_of_the_range_leads_to_a_guest_which_is_told_the_clients_address(site: Site) -> None:
    """fatedier/frp#5387, rathole-org/rathole#142: the client's address is lost."""
    port, data = site.host.run(*program("said_by_port", "10007")).stdout.split()
    start = proxy_protocol.START + proxy_protocol.length(bytes.fromhex(data)[: proxy_protocol.START])
    header = proxy_protocol.decode(bytes.fromhex(data)[:start])
    assert (header.source, header.destination) == (("127.0.0.1", int(port)), ("127.0.0.1", 10007))
    assert bytes.fromhex(data)[start:] == b"hello"
    assert len(site.host.run(*program("said_by_port", "10008"), check=False).stdout.split()) < 2


def test_a_large_hello_is_served(site: Site) -> None:
    """haproxy/haproxy#3148: one of several segments was aborted at random."""
    names = ",".join(f"protocol-{number:04}" for number in range(120))
    for _ in range(5):
        done = site.host.run(
            *("openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", "ended.example.com"),
            *("-alpn", names),
            check=False,
        )
        assert "subject=CN = ended.example.com" in done.stdout, done


def test_two_hundred_routes_change_at_once_under_load_and_no_client_fails(site: Site) -> None:
    many = [
        f"- {{id: m{n}, network: blue, guest_addr: 10.0.0.5, port: 80, domain: m{n}.example.com}}\n"
        for n in range(200)
    ]
    before = site.workers
    client = site.host.popen(
        *program("page_load", "plain.example.com", "one"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=1,
    )
    assert client.stdout is not None
    assert client.stdin is not None
    assert client.stdout.readline() == "ready\n"
    site.configure(CONFIG + "".join(many))
    site.tproxy("refresh")
    site.up()
    assert site.curl("http://m199.example.com/").stdout == "one"
    site.configure(CONFIG)
    site.tproxy("refresh")
    site.up()
    print("end", file=client.stdin, flush=True)
    served, failed = map(int, client.stdout.readline().split())
    assert failed == 0
    assert served > 0
    assert site.workers == before


def test_another_configuration_takes_over_and_no_client_is_refused(site: Site) -> None:
    """openshift/router#429: a reload cut connections."""
    held = site.host.popen(
        *program("held_port", "10007"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
    )
    assert held.stdout is not None
    assert held.stdin is not None
    assert held.stdout.readline().startswith("ready")
    before = site.workers
    assert "another configuration" in site.up("--ports", "10000-10039").stdout
    assert site.curl("http://plain.example.com/").stdout == "one"
    assert site.workers != before
    print(file=held.stdin, flush=True)
    assert held.stdout.readline() == "served\n"
    site.up()


@pytest.mark.parametrize("end", ["down", "kill"])
def test_clients_learn_that_the_gateway_has_ended_and_the_next_one_serves(site: Site, end: str) -> None:
    held = site.host.popen(
        *program("held_port", "10007"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=1,
    )
    assert held.stdout is not None
    assert held.stdin is not None
    assert held.stdout.readline() == "ready\n"
    if end == "down":
        site.tproxy("gateway", "down")
    else:
        for process in site.workers:
            site.host.run("kill", "-9", process, check=False)  # a worker may end with its master
    _, error = held.communicate(input="\n")
    assert "ConnectionReset" in error or "BrokenPipe" in error
    for _ in eventually():
        if "HAProxy started" in site.up(check=False).stdout:
            break
    assert site.curl("http://plain.example.com/").stdout == "one"
    for _ in eventually():  # nothing of the old gateway's is left in workers
        rows = json.loads(site.tproxy("connections", "--interval", "0", "--json").stdout)["connections"]
        if not [each for each in rows if each["route"] == "told"]:
            break


def test_routes_change_without_a_reload(site: Site) -> None:
    before = site.workers
    moved = CONFIG.replace("guest_addr: 10.0.0.6, port: 80", "guest_addr: 10.0.0.5, port: 80")
    site.configure(
        moved + "- {id: more, network: blue, guest_addr: 10.0.0.6, port: 80, domain: more.example.com}\n"
    )
    site.tproxy("refresh")
    assert site.up().stdout.startswith("host.map: 4 lines\n")
    assert site.curl("http://more.example.com/").stdout == "two"
    assert site.curl("http://ended.example.com/").stdout == "one"
    site.configure(CONFIG)
    site.tproxy("refresh")
    site.up()
    assert site.curl("http://more.example.com/").stdout == "no such site"
    assert site.up().stdout == ""
    assert site.workers == before


def test_certificates_change_without_a_reload_and_a_bad_one_is_refused(site: Site) -> None:
    before = site.workers
    serial = site.curl("https://ended.example.com/", "-v").stderr
    site.make_certificate("ended.example.com", CERTIFICATES)
    assert f"certificate {CERTIFICATES}/ended.example.com.pem" in site.up().stdout
    after = site.curl("https://ended.example.com/", "-v")
    assert after.stdout == "two"
    assert after.stderr != serial
    site.host.write(f"{CERTIFICATES}/bad.pem", "no certificate\n")
    refused = site.up(check=False)
    assert refused.returncode == 1
    assert f"{CERTIFICATES}/bad.pem cannot be used" in refused.stderr
    assert site.curl("https://ended.example.com/").stdout == "two"
    site.host.run("rm", f"{CERTIFICATES}/bad.pem")
    assert site.workers == before


def used(site: Site) -> dict[tuple[str, str], int]:
    shown = json.loads(site.tproxy("gateway", "usage", "--json").stdout)
    found: dict[tuple[str, str], int] = {}
    for each in shown["usage"]:
        key = each["owner"], each["kind"]
        found[key] = found.get(key, 0) + each["times"]
    return found


def test_uses_are_counted_by_owner_and_kind_across_reloads_and_restarts(site: Site) -> None:
    site.up()
    before = used(site)
    url = "https://ended.example.com/"
    site.curl(url, "--http2", url)
    site.curl("http://plain.example.com/")
    site.curl("https://plain.example.com/")
    site.host.run(*program("said_by_port", "10007"))
    after = used(site)
    new = {("bob", "https"): 2, ("alice", "http"): 1, ("alice", "tls"): 1, ("", "port"): 1}
    grown = {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key)}
    assert grown == new
    assert "another configuration" in site.up("--most-per-client", "501").stdout
    site.configure(CONFIG.replace("owner: bob", "owner: carol"))
    site.tproxy("gateway", "down")
    assert used(site) == after
    site.up()
    site.curl(url)
    assert used(site) == {**after, ("carol", "https"): 1}
    shown = site.tproxy("gateway", "usage", "--metrics").stdout
    assert 'tproxy_gateway_uses_total{owner="carol",kind="https",route="ended"} 1\n' in shown
    site.configure(CONFIG)
    site.up()


def test_a_taken_port_names_its_holder_and_purge_leaves_nothing(site: Site) -> None:
    site.tproxy("gateway", "down", "--purge")
    assert site.host.run("pgrep", "-x", "haproxy", check=False).stdout == ""
    assert not list(site.host.path("/run/tproxy-gateway").iterdir())
    holder = (
        "python3",
        "-c",
        "import socket,time; s=socket.create_server(('', 80)); print('ready', flush=True); time.sleep(1e6)",
    )
    process = site.host.serve(*holder)
    refused = site.up(check=False)
    assert "port 80 cannot be had: Address already in use: python3 (process " in refused.stderr
    process.kill()
    process.wait()
    for _ in eventually():
        if site.up(check=False).returncode == 0:
            break
    assert site.curl("http://plain.example.com/").stdout == "one"
