"""The services of a bridge with guests of several networks."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.config.files import Load
from tproxy.config.union import Offer, divide, in_words, view
from tproxy.model import Endpoint, Member, Network, Service, ServiceKey, ServiceMap

BLUE, RED = Network("blue", "1"), Network("red", "2")

ports = st.integers(1, 5).map(ServiceKey)
views = st.dictionaries(
    st.integers(1, 5),
    st.dictionaries(ports, st.builds(Endpoint, st.just("10.0.0.1"), st.integers(1, 2)), max_size=5).map(
        lambda found: {key: Service(key, endpoint) for key, endpoint in found.items()}
    ),
    min_size=1,
    max_size=4,
)

TWO = """
tproxy:
- {service_port: 80, remote_addr: 10.0.0.1, remote_port: 8080, networks: [blue]}
- {service_port: 80, remote_addr: 10.0.0.2, remote_port: 8080, networks: [red]}
- {service_port: 81, remote_addr: 10.0.0.2, remote_port: 8081, networks: [red]}
- {service_port: 82, remote_addr: 10.0.0.3, remote_port: 8082}
"""
NAMES = """
tproxy:
- {service_port: 80, remote_addr: blue.example, remote_port: 80, networks: [blue]}
- {service_port: 80, remote_addr: red.example, remote_port: 80, networks: [red]}
"""


def service(port: int, address: str, remote: int) -> Service:
    return Service(ServiceKey(port), Endpoint(address, remote))


def silent(name: str) -> list[str]:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def test_what_networks_have_alike_is_everybodys() -> None:
    same = {ServiceKey(80): service(80, "10.0.0.1", 80)}
    assert divide({1: same, 2: same}) == same


def test_other_options_are_another_service() -> None:
    one = service(80, "10.0.0.1", 80)
    other = one._replace(connect_timeout=1.0)
    services = divide({1: {one.key: one}, 4: {one.key: other}})
    assert {key.network: each.connect_timeout for key, each in services.items()} == {1: 5.0, 4: 1.0}
    assert all(key == each.key for key, each in services.items())


def test_one_network_has_everything_for_everybody() -> None:
    services = {ServiceKey(80): service(80, "10.0.0.1", 80)}
    assert divide({3: services}) == services


@given(views)
def test_each_network_has_what_it_wants_and_nobody_else_does(
    found: dict[int, dict[ServiceKey, Service]],
) -> None:
    services = divide(found)
    for order, wanted in found.items():
        assert view(services, order) == wanted
    everybody = view(services, 99)
    assert everybody == {
        key: each
        for key, each in next(iter(found.values())).items()
        if all(other.get(key) == each for other in found.values())
    }
    assert all(key == each.key for key, each in services.items())


def test_a_bridge_has_for_each_network_what_the_file_says(loaded: Load) -> None:
    union = Offer(loaded(TWO)).union({BLUE: 1, RED: 2})
    assert {key.in_words: str(each.endpoint) for key, each in union.services.items()} == {
        "80@1": "10.0.0.1:8080",
        "80@2": "10.0.0.2:8080",
        "81@2": "10.0.0.2:8081",
        "82": "10.0.0.3:8082",
    }
    assert union.divided


def test_a_network_that_is_alone_has_plain_services(loaded: Load) -> None:
    union = Offer(loaded(TWO)).union({RED: 2})
    assert str(union.services[ServiceKey(80)].endpoint) == "10.0.0.2:8080"
    assert not union.divided


def test_a_service_keeps_its_address_only_for_the_network_that_has_it(loaded: Load) -> None:
    found = ServiceMap("br0", {ServiceKey(80): service(80, "10.0.0.7", 80)}, BLUE)
    offer = Offer(loaded(NAMES), silent)
    offer.look_up([BLUE, RED])
    assert offer.union({BLUE: 1}, found).services == found.services
    assert offer.union({RED: 1}, found).services == {}


def test_while_no_name_server_answers_each_network_keeps_its_own_addresses(loaded: Load) -> None:
    blue, red = service(80, "10.0.0.7", 80), service(80, "10.0.0.8", 80)
    members = {"02:00:00:00:00:01": Member(BLUE, 1), "02:00:00:00:00:02": Member(RED, 2)}
    services = divide({1: {blue.key: blue}, 2: {red.key: red}})
    offer = Offer(loaded(NAMES), silent)
    offer.look_up([BLUE, RED])
    found = ServiceMap("br0", services, BLUE, members)
    assert offer.union(found.orders, found).services == services


def test_in_the_map_of_an_older_version_the_first_network_that_wants_a_port_has_it(loaded: Load) -> None:
    members = {"02:00:00:00:00:01": Member(BLUE, 1), "02:00:00:00:00:02": Member(RED, 2)}
    offer = Offer(loaded(NAMES), silent)
    offer.look_up([BLUE, RED])
    found = ServiceMap("br0", {ServiceKey(80): service(80, "10.0.0.7", 80)}, BLUE, members)
    services = offer.union(found.orders, found).services
    assert {key.in_words: str(each.endpoint) for key, each in services.items()} == {"80@1": "10.0.0.7:80"}


def test_names_are_looked_up_once_and_only_those_of_the_networks(loaded: Load) -> None:
    asked = []

    def resolve(name: str) -> list[str]:
        asked.append(name)
        return ["10.0.0.9"]

    offer = Offer(loaded(NAMES), resolve)
    assert not offer.is_known([BLUE])
    offer.look_up([BLUE])
    assert offer.is_known([BLUE])
    assert not offer.is_known([BLUE, RED])
    offer.look_up([BLUE, RED])
    assert asked == ["blue.example", "red.example"]


@pytest.mark.parametrize("network", [Network("a\nb"), Network("c\x1b[2J", "\n")])
def test_no_name_of_a_network_can_forge_a_line(network: Network) -> None:
    assert in_words(network).isprintable()
