"""The entries that a network gets, and which one of several wins a service port."""

from __future__ import annotations

import pytest

from tests.keys import keys
from tests.unit.config.files import VNET1, Load, said, services
from tproxy.config.services import Config, Entry, NoAddress, Problem, choose, host_names
from tproxy.model import Endpoint, Network, Service, ServiceKey

CONFIG = Config(
    "file",
    20,
    (
        Entry(1, 2, 80, ("one.example",), 8080),
        Entry(2, 3, 81, ("10.0.0.1",), 81),
        Entry(3, 4, 82, ("one.example",), 82),
        Entry(4, 5, 83, ("other.example",), 83, frozenset({"vnet2"})),
    ),
    (),
)


def test_only_host_names_of_the_networks_entries_are_looked_up_each_once() -> None:
    assert host_names(CONFIG, VNET1) == ["one.example"]
    assert host_names(CONFIG, Network("vnet2")) == ["one.example", "other.example"]


def test_services_are_chosen_without_any_look_up() -> None:
    chosen, problems = choose(CONFIG, VNET1, {"one.example": ["10.0.0.9"]})
    endpoints = {port: str(service.endpoint) for port, service in chosen.items()}
    assert endpoints == {
        ServiceKey(80): "10.0.0.9:8080",
        ServiceKey(81): "10.0.0.1:81",
        ServiceKey(82): "10.0.0.9:82",
    }
    assert problems == []


@pytest.mark.parametrize("certain", [True, False])
def test_a_service_without_an_address_goes_where_it_went_unless_that_is_certain(certain: bool) -> None:
    before = {
        ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.2", 8080)),
        ServiceKey(82): Service(ServiceKey(82), Endpoint("10.0.0.2", 9)),
    }
    chosen, problems = choose(CONFIG, VNET1, {"one.example": NoAddress("no answer", certain)}, before.get)
    assert chosen.keys() == ({*keys(81)} if certain else {*keys(80, 81)})
    outcome = "entry skipped" if certain else "10.0.0.2:8080 as before"
    assert problems == [
        Problem(2, f"entry 1: no answer: {outcome}"),
        Problem(4, "entry 3: no answer: entry skipped"),
    ]


LIST = Config("file", 20, (Entry(1, 2, 80, ("10.0.0.1", "one.example", "fd00::1"), 8080),), ())


def test_all_addresses_of_a_list_and_of_its_names_are_endpoints_in_order() -> None:
    chosen, problems = choose(LIST, VNET1, {"one.example": ["10.0.0.9", "10.0.0.1", "fd00::9"]})
    assert problems == []
    assert chosen[ServiceKey(80)].endpoints == ("10.0.0.1", "10.0.0.9", "fd00::9", "fd00::1")
    assert chosen[ServiceKey(80)].endpoint == Endpoint("10.0.0.1", 8080)


@pytest.mark.parametrize("certain", [True, False])
def test_a_name_of_a_list_that_never_resolved_is_left_out(certain: bool) -> None:
    chosen, problems = choose(LIST, VNET1, {"one.example": NoAddress("no answer", certain)})
    assert chosen[ServiceKey(80)].endpoints == ("10.0.0.1", "fd00::1")
    assert problems == [Problem(2, "entry 1: no answer: the other addresses are used")]


def test_a_name_of_a_list_keeps_its_addresses_while_nobody_answers() -> None:
    before, _ = choose(LIST, VNET1, {"one.example": ["10.0.0.9", "fd00::9"]})
    chosen, _ = choose(LIST, VNET1, {"one.example": NoAddress("no answer", False)}, before.get)
    assert chosen == before


def test_a_service_has_at_most_sixteen_endpoints() -> None:
    chosen, problems = choose(LIST, VNET1, {"one.example": [f"10.0.1.{each}" for each in range(20)]})
    assert len(chosen[ServiceKey(80)].endpoints) == 16
    assert problems == [Problem(2, "entry 1: remote_addr has 22 addresses: the first 16 are used")]


def test_a_network_without_name_and_id_gets_only_entries_for_every_network(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: [0, vnet1]}\n"
        "- {remote_addr: 10.0.0.1, remote_port: 81}\n"
    )
    assert services(found, Network())[0].keys() == {*keys(81)}


def test_the_first_of_two_entries_with_one_service_port_wins(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 8080, service_port: 80}\n"
        "- {remote_addr: gone.example, remote_port: 80}\n"
    )
    chosen, warnings = services(found)
    assert chosen == {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.1", 80))}
    assert [warning.partition("tproxy.yaml:")[2] for warning in warnings] == [
        "3: entry 2: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
        "4: entry 3: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
    ]


def test_a_service_address_has_ports_of_its_own_and_the_first_entry_of_each_wins(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80, service_addr: 169.254.169.254}\n"
        "- {remote_addr: 10.0.0.3, remote_port: 80, service_addr: 169.254.169.254}\n"
        "- {remote_addr: 10.0.0.4, remote_port: 80, service_addr: 169.254.16.9}\n"
    )
    chosen, warnings = services(found)
    assert {key: each.endpoint.address for key, each in chosen.items()} == {
        ServiceKey(80): "10.0.0.1",
        ServiceKey(80, address="169.254.169.254"): "10.0.0.2",
    }
    assert [warning.partition("tproxy.yaml:")[2] for warning in warnings] == [
        "4: entry 3: service_port 169.254.169.254:80: entry 2 (line 3) has it on this network: entry ignored",
        "5: entry 4: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
    ]


def test_a_service_address_that_no_guest_can_use_is_one_line_with_key_and_value(loaded: Load) -> None:
    found = loaded("tproxy:\n- {remote_addr: 10.0.0.1, remote_port: 80, service_addr: 127.0.0.1}\n")
    assert services(found)[0] == {}
    (warning,) = said(found)
    assert warning.partition("tproxy.yaml:")[2] == (
        "2: entry 1: service_addr '127.0.0.1' is not an IPv4 address that guests can use: entry skipped"
    )


def test_entries_for_other_networks_do_not_take_a_port(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: vnet2}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80, networks: vnet1}\n"
    )
    for network, address in (("vnet2", "10.0.0.1"), ("vnet1", "10.0.0.2")):
        assert services(found, Network(network)) == (
            {ServiceKey(80): Service(ServiceKey(80), Endpoint(address, 80))},
            [],
        )


@pytest.mark.parametrize("unusable", ["10.1", "gone.example", "169.254.16.9"])
def test_an_entry_that_is_skipped_does_not_take_a_port(loaded: Load, unusable: str) -> None:
    found = loaded(
        "tproxy:\n"
        f"- {{remote_addr: {unusable}, remote_port: 80}}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80}\n"
    )
    chosen, warnings = services(found)
    assert chosen == {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.2", 80))}
    assert len([*said(found), *warnings]) == 1


def test_an_entry_for_two_protocols_is_two_services_and_the_first_entry_of_each_wins(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 53, protocol: udp}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 53, protocol: [tcp, udp]}\n"
        "- {remote_addr: 10.0.0.3, remote_port: 53}\n"
    )
    chosen, warnings = services(found)
    assert {key: each.endpoint.address for key, each in chosen.items()} == {
        ServiceKey(53, "udp"): "10.0.0.1",
        ServiceKey(53): "10.0.0.2",
    }
    assert [warning.partition("tproxy.yaml:")[2] for warning in warnings] == [
        "3: entry 2: service_port 53/udp: entry 1 (line 2) has it on this network: ignored for udp",
        "4: entry 3: service_port 53: entry 2 (line 3) has it on this network: entry ignored",
    ]
