"""What of the policy is in squid's configuration, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.egress.policies import TEXT, parse
from tproxy.egress.layout import Layout
from tproxy.egress.squid.authority import Authority
from tproxy.egress.squid.compiler import Surroundings, compiled


@pytest.fixture
def node(tmp_path: Path) -> Surroundings:
    node = Surroundings(Layout.below(tmp_path))
    Authority(node.layout.authority).ensure()
    return node


def test_a_change_of_rules_does_not_change_the_configuration(node: Surroundings) -> None:
    before = compiled(parse("tunnel: [a.example]\n"), node)
    assert compiled(parse(TEXT), node) == before


def test_ports_take_headers_but_for_the_one_of_hosts(node: Surroundings) -> None:
    lines = compiled(parse("clients: {10.0.0.0/8: office}\n"), node).splitlines()
    ports = [line for line in lines if line.startswith("http_port ")]
    assert [" require-proxy-header " in line for line in ports] == [True, True, False]


def test_a_sealed_site_goes_nowhere(node: Surroundings) -> None:
    assert "never_direct allow all" in compiled(parse("mode: sealed\n"), node)
    assert "never_direct allow all" not in compiled(parse("mode: dmz\n"), node)


def test_each_rate_has_a_pool(node: Surroundings) -> None:
    text = "limits: {bytes_per_second: 10k}\nrules: [{networks: [a], limits: {bytes_per_second: 20k}}]\n"
    assert "delay_pools 2" in compiled(parse(text), node)
    assert "delay_pools" not in compiled(parse(""), node)


def test_inner_addresses_are_looked_at_before_anything_is_allowed(node: Surroundings) -> None:
    lines = compiled(parse(""), replace(node, mirror=False)).splitlines()
    access = [line for line in lines if line.startswith("http_access ")]
    assert access[-2:] == ["http_access deny inner", "http_access allow all"]
    assert access[0] == "http_access deny manager"
