"""Services by host name that move when the address of the name changed, and those that stay."""

from __future__ import annotations

import pytest

from tests.keys import keys
from tproxy.config.moves import moves
from tproxy.config.services import Config, Entry
from tproxy.model import Endpoint, Network, Service, ServiceKey

BLUE = Network("blue")
BY_NAME = Entry(1, 1, 80, ("api.example",), 8080)
BEFORE = {"api.example": ["10.0.0.1", "10.0.0.2"]}
NOW = {"api.example": ["10.0.0.3", "10.0.0.4"]}


def config(*entries: Entry) -> Config:
    return Config("f", 20, entries, ())


def service(address: str, remote_port: int = 8080) -> Service:
    return Service(ServiceKey(80), Endpoint(address, remote_port), "name", 2.5)


MOVED = service("10.0.0.3").led_to(["10.0.0.3", "10.0.0.4"])


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.2"])
def test_a_service_moves_from_any_address_of_before_to_all_of_now(address: str) -> None:
    old = service(address)
    assert moves(config(BY_NAME), BLUE, {ServiceKey(80): old}, BEFORE, NOW) == {ServiceKey(80): (old, MOVED)}


@pytest.mark.parametrize(
    ("entries", "found", "now"),
    [
        ([BY_NAME], {ServiceKey(80): service("10.0.0.2")}, {"api.example": ["10.0.0.2"]}),
        ([BY_NAME], {ServiceKey(80): service("10.0.0.1")}, {}),
        ([BY_NAME], {ServiceKey(80): service("10.0.0.9")}, NOW),
        ([BY_NAME], {ServiceKey(80): service("10.0.0.1", 8081)}, NOW),
        ([BY_NAME], {}, NOW),
        ([BY_NAME._replace(networks=frozenset({"red"}))], {ServiceKey(80): service("10.0.0.1")}, NOW),
        ([BY_NAME._replace(remote_addr=("10.0.0.1",)), BY_NAME], {ServiceKey(80): service("10.0.0.1")}, NOW),
        (
            [BY_NAME._replace(remote_addr=("other.example",)), BY_NAME],
            {ServiceKey(80): service("10.0.0.1")},
            {
                **NOW,
                "other.example": ["10.0.0.1"],
            },
        ),
    ],
    ids=[
        "the name still has the address",
        "nobody answered",
        "somebody changed the address",
        "somebody changed the port",
        "somebody deleted it",
        "the entry is for another network",
        "an earlier entry has the port",
        "an earlier entry by name has the port",
    ],
)
def test_a_service_stays(
    entries: list[Entry], found: dict[ServiceKey, Service], now: dict[str, list[str]]
) -> None:
    assert not moves(config(*entries), BLUE, found, BEFORE, now)


def test_an_entry_whose_name_never_had_an_address_does_not_keep_others_from_moving() -> None:
    entries = (BY_NAME._replace(remote_addr=("gone.example",)), BY_NAME)
    assert moves(config(*entries), BLUE, {ServiceKey(80): service("10.0.0.1")}, BEFORE, NOW).keys() == {
        *keys(80)
    }


def test_an_address_that_is_added_or_gone_changes_the_endpoints() -> None:
    old = service("10.0.0.1").led_to(["10.0.0.1", "10.0.0.2"])
    now = {"api.example": ["10.0.0.2", "10.0.0.5"]}
    assert moves(config(BY_NAME), BLUE, {ServiceKey(80): old}, BEFORE, now) == {
        ServiceKey(80): (old, old.led_to(["10.0.0.2", "10.0.0.5"]))
    }


def test_a_name_in_a_list_changes_its_own_addresses_only() -> None:
    entry = BY_NAME._replace(remote_addr=("10.0.0.7", "api.example", "other.example"))
    old = service("10.0.0.7").led_to(["10.0.0.7", "10.0.0.1", "10.0.0.2"])
    new = old.led_to(["10.0.0.7", "10.0.0.3", "10.0.0.4"])
    assert moves(config(entry), BLUE, {ServiceKey(80): old}, BEFORE, NOW) == {ServiceKey(80): (old, new)}


def test_a_service_whose_name_never_had_an_address_is_added_when_it_has_one() -> None:
    entry = BY_NAME._replace(options={"connect_timeout": 2.5, "name": "name"})
    assert moves(config(entry), BLUE, {}, {}, NOW) == {ServiceKey(80): (None, MOVED)}


def test_a_name_beside_a_unix_socket_adds_its_addresses_when_it_has_some() -> None:
    socket = "unix:/run/x.sock"
    entry = BY_NAME._replace(remote_addr=(socket, "api.example"))
    alone = service(socket)
    now = {"api.example": ["10.0.0.3"]}
    both = Service(ServiceKey(80), Endpoint("10.0.0.3", 8080), "name", 2.5).led_to([socket, "10.0.0.3"])
    assert moves(config(entry), BLUE, {ServiceKey(80): alone}, {}, now) == {ServiceKey(80): (alone, both)}
    assert not moves(config(entry), BLUE, {ServiceKey(80): both}, now, {**now})
