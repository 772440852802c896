"""The watcher's decision about a bridge after the configuration file was read again."""

from __future__ import annotations

import pytest

from tproxy.config.services import WatchedBridge
from tproxy.model import Endpoint, Network, Service, ServiceKey, ServiceMap
from tproxy.watch import reload
from tproxy.watch.reload import TABLE, Action, Entry, Said, compare, decide, orders_of

BLUE = WatchedBridge("br*", "blue")
RED = WatchedBridge("br*", "red")
OTHER_UPLINKS = WatchedBridge("br*", "blue", uplinks=frozenset({"up0"}))

OLD = {ServiceKey(5030): Service(ServiceKey(5030), Endpoint("10.0.0.1", 80))}
NEW = {ServiceKey(5030): Service(ServiceKey(5030), Endpoint("10.0.0.2", 80))}
UP = ServiceMap(
    "br0", {ServiceKey(99): Service(ServiceKey(99), Endpoint("10.0.0.3", 80))}, Network("green")
)  # as somebody changed it


def test_the_table_in_the_docstring_is_the_table() -> None:
    assert reload.__doc__
    rows = [line.strip("| ").split("|") for line in reload.__doc__.splitlines() if line.startswith("| ")]
    (_, _, *rows) = [[cell.strip() for cell in row] for row in rows]
    written = {}
    for entry, services, down, up in rows:
        assert services in ("same", "changed")
        written[Entry[entry], services == "changed", False] = Action[down]
        written[Entry[entry], services == "changed", True] = Action[up]
    assert written == TABLE


@pytest.mark.parametrize(
    ("before", "now", "entry"),
    [
        (None, BLUE, Entry.NEW),
        (BLUE, BLUE, Entry.SAME),
        (BLUE, RED, Entry.CHANGED),
        (BLUE, OTHER_UPLINKS, Entry.CHANGED),
    ],
)
def test_an_entry_is_compared_with_the_one_before(
    before: WatchedBridge | None, now: WatchedBridge, entry: Entry
) -> None:
    assert compare(before, now) is entry


@pytest.mark.parametrize("found", [None, UP])
def test_a_file_that_says_the_same_leaves_every_bridge_as_it_is(found: ServiceMap | None) -> None:
    assert decide(Said(BLUE, OLD), BLUE, OLD, found) is Action.LEAVE


@pytest.mark.parametrize("before", [Said(None, OLD), Said(BLUE, OLD), Said(RED, OLD)])
def test_a_bridge_that_is_down_waits_for_its_guests_to_be_brought_up(before: Said) -> None:
    assert decide(before, BLUE, NEW, None) is Action.LET_GUESTS_START


@pytest.mark.parametrize("before", [Said(None, OLD), Said(BLUE, OLD)])
def test_new_services_reach_a_bridge_that_is_up(before: Said) -> None:
    assert decide(before, BLUE, NEW, UP) is Action.REFRESH


@pytest.mark.parametrize("before", [RED, OTHER_UPLINKS])
@pytest.mark.parametrize("services", [OLD, NEW])
def test_a_changed_entry_replaces_network_and_uplinks(
    before: WatchedBridge, services: dict[ServiceKey, Service]
) -> None:
    assert decide(Said(before, OLD), BLUE, services, UP) is Action.BRING_UP


@pytest.mark.parametrize(
    ("before", "found", "network"),
    [
        (BLUE, UP, "green"),  # as the hook said that brought it up
        (None, UP, "green"),
        (RED, UP, "blue"),
        (BLUE, None, "blue"),
        (None, None, "blue"),
    ],
)
def test_a_bridge_keeps_its_networks_until_its_entry_changes(
    before: WatchedBridge | None, found: ServiceMap | None, network: str
) -> None:
    assert orders_of(before, BLUE, found) == {Network(network): 1}
