"""The services of a bridge with guests of several networks."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.config.files import Load
from tproxy.config.union import Contradiction, Offer, merge
from tproxy.model import Endpoint, Network, Service, ServiceKey, ServiceMap

BLUE, RED = Network("blue", "1"), Network("red", "2")

ports = st.integers(1, 5)
wanted = st.dictionaries(ports, st.builds(Endpoint, st.just("10.0.0.1"), st.integers(1, 3)), max_size=5).map(
    lambda found: {ServiceKey(port): Service(ServiceKey(port), endpoint) for port, endpoint in found.items()}
)
offers = st.lists(st.tuples(st.builds(Network, st.sampled_from("abc")), wanted), max_size=4)

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


def test_what_networks_want_alike_is_no_contradiction() -> None:
    same = {ServiceKey(80): service(80, "10.0.0.1", 80)}
    assert merge([(BLUE, same), (RED, same)]) == (same, [])


def test_other_options_are_a_contradiction() -> None:
    kept = service(80, "10.0.0.1", 80)
    refused = kept._replace(connect_timeout=1.0)
    services, contradictions = merge([(BLUE, {ServiceKey(80): kept}), (RED, {ServiceKey(80): refused})])
    assert services == {ServiceKey(80): kept}
    (found,) = contradictions
    assert (found.key.port, found.holder, found.kept) == (80, BLUE, kept)
    assert (found.other, found.refused) == (RED, refused)
    assert "connect_timeout 1" in str(found)


@given(offers)
def test_the_first_network_that_wants_a_port_has_it(
    found: list[tuple[Network, dict[ServiceKey, Service]]],
) -> None:
    services, contradictions = merge(found)
    assert services.keys() == {port for _, each in found for port in each}
    for port, kept in services.items():
        assert kept == next(each[port] for _, each in found if port in each)
        refused = [each[port] for _, each in found if port in each and each[port] != kept]
        assert [each.refused for each in contradictions if each.key == port] == refused


def test_a_bridge_has_the_union_and_the_contradiction_names_both_networks(loaded: Load) -> None:
    union = Offer(loaded(TWO)).union([BLUE, RED])
    assert {key.port: str(each.endpoint) for key, each in union.services.items()} == {
        80: "10.0.0.1:8080",
        81: "10.0.0.2:8081",
        82: "10.0.0.3:8082",
    }
    (line,) = map(str, union.contradictions)
    assert line.startswith("port 80 leads to 10.0.0.1:8080 for network 'blue' (id 1), which came first; ")
    assert "network 'red' (id 2) wants 10.0.0.2:8080" in line


def test_the_next_network_has_the_port_when_the_first_has_gone(loaded: Load) -> None:
    union = Offer(loaded(TWO)).union([RED])
    assert str(union.services[ServiceKey(80)].endpoint) == "10.0.0.2:8080"
    assert union.contradictions == []


def test_a_port_keeps_its_address_only_for_the_network_that_holds_it(loaded: Load) -> None:
    found = ServiceMap("br0", {ServiceKey(80): service(80, "10.0.0.7", 80)}, BLUE)
    offer = Offer(loaded(NAMES), silent)
    offer.look_up([BLUE, RED])
    assert offer.union([BLUE], found).services == found.services
    assert offer.union([RED], found).services == {}


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


def test_no_name_of_a_network_can_forge_a_line(loaded: Load) -> None:
    networks = [Network("a\nb"), Network("c\x1b[2J", "\n")]
    every = loaded("tproxy: [{service_port: 80, remote_addr: 10.0.0.1, remote_port: 1}]")
    services = Offer(every).union(networks).services
    contradiction = Contradiction(
        networks[0], services[ServiceKey(80)], networks[1], services[ServiceKey(80)]
    )
    assert str(contradiction).isprintable()
