"""Routes as nftables holds them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tproxy.bridge import comments, map_commands, route_map
from tproxy.daemon import memory
from tproxy.model import Endpoint, Network, Service, ServiceMap
from tproxy.routes import NOWHERE, Route, key_of, number_of


def route(id_: str, address: str = "10.0.0.5", mac: str = "", place: str = "", **options: Any) -> Route:
    service = Service(key_of(number_of(id_)), Endpoint(address, 80), **options)
    return Route(id_, service, mac, place, (options and 1893456000) or 0)


ROUTES = [
    route("web"),
    route("web/tls", idle_timeout=7, proxy_protocol="v2"),
    route("six", "fe80::5"),
    route(
        "x" * 64, NOWHERE, "02:00:00:00:00:05", "vnet3", connect_timeout=0.5, drain_timeout=9, user_timeout=8
    ),
]
ALL = {each.number: each for each in ROUTES}


def listed(routes: dict[int, Route]) -> dict[str, Any]:
    """An object of ``nft -j list`` for these routes."""
    elements = []
    for number, each in routes.items():
        for part, text in enumerate(route_map._comments(each)):
            left = {"elem": {"val": {"concat": [number, part]}, "comment": text}}
            elements.append([left, {"concat": [route_map._value(each), each.endpoint.port]}])
    return {"name": "rt_br0", "type": ["mark", "mark"], "map": "ipv4_addr . inet_service", "elem": elements}


def test_routes_read_as_they_were_written() -> None:
    assert route_map.parse(listed(ALL)) == ALL
    assert route_map.storable(ALL) == ALL


def test_no_comment_is_longer_than_nft_takes_and_no_word_is_cut() -> None:
    texts = [text for each in ROUTES for text in route_map._comments(each)]
    assert max(map(len, texts)) <= comments.MAX_COMMENT
    assert len(route_map._comments(ROUTES[-1])) > 1


@pytest.mark.parametrize(
    "element",
    [
        [{"elem": {"val": {"concat": [5, 0]}, "comment": "id=web"}}, {"concat": ["10.0.0.5", 80]}],
        [
            {"elem": {"val": {"concat": [number_of("web"), 1]}, "comment": "id=web"}},
            {"concat": ["10.0.0.5", 80]},
        ],
        [
            {"elem": {"val": {"concat": [number_of("web"), 0]}, "comment": "id=web"}},
            {"concat": ["10.0.0.5", 0]},
        ],
        [
            {"elem": {"val": {"concat": [number_of("web"), 0]}, "comment": "id=web"}},
            {"concat": [NOWHERE, 80]},
        ],
        [{"concat": [number_of("web"), 0]}, {"concat": ["10.0.0.5", 80]}],
    ],
)
def test_an_element_that_is_no_route_is_left_out(element: list[Any]) -> None:
    assert route_map.parse(listed({}) | {"elem": [element]}) == {}


def test_a_map_of_another_type_is_no_map_of_routes() -> None:
    assert route_map.parse(listed(ALL) | {"type": "mark"}) is None


def test_a_bridge_without_routes_has_no_commands_for_them() -> None:
    found = ServiceMap("br0", {}, Network("blue"))
    assert not any("rt_br0" in line for line in map_commands.add_map(found))
    with_routes = found._replace(routes=ALL)
    assert map_commands.change_map(found, with_routes)[-1].startswith("add element ip one_tproxy rt_br0 ")
    assert map_commands.change_map(with_routes, found)[-1] == "delete map ip one_tproxy rt_br0"
    assert map_commands.change_map(with_routes, with_routes) == []


def test_the_daemon_remembers_routes_of_a_lost_map() -> None:
    found = memory.Remembered(ServiceMap("br0", {}, routes=ALL), True, frozenset())
    assert memory.from_json(json.loads(json.dumps(memory.to_json(found)))) == found
