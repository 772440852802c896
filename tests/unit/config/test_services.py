"""Which of several entries a network gets for a service port."""

from __future__ import annotations

import pytest

from tests.unit.config.files import Load, said, services
from tproxy.model import Endpoint, Network, Service


def test_a_network_without_name_and_id_gets_only_entries_for_every_network(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: [0, vnet1]}\n"
        "- {remote_addr: 10.0.0.1, remote_port: 81}\n"
    )
    assert services(found, Network())[0].keys() == {81}


def test_the_first_of_two_entries_with_one_service_port_wins(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 8080, service_port: 80}\n"
        "- {remote_addr: gone.example, remote_port: 80}\n"
    )
    chosen, warnings = services(found)
    assert chosen == {80: Service(80, Endpoint("10.0.0.1", 80))}
    assert [warning.partition("tproxy.yaml:")[2] for warning in warnings] == [
        "3: entry 2: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
        "4: entry 3: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
    ]


def test_entries_for_other_networks_do_not_take_a_port(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: vnet2}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80, networks: vnet1}\n"
    )
    for network, address in (("vnet2", "10.0.0.1"), ("vnet1", "10.0.0.2")):
        assert services(found, Network(network)) == ({80: Service(80, Endpoint(address, 80))}, [])


@pytest.mark.parametrize("unusable", ["10.1", "gone.example", "169.254.16.9"])
def test_an_entry_that_is_skipped_does_not_take_a_port(loaded: Load, unusable: str) -> None:
    found = loaded(
        "tproxy:\n"
        f"- {{remote_addr: {unusable}, remote_port: 80}}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80}\n"
    )
    chosen, warnings = services(found)
    assert chosen == {80: Service(80, Endpoint("10.0.0.2", 80))}
    assert len([*said(found), *warnings]) == 1
