"""Operators of tunnels: by plain ssh, Ansible, SOCKS, curl and kubectl, and what they may not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inward.tunnel.sites import ENV, PATIENCE, World, world
from tests.netns.conftest import ENDPOINTS
from tests.netns.waiting import eventually

POLICY = """
tproxy_tunnels:
- {nodes: 'site-*', offer: [ssh, 'api:6443', 'digest:7', 'sink:9']}
- {nodes: 'site-*', offer: 'secret:99', operators: bob}
"""
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def net(real_kernel: None) -> Iterator[World]:
    """A gateway with two nodes, and the operators alice (all sites) and bob (site-b)."""
    with world(2) as found:
        found.write_policy(POLICY)
        found.serve()
        text = found.token("site-*", "--count", "2", "--approve")
        offers = {
            "ssh": "127.0.0.1:22", "api": "127.0.0.1:6443", "digest": "127.0.0.1:7", "sink": "127.0.0.1:9",
            "secret": "127.0.0.1:7",
        }  # fmt: skip
        for site, name in zip(found.sites, ("site-a", "site-b"), strict=True):
            site.configure(text, name=name, offer=json.dumps(offers))
            for behaviour, port in (("digest", "7"), ("sink", "9")):
                site.host.serve(sys.executable, str(ENDPOINTS), behaviour, "127.0.0.1", port)
            site.start()
        for name in ("site-a", "site-b"):
            found.await_offer(name, "secret")
        found.add_operator("alice", "site-*")
        found.add_operator("bob", "site-b", "/run/bob")
        yield found


def forward(net: World, target: str, **options: object) -> subprocess.Popen[bytes]:
    """Begin a stream to an offer, whose bytes are those of the process."""
    argv = net.desk.command("ssh", "-F", "/run/operator/config", "-W", target, "tproxy-gateway")
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def test_ansible_works_unchanged(net: World) -> None:
    net.desk.write("/run/inventory", "[all]\nsite-a\nsite-b\n")
    ansible = str(Path(sys.executable).with_name("ansible"))
    settings = {
        "ANSIBLE_SSH_ARGS": "-F /run/operator/config",
        "ANSIBLE_REMOTE_TMP": "/run/ansible",
        "ANSIBLE_LOCAL_TEMP": "/run/ansible",
        "ANSIBLE_HOME": "/run/ansible",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
    }
    done = net.desk.run(
        *(ansible, "-i", "/run/inventory", "all", "-m", "command", "-a", "hostname -I"),
        env=ENV | settings,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for site in net.sites:
        assert site.address in done.stdout


def test_curl_and_kubectl_use_a_nodes_api_by_socks(net: World) -> None:
    host = net.sites[0].host
    host.run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", "/run/api.key", "-out", "/run/api.pem", "-days", "2", "-subj", "/CN=site-a"),
        *("-addext", "subjectAltName=DNS:site-a"),
    )
    server = Path(__file__).parent / "programs" / "api_server.py"
    host.serve(sys.executable, str(server), "6443", "/run/api.pem", "/run/api.key")
    net.desk.write("/run/api.pem", host.path("/run/api.pem").read_text())
    socks = net.desk.popen(
        *("ssh", "-F", "/run/operator/config", "-N", "-D", "127.0.0.1:1080", "tproxy-gateway"), env=ENV
    )
    curl = ("curl", "-sS", "--socks5-hostname", "127.0.0.1:1080", "--cacert", "/run/api.pem")
    for _ in eventually():
        done = net.desk.run(*curl, "https://site-a:6443/api", check=False)
        if done.returncode == 0:
            break
    assert "APIVersions" in done.stdout
    assert net.desk.run(*curl, "https://site-a:6444/api", check=False).returncode != 0
    net.desk.write(
        "/run/kubeconfig",
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "site",
                "contexts": [{"name": "site", "context": {"cluster": "site", "user": "any"}}],
                "users": [{"name": "any", "user": {"token": "any"}}],
                "clusters": [
                    {
                        "name": "site",
                        "cluster": {
                            "server": "https://site-a:6443",
                            "certificate-authority": "/run/api.pem",
                            "proxy-url": "socks5://127.0.0.1:1080",
                        },
                    }
                ],
            }
        ),
    )
    done = net.desk.run("kubectl", "--kubeconfig", "/run/kubeconfig", "get", "pods", env=ENV)
    assert "pod-behind-nat" in done.stdout
    socks.kill()
    socks.wait()


def test_each_direction_of_a_stream_ends_by_itself_and_no_byte_is_lost(net: World) -> None:
    data = os.urandom(MEGABYTE) * 24
    with forward(net, "site-a:7") as process:
        answer, _ = process.communicate(data)
    import hashlib

    assert answer.decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def test_what_nobody_reads_waits_at_its_sender_and_not_in_the_gateway(net: World) -> None:
    before = memory(net)
    with forward(net, "site-a:9") as process:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        sent = stalled = 0
        for _ in eventually():
            try:
                sent += os.write(process.stdin.fileno(), bytes(1 << 16))
                stalled = 0
            except BlockingIOError:
                stalled += 1
            if stalled > 60 or sent > 400 * MEGABYTE:
                break
        process.kill()
    assert sent < 100 * MEGABYTE
    grown = {name: size - before[name] for name, size in memory(net).items()}
    assert max(grown.values()) < 40 * MEGABYTE, grown


def memory(net: World) -> dict[str, int]:
    """Return the largest size that gateway and node have had, in bytes."""
    found = {}
    for name, process in (("gateway", net.process), ("node", net.sites[0].tunnel)):
        assert process is not None
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        status = Path(f"/proc/{child}/status").read_text()
        found[name] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return found


def test_an_operator_uses_only_nodes_and_offers_that_the_policy_allows(net: World) -> None:
    listed = net.at_desk("node", "list", "--operator", "/run/bob").stdout
    assert "site-b" in listed
    assert "site-a" not in listed
    assert net.sites[1].address in net.ssh("site-b", "hostname", "-I", directory="/run/bob").stdout
    refused = net.ssh("-W", "site-a:22", "tproxy-gateway", directory="/run/bob", check=False)
    assert "operator bob may not use node site-a" in refused.stderr
    assert net.ssh("-W", "site-b:99", "tproxy-gateway", directory="/run/bob").stdout.startswith("0 ")
    refused = net.ssh("-W", "site-b:99", "tproxy-gateway", check=False)
    assert "operator alice may not use secret of node site-b" in refused.stderr
    refused = net.ssh("-W", "127.0.0.1:22", "tproxy-gateway", check=False)
    assert refused.returncode != 0
    assert net.audit("refused", who="operator:bob", node="site-a", offer="ssh")


def test_a_policy_that_changes_counts_at_once_and_a_bad_one_changes_nothing(net: World) -> None:
    net.write_policy(POLICY.replace("'digest:7', ", ""))
    for _ in eventually():
        if "digest" not in net.nodes()["site-a"]["offers"]:
            break
    refused = net.ssh("-W", "site-a:7", "tproxy-gateway", check=False)
    assert "nothing is offered at site-a:7" in refused.stderr
    net.write_policy("tproxy_tunnels: 5\n")
    for _ in eventually():
        if "tproxy_tunnels is not a list" in net.log():
            break
    assert net.sites[0].address in net.ssh("site-a", "hostname", "-I").stdout
    net.write_policy(POLICY)
    net.await_offer("site-a", "digest")


def test_a_suspended_node_ends_its_sessions_and_comes_again_when_it_is_resumed(net: World) -> None:
    with forward(net, "site-b:7") as process:
        for _ in eventually():
            if net.nodes()["site-b"]["streams"]:
                break
        net.tproxy("node", "suspend", "site-b", "--reason", "on a truck")
        process.wait(PATIENCE)
    assert net.await_state("site-b", "suspended")["state"] == "suspended: on a truck"
    refused = net.ssh("site-b", "true", check=False)
    assert refused.returncode != 0
    net.tproxy("node", "resume", "site-b")
    net.sites[1].stop()
    net.sites[1].start()
    net.await_offer("site-b", "ssh")


def test_removing_an_operator_ends_open_sessions(net: World) -> None:
    net.add_operator("carol", "site-*", "/run/carol")
    session = net.desk.popen("ssh", "-F", "/run/carol/config", "site-a", "sleep", "1000", env=ENV)
    for _ in eventually():
        if net.audit("stream", who="operator:carol"):
            break
    net.tproxy("operator", "remove", "carol")
    assert session.wait(60) == 255
    assert net.await_audit("refused", "there is no operator carol", who="operator:carol")
    assert "carol" not in net.tproxy("operator", "list").stdout
    assert net.ssh("site-a", "true", directory="/run/carol", check=False).returncode == 255
    refused = net.at_desk("operator", "login", "--directory", "/run/carol", check=False)
    assert "there is no operator carol" in refused.stderr


def test_only_the_key_of_the_first_login_gets_certificates(net: World) -> None:
    said = net.tproxy("operator", "add", "dave", "--nodes", "site-a", "--login", "root").stdout
    words = said.strip().removeprefix("tproxy ").split("'")
    login = [*words[0].split(), words[1], *words[2].split(), "--directory"]
    net.at_desk(*login, "/run/dave")
    assert (
        "the certificate is valid until"
        in net.at_desk("operator", "login", "--directory", "/run/dave").stdout
    )
    refused = net.at_desk(*login, "/run/thief", check=False)
    assert "operator dave has another key" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_certificate_that_has_expired_opens_no_more_streams(net: World) -> None:
    net.stop()
    net.serve("--operator-certificate", "20")  # long enough to log in on a busy machine
    for site in net.sites:
        site.stop()
        site.start()
    net.at_desk("operator", "login", "--directory", "/run/operator")
    socks = net.desk.popen("ssh", "-F", "/run/operator/config", "-N", "-D", "1081", "tproxy-gateway", env=ENV)
    curl = ("curl", "-sS", "--max-time", "60", "--socks5-hostname", "127.0.0.1:1081", "http://site-a:99/")
    for _ in eventually():
        net.desk.run(*curl, check=False)
        if net.audit("refused", who="operator:alice", reason="the certificate has expired"):
            break
    assert socks.poll() is None
    refused = net.ssh("site-a", "true", check=False)
    assert refused.returncode == 255
    socks.kill()
    socks.wait()
    net.stop()
    net.serve()
    net.at_desk("operator", "login", "--directory", "/run/operator")
    net.await_offer("site-a", "ssh")
    assert net.sites[0].address in net.ssh("site-a", "hostname", "-I").stdout
