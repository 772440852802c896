"""What is to change in a zone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inward.names.zones import GW1, GW2, zone
from tproxy.inward.names import markers
from tproxy.inward.names.model import Record, Records
from tproxy.inward.names.plan import changed, plan

ZONE = zone("example.com", "", GW1, GW2)
WWW = "www.example.com"


def records(*listed: Record) -> Records:
    return {(each.name, each.type): each for each in listed}


def after(present: Records, gateway: str, wanted: dict[str, bool], dead: tuple[str, ...] = ()) -> Records:
    return changed(present, plan(ZONE, present, gateway, wanted, dead, 1000).changes)


def addresses(present: Records, name: str = WWW) -> list[str]:
    return [
        value for type_ in ("A", "AAAA") if (name, type_) in present for value in present[name, type_].values
    ]


def test_several_gateways_share_a_name() -> None:
    both = after(after({}, "gw1", {WWW: True}), "gw2", {WWW: True})
    assert addresses(both) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert addresses(after(both, "gw1", {WWW: False})) == ["192.0.2.2"]
    assert addresses(after(both, "gw1", {})) == ["192.0.2.2"]


def test_a_gateway_that_withdraws_its_address_leaves_the_name_there() -> None:
    withdrawn = after({}, "gw1", {WWW: False})
    assert addresses(withdrawn) == []
    assert withdrawn[markers.place("gw1", WWW), "TXT"].values == ('"tproxy"',)


def test_a_dead_gateway_is_withdrawn_by_another_but_not_the_last_one() -> None:
    both = after(after({}, "gw1", {WWW: True}), "gw2", {WWW: True})
    assert addresses(after(both, "gw1", {WWW: True}, dead=("gw2",))) == ["192.0.2.1", "2001:db8::1"]
    assert addresses(after(both, "", {}, dead=("gw2",))) == ["192.0.2.1", "2001:db8::1"]
    alone = after({}, "gw2", {WWW: True})
    assert addresses(after(alone, "", {}, dead=("gw2",))) == ["192.0.2.2"]
    assert addresses(after(both, "", {}, dead=("gw1", "gw2"))) == addresses(both)


def test_records_of_others_stay() -> None:
    foreign = records(
        Record(WWW, "A", 60, ("198.51.100.1",)),
        Record(WWW, "MX", 60, ("10 mail.example.com.",)),
        Record("sub.example.com", "NS", 60, ("ns.example.org.",)),
        Record("alias.example.com", "CNAME", 60, ("www.example.com.",)),
        Record("own.example.com", "A", 60, ("192.0.2.1",)),
    )
    names = dict.fromkeys((WWW, "x.sub.example.com", "alias.example.com"), True)
    made = plan(ZONE, foreign, "gw1", names, (), 1000)
    assert [each.name for each in made.changes] == ["gw1._tproxy-alive.example.com"]
    assert len(made.notes) == 3
    made = plan(ZONE, foreign, "gw1", {}, (), 1000)
    assert [each.name for each in made.changes] == ["gw1._tproxy-alive.example.com"]


def test_an_address_whose_marker_another_gateway_removed_at_the_same_time_goes() -> None:
    both = after(after({}, "gw1", {WWW: True}), "gw2", {WWW: True})
    raced = {**both}
    del raced[markers.place("gw2", WWW), "TXT"]
    assert addresses(after(raced, "gw1", {WWW: True})) == ["192.0.2.1", "2001:db8::1"]


def test_a_wildcard_has_a_marker_without_a_star() -> None:
    wild = after({}, "gw1", {"*.example.com": True})
    assert ("gw1._tproxy._any.example.com", "TXT") in wild
    assert markers.marked(wild) == {"*.example.com": {"gw1": GW1.addresses}}
    assert addresses(after(wild, "gw1", {}), "*.example.com") == []


def test_a_gateway_shows_that_it_lives_a_few_times_in_a_lease() -> None:
    there = after({}, "gw1", {})
    assert markers.heartbeats(there) == {"gw1": "1000"}
    assert plan(ZONE, there, "gw1", {}, (), 1000 + ZONE.lease / 3 - 1).changes == ()
    assert plan(ZONE, there, "gw1", {}, (), 1000 + ZONE.lease / 3).changes
    alone = zone("example.com", "", GW1)
    assert plan(alone, {}, "gw1", {}, (), 1000).changes == ()


NAMES = st.sampled_from([WWW, "a.example.com", "*.w.example.com", "example.com"])
STEPS = st.tuples(st.sampled_from(["gw1", "gw2"]), st.dictionaries(NAMES, st.booleans()))


@given(st.lists(STEPS, max_size=8))
def test_a_second_look_finds_nothing_to_do_and_all_gateways_agree(
    steps: list[tuple[str, dict[str, bool]]],
) -> None:
    present: Records = records(Record("example.com", "MX", 60, ("10 m.example.com.",)))
    last: dict[str, dict[str, bool]] = {}
    for gateway, wanted in steps:
        present = after(present, gateway, wanted)
        last[gateway] = wanted
        assert plan(ZONE, present, gateway, wanted, (), 1000).changes == ()
    for name in {name for wanted in last.values() for name in wanted}:
        expected = [
            address for each in (GW1, GW2) if last.get(each.name, {}).get(name) for address in each.addresses
        ]
        assert sorted(addresses(present, name)) == sorted(expected)
    for gateway in ("gw1", "gw2"):
        present = after(present, gateway, {})
    assert {type_ for _, type_ in present} <= {"MX", "TXT"}
    assert all("_tproxy-alive" in name for name, type_ in present if type_ == "TXT")
