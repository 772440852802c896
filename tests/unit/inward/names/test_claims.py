"""Who may have which name."""

from __future__ import annotations

from tests.unit.inward.names.zones import route, zone
from tproxy.inward.names.claims import (
    AWAITED,
    NAME_KEPT,
    PROVED,
    Claim,
    Holder,
    Ledger,
    after_look,
    assumed,
    judge,
    next_look,
)
from tproxy.inward.names.model import Zone

NOW = 1_800_000_000
APPS = zone("apps.example.com")


NOTHING = Ledger()


def refused(
    *wishes: tuple[str, str], ledger: Ledger = NOTHING, zones: tuple[Zone, ...] = (APPS,)
) -> dict[str, str]:
    routes = [route(f"r{number}", domain, owner) for number, (domain, owner) in enumerate(wishes)]
    return dict(judge(zones, routes, ledger, NOW).refused)


def test_the_first_owner_of_a_name_keeps_it() -> None:
    """fatedier/frp#2688: anyone claims any name."""
    said = refused(
        ("a.apps.example.com", "one"), ("a.apps.example.com", "two"), ("b.apps.example.com", "two")
    )
    assert said == {"r1": "a.apps.example.com is one's, who had it first"}


def test_wildcards_overlap_names_of_other_owners_at_any_depth() -> None:
    wild, name = ("*.apps.example.com", "one"), ("x.a.apps.example.com", "two")
    assert "r1" in refused(wild, name)
    assert "r1" in refused(name, wild)
    assert "r1" in refused(wild, ("*.a.apps.example.com", "two"))
    assert "r1" in refused(("*.a.apps.example.com", "two"), wild)
    assert refused(wild, ("x.a.apps.example.com", "one")) == {}
    assert refused(("*.a.apps.example.com", "one"), ("a.apps.example.com", "two")) == {}


def test_names_without_owner_are_the_operators_and_conflict_with_none() -> None:
    assert refused(("*.apps.example.com", ""), ("a.apps.example.com", "one")) == {}


def test_who_had_a_name_keeps_it_whatever_the_order_of_the_file() -> None:
    held = Ledger(holders={"a.apps.example.com": Holder("two", 5, NOW - 10)})
    wishes = (("a.apps.example.com", "one"), ("a.apps.example.com", "two"))
    assert list(refused(*wishes, ledger=held)) == ["r0"]
    assert list(refused(wishes[0], ledger=held)) == ["r0"]  # also for a while after the last route is gone
    late = Ledger(holders={"a.apps.example.com": Holder("two", 5, NOW - NAME_KEPT)})
    assert refused(wishes[0], ledger=late) == {}


def test_an_older_wildcard_wins_over_a_name_that_comes_first_in_the_file() -> None:
    held = Ledger(holders={"*.apps.example.com": Holder("two", 5, NOW)})
    assert list(refused(("a.apps.example.com", "one"), ("*.apps.example.com", "two"), ledger=held)) == ["r0"]


def test_names_are_compared_in_their_one_form() -> None:
    assert list(refused(("A.apps.example.com", "one"), ("a.APPS.example.com", "two"))) == ["r1"]


def test_an_owner_without_proof_has_no_name_and_neither_has_another() -> None:
    zones = (APPS, zone("shop.example.org", "one"))
    said = refused(("www.shop.example.org", "one"), ("www.shop.example.org", "two"), zones=zones)
    assert said["r0"] == "one has not proved control of shop.example.org yet"
    assert "r1" in said
    proved = Ledger({("shop.example.org", "one"): Claim(proved=5)})
    said = refused(("www.shop.example.org", "one"), ("a.shop.example.org", "two"), zones=zones, ledger=proved)
    assert said == {"r1": "a.shop.example.org is in shop.example.org, which is one's"}


