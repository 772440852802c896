"""The label ``network``: that of a service's own network, and no two the same on one bridge."""

from __future__ import annotations

from typing import Any

import pytest

from tproxy.daemon.client import FIGURES
from tproxy.metrics.facts import Facts, Snapshot
from tproxy.model import TCP, UDP, ServiceKey


def taken(networks: list[tuple[str, int]], *keys: ServiceKey) -> Snapshot:
    """What is shown of br0 with these networks, by their orders, and the services of these keys."""
    bridge = {
        "networks": [name for name, _ in networks],
        "orders": [order for _, order in networks],
        "services": [[[*key], "web", []] for key in keys],
    }
    answer: dict[str, Any] = {
        "format": FIGURES,
        "version": "1",
        "started": 1.0,
        "generation": "1",
        "bridges": {"br0": bridge},
        "ended": [],
        "worker_loops": [0, 0.0, []],
        "loop": [0, 0.0, []],
        "silent": {},
        "relays": {"br0": [None, 0]},
        "repairs": {},
        "worker_restarts": 0,
    }
    return Facts().take(answer, [], [])


@pytest.mark.parametrize(
    ("networks", "labels", "of_bridge"),
    [
        ([("blue", 1)], ["blue"], "blue"),
        ([("", 1)], [""], ""),
        ([("blue", 1), ("red", 2)], [""], ""),
    ],
)
def test_what_all_networks_have_is_that_of_the_only_one_or_of_none(
    networks: list[tuple[str, int]], labels: list[str], of_bridge: str
) -> None:
    found = taken(networks, ServiceKey(80))
    assert [each.network for each in found.services] == labels
    assert [each.network for each in found.bridges] == [of_bridge]


def test_each_network_has_its_services() -> None:
    keys = [
        ServiceKey(80, network=1),
        ServiceKey(80, network=3),
        ServiceKey(53, UDP, network=3),
        ServiceKey(81),
    ]
    found = taken([("blue", 1), ("red", 3)], *keys)
    assert [(each.network, each.label, each.udp) for each in found.services] == [
        ("blue", "web:80", False),
        ("red", "web:80", False),
        ("red", "web:53/udp", True),
        ("", "web:81", False),
    ]


def test_no_two_services_have_the_same_labels() -> None:
    """Prometheus refuses a page on which two series are the same."""
    keys = [ServiceKey(80, TCP, network=order) for order in range(5)]
    found = taken([("blue", 1), ("", 2), ("blue", 3), ("\udcff", 4)], *keys)
    assert [each.network for each in found.services] == ["", "blue@1", "@2", "blue@3", "\\udcff"]
    found = taken([("left", 2)], *keys[1:3], ServiceKey(80))
    assert len({each.network for each in found.services}) == 3
