"""What of the policy is in squid's configuration, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.egress.policies import TEXT, parse
from tproxy.egress.layout import Layout
from tproxy.egress.squid import rates
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
    assert compiled(parse("mode: sealed\nlimits: {connections: 5, bytes_per_second: 3M}\n"), node) == before


def test_ports_take_headers_but_for_the_one_of_hosts(node: Surroundings) -> None:
    lines = compiled(parse("clients: {10.0.0.0/8: office}\n"), node).splitlines()
    ports = [line for line in lines if line.startswith("http_port ")]
    assert [" require-proxy-header " in line for line in ports] == [True, True, False]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(10_000_000, 10_000_000), (10 << 20, 10_000_000), (999, 1000), (2**31 - 1, 2 * 10**9)],
)
def test_a_rate_has_a_pool_that_is_a_quarter_slower_at_most(
    node: Surroundings, rate: int, expected: int
) -> None:
    assert rates.step(rate) == expected
    assert f"acl rate{expected} note rate {expected}" in compiled(parse(""), node).splitlines()
    for wanted in range(1000, 2_000_000, 997):
        assert 0.75 * wanted < rates.step(wanted) <= wanted


def test_inner_addresses_are_looked_at_before_anything_is_allowed(node: Surroundings) -> None:
    lines = compiled(parse(""), replace(node, mirror=False)).splitlines()
    access = [line for line in lines if line.startswith("http_access ")]
    assert access[-2:] == ["http_access deny inner", "http_access allow all"]
    assert access[0] == "http_access deny manager"
