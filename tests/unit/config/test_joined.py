"""The configuration of a host that has a document of its fleet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.config import cache, file, joined
from tproxy.config.services import Config, choose
from tproxy.model import Network

OWN = "tproxy: [{service_port: 80, remote_addr: 10.0.0.1, remote_port: 1}]\ntproxy_workers: 2\n"
DOCUMENT = """# x not_after=0
tproxy:
- {service_port: 80, remote_addr: 10.0.0.2, remote_port: 2}
- {service_port: 81, remote_addr: 10.0.0.2, remote_port: 2}
tproxy_workers: 3
tproxy_ipv6: true
tproxy_gateway_ranges: [10.0.0.0/8]
tproxy_routes:
- {id: a, network: n, guest_addr: 10.0.0.5, port: 80, domain: a.example.com}
- {id: b, network: n, guest_addr: 10.0.0.5, port: 81, domain: b.example.com}
"""
ROUTES = "tproxy_routes:\n- {id: c, network: n, guest_addr: 10.0.0.6, port: 80, domain: a.example.com}\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file, "DOCUMENT", str(tmp_path / "document.yaml"))
    monkeypatch.setattr(joined, "DOCUMENT", str(tmp_path / "document.yaml"))
    monkeypatch.setattr(cache, "DOCUMENT", str(tmp_path / "document.yaml"))
    (tmp_path / "own.yaml").write_text(OWN + ROUTES)
    (tmp_path / "document.yaml").write_text(DOCUMENT)
    return tmp_path


def loaded(host: Path) -> Config:
    return joined.load(host / "own.yaml")


def test_the_hosts_own_entries_come_first_and_problems_name_the_line_of_the_document(host: Path) -> None:
    found = loaded(host)
    services, problems = choose(found, Network("n"), {})
    assert {key.port: each.endpoint.port for key, each in services.items()} == {80: 1, 81: 2}
    assert [each.at(found.path) for each in problems] == [
        f"{host}/document.yaml:3: entry 1: service_port 80: entry 1 (line 1 of the file of this host) "
        "has it on this network: entry ignored"
    ]
    assert [each.id for each in found.routes] == ["c", "b"]
    assert [each.at(found.path) for each in found.warnings] == [
        f"{host}/document.yaml:9: tproxy_routes: a: domain a.example.com is that of route c in line 4 of "
        "the file of this host: entry skipped"
    ]


def test_an_option_counts_as_the_host_says_and_otherwise_as_the_document_says(host: Path) -> None:
    found = loaded(host)
    assert (found.workers, found.ipv6) == (2, True)


def test_to_where_a_gateway_may_lead_is_said_by_the_host_alone(host: Path) -> None:
    assert loaded(host).gateway_ranges == ()
    assert joined.load(host / "document.yaml").gateway_ranges == ()


def test_a_document_whose_time_is_over_counts_for_nothing(host: Path) -> None:
    (host / "document.yaml").write_text(DOCUMENT.replace("not_after=0", "not_after=1000000000"))
    assert [each.id for each in loaded(host).routes] == ["c"]
    assert joined.load(host / "document.yaml").entries == ()


def test_what_hooks_remember_is_never_out_of_date(host: Path) -> None:
    first = cache.load(str(host / "own.yaml"), remember=False)
    assert first == loaded(host)
    (host / "document.yaml").unlink()
    assert len(cache.load(str(host / "own.yaml"), remember=False).entries) == 1


def test_a_document_without_a_key_of_services_is_no_mistake(host: Path) -> None:
    (host / "document.yaml").write_text("# x not_after=0\nentries: []\n")
    assert not joined.load(host / "document.yaml").silent
    assert not loaded(host).silent
