"""Where routes lead, by what hosts say."""

from __future__ import annotations

from typing import Any

from tproxy.config.routes import RouteEntry
from tproxy.fleet import places
from tproxy.fleet.places import Place
from tproxy.fleet.presence import Guest
from tproxy.fleet.receipts import Receipt

NOW = 1000.0
MAC = "02:00:00:00:00:05"
ROUTE = RouteEntry(1, id="web", network="blue", port=80, guest_mac=MAC)
BLUE = frozenset({"blue", "7"})


def guest(since: float, *, mac: str = MAC, network: str = "blue", port: str = "vnet0") -> Guest:
    return Guest(network, "", mac, "br0", port, since)


def receipt(host: str, *guests: Guest, time: float = NOW) -> Receipt:
    values: dict[str, Any] = dict.fromkeys(Receipt._fields, "")
    return Receipt(**values | {"host": host, "time": time, "guests": guests})


def located(*found: Receipt, route: RouteEntry = ROUTE) -> places.Places:
    networks = {"one": BLUE, "two": BLUE, "three": frozenset({"red"})}
    return places.locate([route], found, networks, NOW)


def test_the_host_where_the_guest_came_last_has_it() -> None:
    found = located(receipt("one", guest(10.0)), receipt("two", guest(990.0)))
    assert found == ({"web": Place("two", 990.0)}, [])


def test_two_hosts_that_claim_one_guest_for_longer_than_a_move_takes_are_reported() -> None:
    found = located(receipt("one", guest(10.0)), receipt("two", guest(500.0)))
    assert found.routes["web"].host == "two"
    assert found.problems == [f"one and two both say that {MAC} of network 'blue' is there"]


def test_a_host_is_not_believed_about_networks_that_are_not_its_own() -> None:
    found = located(receipt("one", guest(10.0)), receipt("three", guest(990.0)))
    assert found.routes == {"web": Place("one", 10.0)}
    assert found.problems == [
        f"three: it says that {MAC} of network 'blue' is there, which is not its network: ignored"
    ]
    assert located(receipt("four", guest(990.0))).routes == {}


def test_the_same_address_in_another_network_is_another_guest() -> None:
    found = located(receipt("one", guest(10.0)), receipt("three", guest(990.0, network="red")))
    assert found == ({"web": Place("one", 10.0)}, [])


def test_a_network_can_be_named_by_its_id() -> None:
    seen = Guest("blue", "7", MAC, "br0", "vnet0", 10.0)
    assert located(receipt("one", seen), route=ROUTE._replace(network="7")).routes["web"].host == "one"


def test_a_route_without_a_mac_leads_to_the_only_host_that_has_its_network() -> None:
    route = ROUTE._replace(guest_mac="", guest_addr="10.0.0.5")
    assert located(receipt("one", guest(10.0)), route=route).routes == {"web": Place("one", 10.0)}
    found = located(receipt("one", guest(10.0)), receipt("two", guest(20.0, mac="02::")), route=route)
    assert found.routes == {}
    assert "guest_mac is needed" in found.problems[0]


def test_a_route_that_names_a_node_leads_there_and_any_node_means_the_one_that_has_the_guest() -> None:
    seen = receipt("one", guest(10.0))
    assert located(seen, route=ROUTE._replace(node="two")).routes["web"].host == "two"
    assert located(seen, route=ROUTE._replace(node="*")).routes["web"].host == "one"
    assert located(seen, route=ROUTE._replace(network="", node="two")).routes == {}


def test_a_guest_that_nobody_has_has_no_place() -> None:
    assert located(receipt("one")) == ({}, [])


def test_guests_of_a_host_that_has_been_silent_are_told() -> None:
    found = located(receipt("one", guest(10.0), time=NOW - places.STALE - 1))
    assert found.routes["web"].host == "one"
    assert "no receipt for 1201 s" in found.problems[0]
