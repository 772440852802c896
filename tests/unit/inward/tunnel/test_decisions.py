"""Decisions of tunnels: names, policy, tokens, keys on two machines, back-off."""

from __future__ import annotations

import pytest

from tproxy.config import reader
from tproxy.errors import TproxyError
from tproxy.inward.tunnel import policy, records
from tproxy.inward.tunnel.backoff import FIRST, GOOD, MOST, Backoff
from tproxy.inward.tunnel.names import Offer, Target, checked_name, offer_of, target_of
from tproxy.inward.tunnel.records import Node, Operator, Token
from tproxy.inward.tunnel.twins import WITHIN, Twins

FILE = """
tproxy_tunnels:
- {nodes: 'site-*', offer: [ssh, in, 'api:6443'], routes: true}
- {nodes: 'site-a', offer: 'db:5432', operators: [bob, 'team-*']}
"""
ALICE = Operator("alice", "site-*", "root")


@pytest.fixture
def found() -> policy.Policy:
    read = reader.parse("file", FILE)
    assert not read.warnings
    return policy.of(read.tunnels)


def test_what_no_entry_allows_is_refused(found: policy.Policy) -> None:
    assert found.may_offer("site-b", "ssh")
    assert not found.may_offer("site-b", "db")
    assert not found.may_offer("other", "ssh")
    assert found.may_route("site-a", "in")
    assert not found.may_route("site-a", "db")
    assert not policy.Policy().may_offer("site-a", "ssh")


def test_an_operator_needs_the_node_and_the_offer(found: policy.Policy) -> None:
    assert found.fault_of(ALICE, "site-a", "api") == ""
    assert found.fault_of(ALICE, "site-a", "db") == "operator alice may not use db of node site-a"
    assert found.fault_of(ALICE, "other", "ssh") == "operator alice may not use node other"
    assert found.fault_of(ALICE._replace(name="team-7"), "site-a", "db") == ""
    assert found.used_by(ALICE, "site-a") == [Offer("api", 6443), Offer("ssh", 22)]


def test_offers_are_found_by_their_port(found: policy.Policy) -> None:
    assert found.offer_at("site-a", 22) == "ssh"
    assert found.offer_at("site-a", 5432) == "db"
    assert found.offer_at("site-b", 5432) is None
    assert offer_of("in") == Offer("in")


@pytest.mark.parametrize("text", ["", "in:5", "ssh:0", "api", "api:65536", "API:5", "a/b:5"])
def test_an_offer_of_another_form_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no offer"):
        offer_of(text)


@pytest.mark.parametrize(
    "path",
    ["/tunnel/a/b/c", "/tunnel/a", "/tunnel//ssh", "/tunnel/../ssh", "x/tunnel/a/ssh", "/tunnel/A/ssh", ""],
)
def test_a_path_of_another_form_leads_nowhere(path: str) -> None:
    assert target_of(path) is None


def test_a_path_leads_to_an_offer() -> None:
    assert target_of("/tunnel/site-a/api") == Target("site-a", "api")
    assert Target("site-a", "api").path == "/tunnel/site-a/api"


def test_names_are_normalised_and_checked() -> None:
    assert checked_name("Site-A", "a node") == "site-a"
    for text in ("", "a/b", "-a", "a b", ".", "a" * 64, "ä"):
        with pytest.raises(TproxyError, match="is not the name of a node"):
            checked_name(text, "a node")


def test_a_token_says_why_it_does_not_count() -> None:
    token = Token("1", "", "site-*", 1, until=100)
    assert token.fault("site-a", 99) == ""
    assert "has expired" in token.fault("site-a", 100)
    assert "is for nodes site-*" in token.fault("other", 99)
    used = token._replace(used=("site-a",))
    assert "as many as it is for" in used.fault("site-b", 99)
    assert used.fault("site-a", 99) == ""
    assert "is revoked" in token._replace(revoked=True).fault("site-a", 99)


def test_a_token_is_known_by_its_hash_alone() -> None:
    _, text = records.new_token()
    hashed = records.hash_of(text)
    assert text not in hashed
    assert records.is_token(text, hashed)
    assert not records.is_token(text[:-1], hashed)


def test_records_are_read_as_they_were_written() -> None:
    node = Node("a", "ssh-ed25519 A", records.APPROVED, 5.0, host_keys=("k",), serials=((7, 9.5),))
    for record in (node, ALICE, Token("1", "h", "*", 2, 7.0, used=("a", "b"))):
        assert records.from_json(type(record), records.to_json(record)) == record  # type: ignore[type-var]
    later = records.to_json(node).replace('"name"', '"of a later version": 1, "name"')
    assert records.from_json(Node, later) == node
    for text in ("", "5", "{}", '{"name": "a"'):
        with pytest.raises(ValueError, match=r"."):
            records.from_json(Node, text)


def test_two_machines_alternate_when_live_connections_are_replaced_several_times() -> None:
    twins = Twins()
    assert [twins.replaced("a", moment) for moment in (0, 5, 10)] == [False, False, True]
    assert not twins.replaced("b", 11)
    twins.forget("a")
    assert [twins.replaced("a", moment) for moment in (20, 20 + WITHIN, 21 + WITHIN)] == [False] * 3


def test_waits_double_up_to_a_limit_and_begin_anew_after_a_good_connection() -> None:
    backoff = Backoff(lambda: 0.5)
    waits = [backoff.wait(0) for _ in range(9)]
    assert waits[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert waits[-1] == MOST
    assert backoff.wait(GOOD) == FIRST
    assert Backoff(lambda: 0.0).wait(0) == FIRST / 2
    assert Backoff(lambda: 1.0).wait(0) == FIRST * 1.5