def test_of_zones_that_overlap_the_one_that_was_proved_first_counts() -> None:
    zones = (zone("example.org", "late"), zone("shop.example.org", "early"))
    ledger = Ledger(
        {("example.org", "late"): Claim(proved=9), ("shop.example.org", "early"): Claim(proved=5)}
    )
    verdict = judge(zones, [route("x", "www.example.org", "late")], ledger, NOW)
    assert [each.owner for each in verdict.zones] == ["early"]
    assert "overlaps shop.example.org, which is early's" in verdict.waiting["example.org", "late"]
    assert "x" in verdict.refused


def test_two_owners_may_wish_for_one_domain_and_the_first_proof_decides() -> None:
    zones = (zone("example.org", "one"), zone("example.org", "two"))
    ledger = Ledger({("example.org", "two"): Claim(proved=5)})
    verdict = judge(zones, [route("a", "example.org", "one"), route("b", "example.org", "two")], ledger, NOW)
    assert list(verdict.granted) == ["b"]


def test_a_wildcard_of_the_operators_zone_does_not_cover_an_owners_zone() -> None:
    zones = (zone("example.org"), zone("shop.example.org", "one"))
    proved = Ledger({("shop.example.org", "one"): Claim(proved=5)})
    assert "shop.example.org" in refused(("*.example.org", "two"), zones=zones, ledger=proved)["r0"]


def test_an_owners_name_in_no_zone_is_refused_and_the_operators_is_not() -> None:
    said = refused(("www.elsewhere.example", "one"), ("other.elsewhere.example", ""))
    assert said == {"r0": "www.elsewhere.example is in no zone of tproxy_zones, so nobody has proved it"}


def test_a_proof_that_is_gone_counts_until_its_grace_is_over() -> None:
    zones = (zone("example.org", "one"),)
    grace = zones[0].proof_grace
    for missing, counts in ((NOW - grace + 1, True), (NOW - grace, False)):
        ledger = Ledger({("example.org", "one"): Claim(proved=5, missing=missing)})
        assert bool(judge(zones, [], ledger, NOW).zones) is counts


def test_looks_for_proofs() -> None:
    claim = after_look(Claim(), "", "none", 100)
    assert (claim.proved, claim.missing, next_look(claim)) == (0, 0, 100 + AWAITED)
    claim = after_look(claim, "TXT", "there", 200)
    assert (claim.proved, claim.by, next_look(claim)) == (200, "TXT", 200 + PROVED)
    claim = after_look(claim, None, "no answer", 300)
    assert (claim.proved, claim.missing, claim.by) == (200, 0, "TXT")
    claim = after_look(claim, "", "gone", 400)
    claim = after_look(claim, "", "gone", 500)
    assert (claim.proved, claim.missing) == (200, 400)
    claim = after_look(claim, "TXT", "there", 600)
    assert (claim.proved, claim.missing) == (200, 0)


def test_an_expired_route_has_no_name() -> None:
    verdict = judge((APPS,), [route("a", "a.apps.example.com", expires=NOW)], Ledger(), NOW)
    assert not verdict.granted


def test_without_zones_the_order_of_the_file_says_who_has_a_name() -> None:
    said = refused(("www.example.org", "one"), ("*.example.org", "two"), ("a.example.org", "one"), zones=())
    assert said == {"r1": "*.example.org overlaps www.example.org, which is one's"}


def test_a_check_takes_all_owners_for_proved() -> None:
    zones = (zone("example.org", "one"), zone("shop.example.org", "two"))
    verdict = judge(zones, [route("a", "example.org", "one")], assumed(zones), NOW)
    assert list(verdict.granted) == ["a"]
    assert list(verdict.waiting) == [("shop.example.org", "two")]


def test_while_nobody_can_tell_a_claim_is_unknown() -> None:
    claim = after_look(Claim(), None, "no answer", 100)
    assert claim.is_unknown
    assert not after_look(claim, "", "none", 200).is_unknown
    assert not after_look(claim, "TXT", "there", 200).is_unknown
