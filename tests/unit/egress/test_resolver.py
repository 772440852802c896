"""Names of the policy have the service address; other names do not exist."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.egress import resolver

HOSTS = frozenset({"pypi.org", "*.cdn.example"})


def ask(name: str, kind: str = "A") -> dns.message.Message:
    found = resolver.answer(dns.message.make_query(name, kind).to_wire(), HOSTS)
    assert found is not None
    return dns.message.from_wire(found)


@pytest.mark.parametrize("name", ["pypi.org", "PyPI.ORG", "x.cdn.example"])
def test_a_host_of_the_policy_has_the_service_address(name: str) -> None:
    response = ask(name)
    assert [each.to_text() for each in response.answer[0]] == ["169.254.16.9"]
    assert response.answer[0].ttl <= 60


@pytest.mark.parametrize("name", ["evil.example", "cdn.example", "a.b.cdn.example", "org", "."])
def test_other_names_do_not_exist(name: str) -> None:
    assert ask(name).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("kind", ["AAAA", "TXT", "HTTPS", "ANY"])
def test_a_host_has_nothing_but_an_ipv4_address(kind: str) -> None:
    response = ask("pypi.org", kind)
    assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])


def test_an_answer_gets_no_answer() -> None:
    query = dns.message.make_query("pypi.org", "A")
    query.flags |= dns.flags.QR
    assert resolver.answer(query.to_wire(), HOSTS) is None


@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    resolver.answer(data, HOSTS)
