"""The order in which endpoints are tried, and what becomes of those that fail."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tproxy.datapath.endpoints import BACK_OFF_FIRST, BACK_OFF_MOST, Endpoints, State
from tproxy.model import Endpoint, Service, ServiceKey

ALL = tuple(Endpoint(f"10.0.0.{number}", 80) for number in range(1, 5))
SPREADS = st.sampled_from(["first", "least"])


class Site:
    """Endpoints that are all checked, and what was said of them."""

    def __init__(self) -> None:
        self.said: list[tuple[Endpoint, bool]] = []
        self.endpoints = Endpoints(self.changed)
        self.endpoints.keep(ALL, ALL)

    def changed(self, endpoint: Endpoint, state: State) -> None:
        self.said.append((endpoint, state.failed))


STEPS = st.lists(st.tuples(st.sampled_from(["fail", "answered", "check"]), st.sampled_from(ALL)))


@given(STEPS, SPREADS, st.dictionaries(st.sampled_from(ALL), st.integers(1, 5)))
def test_each_endpoint_is_tried_once_and_the_failed_ones_last(
    steps: list[tuple[str, Endpoint]], spread: str, open_: dict[Endpoint, int]
) -> None:
    site = Site()
    failed: set[Endpoint] = set()
    for now, (step, endpoint) in enumerate(steps, 1):
        if step == "fail":
            site.endpoints.fail(endpoint, "refused", now)
            failed.add(endpoint)
        elif step == "answered":
            site.endpoints.answered(endpoint, now)
            failed.discard(endpoint)
        else:
            assert {*site.endpoints.to_check(now)} <= failed
        assert site.endpoints.failed == failed
        assert not site.endpoints.good & failed
        assert (site.endpoints.next_check() is None) == (not failed)
    order = site.endpoints.order(ALL, spread, open_)
    assert sorted(order) == sorted(ALL)
    assert {*order[len(ALL) - len(failed) :]} == failed
    good = order[: len(ALL) - len(failed)]
    if spread == "first":
        assert good == [each for each in ALL if each not in failed]
    else:
        assert [open_.get(each, 0) for each in good] == sorted(open_.get(each, 0) for each in good)


@given(STEPS)
def test_only_changes_are_told(steps: list[tuple[str, Endpoint]]) -> None:
    site = Site()
    for now, (step, endpoint) in enumerate(steps, 1):
        if step == "fail":
            site.endpoints.fail(endpoint, "refused", now)
        elif step == "answered":
            site.endpoints.answered(endpoint, now)
    for each in ALL:
        told = [failed for endpoint, failed in site.said if endpoint == each]
        assert all(before != after for before, after in pairwise(told))
        assert site.endpoints.state(each).failed == (told[-1:] == [True])


@given(st.lists(st.floats(0.01, 100), max_size=30))
def test_checks_back_off_from_one_second_to_thirty(delays: list[float]) -> None:
    site = Site()
    now = 100.0
    site.endpoints.fail(ALL[0], "refused", now)
    wait = BACK_OFF_FIRST
    for delay in delays:
        due = site.endpoints.next_check()
        assert due is not None
        assert abs(due - now - wait) < 1e-6
        assert not site.endpoints.to_check(due - 0.001)
        now = due + delay
        assert site.endpoints.to_check(now) == [ALL[0]]
        site.endpoints.fail(ALL[0], "refused", now)  # it is still the same failure
        wait = min(wait * 2, BACK_OFF_MOST)
    assert site.endpoints.state(ALL[0]).since == 100.0


def test_an_endpoint_that_answers_starts_anew() -> None:
    site = Site()
    site.endpoints.fail(ALL[0], "refused", 10.0)
    assert site.endpoints.to_check(11.0) == [ALL[0]]
    site.endpoints.answered(ALL[0], 11.5)
    assert (site.endpoints.state(ALL[0]).since, site.endpoints.next_check()) == (11.5, None)
    site.endpoints.answered(ALL[0], 12.5)
    assert site.endpoints.state(ALL[0]).since == 11.5
    site.endpoints.fail(ALL[0], "refused", 20.0)
    assert site.endpoints.next_check() == 20.0 + BACK_OFF_FIRST


def test_of_endpoints_with_as_few_connections_the_one_that_waited_longest_comes_first() -> None:
    site = Site()
    firsts = [site.endpoints.order(ALL, "least", {})[0] for _ in range(8)]
    assert firsts == [*ALL, *ALL]


def test_an_endpoint_without_another_one_is_not_checked_and_a_gone_one_is_forgotten() -> None:
    site = Site()
    for each in ALL:
        site.endpoints.fail(each, "refused", 10.0)
    assert {*site.endpoints.keep(ALL[:3], ALL[:2])} == {ALL[3]}
    assert site.endpoints.to_check(100.0) == sorted(ALL[:2])
    assert site.endpoints.failed == {*ALL[:3]}


@given(st.permutations([str(each.address) for each in ALL]))
def test_candidates_are_those_of_the_service(addresses: list[str]) -> None:
    service = Service(ServiceKey(80), ALL[0]).led_to(addresses)
    site = Site()
    assert site.endpoints.candidates(service) == service.candidates
    assert site.endpoints.candidates(service) is site.endpoints.candidates(service)


def test_services_with_one_endpoint_each_have_their_own_at_one_port() -> None:
    site = Site()
    services = [Service(ServiceKey(53, network=number), endpoint) for number, endpoint in enumerate(ALL)]
    assert [site.endpoints.candidates(each) for each in services] == [(each,) for each in ALL]
