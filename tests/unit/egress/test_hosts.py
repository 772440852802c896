"""Hypervisors elsewhere: what their certificates list, and what the gate lets them claim."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tproxy import proxy_protocol
from tproxy.egress.hosts import haproxy
from tproxy.egress.hosts.certificates import Host, Hosts, read_link
from tproxy.egress.hosts.gate import checked
from tproxy.errors import ProtocolError, TproxyError

HOST = Host("hv2", frozenset({"build", "7"}), "")


def header(**values: str) -> proxy_protocol.Header:
    kinds = {
        "network": proxy_protocol.OF_NETWORK,
        "network_id": proxy_protocol.OF_NETWORK_ID,
        "mac": proxy_protocol.OF_MAC,
        "hypervisor": proxy_protocol.OF_HYPERVISOR,
        "id": proxy_protocol.UNIQUE_ID,
    }
    found = {kinds[name]: text for name, text in values.items()}
    return proxy_protocol.Header(("10.0.0.5", 4000), ("169.254.16.9", 3128), found)


def test_the_gate_keeps_the_guest_and_writes_the_hosts_own_name() -> None:
    said = checked(HOST, header(network="build", network_id="7", mac="02::1", hypervisor="hv1", id="x"))
    found = proxy_protocol.decode(said)
    assert found.source == ("10.0.0.5", 4000)
    assert found.destination == ("169.254.16.9", 3128)
    assert found.values == header(network="build", network_id="7", mac="02::1", hypervisor="hv2").values


def test_a_network_that_the_certificate_does_not_list_is_refused() -> None:
    for values in ({"network": "lab"}, {"network": "lab", "network_id": "7"}, {"network_id": "8"}):
        with pytest.raises(ProtocolError, match="may not claim"):
            checked(HOST, header(**values))


def test_an_id_that_the_certificate_does_not_list_is_left_out() -> None:
    """Rules name networks by their ids too, so a host may claim no other one beside its own name."""
    found = proxy_protocol.decode(checked(HOST, header(network="build", network_id="8")))
    assert proxy_protocol.OF_NETWORK_ID not in found.values


def test_a_header_that_names_nobody_is_refused() -> None:
    with pytest.raises(ProtocolError, match="names no caller"):
        checked(HOST, proxy_protocol.Header(None, None, {}))


def test_a_host_for_all_networks_may_claim_any() -> None:
    found = proxy_protocol.decode(checked(Host("hv3", frozenset("*"), ""), header(network="any")))
    assert found.values[proxy_protocol.OF_NETWORK] == "any"


def test_certificates_list_names_of_all_kinds_until_the_host_is_removed(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path / "hosts")
    hosts.add("hv2", ["build", "a b/ü,c"], "egress.example:8444")
    hosts.add("../hv3", ["*"], "egress.example:8444")
    found = {each.name: each for each in hosts.all()}
    assert found["hv2"].networks == {"build", "a b/ü,c"}
    assert hosts.find(found["hv2"].fingerprint.upper()) == found["hv2"]
    with pytest.raises(TproxyError, match="remove it first"):
        hosts.add("hv2", ["lab"], "egress.example:8444")
    hosts.remove("hv2")
    assert [each.name for each in hosts.all()] == ["../hv3"]
    assert hosts.find(found["hv2"].fingerprint) is None


def test_the_file_of_a_host_says_where_the_node_is_and_openssl_verifies_it(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path / "hosts")
    file = tmp_path / "hv2.pem"
    file.write_bytes(hosts.add("hv2", ["build"], "egress.example:8444"))
    node, own, trusted = read_link(file)
    assert node == "egress.example:8444"
    (tmp_path / "own.pem").write_bytes(own)
    (tmp_path / "ca.pem").write_bytes(trusted)
    for purpose, certificate in (("sslclient", tmp_path / "own.pem"), ("sslserver", hosts.node)):
        command = ["openssl", "verify", "-purpose", purpose, "-CAfile", str(tmp_path / "ca.pem")]
        subprocess.run([*command, str(certificate)], check=True, capture_output=True)
    assert hosts.node.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("text", ["", "# tproxy egress node a:1\nnothing", "-----BEGIN CERTIFICATE-----"])
def test_a_file_that_is_no_link_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.pem"
    file.write_text(text)
    with pytest.raises(TproxyError, match="is not what"):
        read_link(file)


def test_haproxys_configurations_require_certificates_on_both_sides(tmp_path: Path) -> None:
    node = haproxy.of_node("0.0.0.0", 8444, Path("/n.pem"), Path("/ca.pem"), Path("/gate"))
    assert "bind 0.0.0.0:8444 ssl crt /n.pem ca-file /ca.pem verify required" in node
    host = haproxy.of_hypervisor("egress.example:8444", (3128,), Path("/h.pem"), Path("/ca.pem"))
    assert "ca-file /ca.pem verify required verifyhost node.tproxy.invalid" in host
