"""The catalog: what it has after a bridge's map changed."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from tests.keys import keys_of
from tproxy.daemon.catalog import Catalog
from tproxy.model import Endpoint, Network, Service, ServiceKey, ServiceMap

ports = st.integers(1, 65535)
endpoints = st.builds(Endpoint, st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.sampled_from([80, 81]))
services = st.dictionaries(ports, endpoints, max_size=8)


def a_map(of: Mapping[int, Endpoint], bridge: str = "br0", network: str = "") -> ServiceMap:
    return ServiceMap(
        bridge,
        {ServiceKey(port): Service(ServiceKey(port), each) for port, each in of.items()},
        Network(network),
    )


def endpoint(catalog: Catalog, bridge: str) -> Endpoint:
    (service,) = catalog.services(bridge)
    return service.endpoint


ONE, TWO = Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 81)


@given(st.lists(services, min_size=1, max_size=4))
def test_the_catalog_has_what_the_last_map_says(maps: list[dict[int, Endpoint]]) -> None:
    catalog = Catalog()
    for each in maps:
        catalog.apply(a_map(each))
        assert catalog.listeners("br0") == keys_of(sorted(each))
        assert [(port, each[port]) for port in sorted(each)] == [
            (service.port, service.endpoint) for service in catalog.services("br0")
        ]


@given(services, services)
def test_the_log_gets_a_line_for_each_port_that_changed_and_none_for_others(
    before: dict[int, Endpoint], after: dict[int, Endpoint]
) -> None:
    catalog = Catalog()
    catalog.apply(a_map(before))
    lines = catalog.apply(a_map(after))
    changed = {port for port in before.keys() | after.keys() if before.get(port) != after.get(port)}
    assert {int(line.split()[1]) for line in lines} == changed
    assert len(lines) == len(changed)
    assert catalog.apply(a_map(after)) == []


def test_the_lines_name_the_new_and_the_old_endpoint() -> None:
    catalog = Catalog()
    assert catalog.apply(a_map({80: ONE})) == ["port 80 leads to 10.0.0.1:80"]
    assert catalog.apply(a_map({80: TWO})) == ["port 80 leads to 10.0.0.2:81, no longer to 10.0.0.1:80"]
    assert catalog.apply(a_map({})) == ["port 80 is gone"]


def test_a_changed_timeout_takes_effect_without_a_line_about_the_endpoint() -> None:
    catalog = Catalog()
    catalog.apply(a_map({80: ONE}))
    assert (
        catalog.apply(ServiceMap("br0", {ServiceKey(80): Service(ServiceKey(80), ONE, connect_timeout=1.0)}))
        == []
    )
    (service,) = catalog.services("br0")
    assert service.connect_timeout == 1.0


def test_one_port_of_two_bridges_is_two_services() -> None:
    catalog = Catalog()
    catalog.apply(a_map({80: ONE}, "br0", "blue"))
    catalog.apply(a_map({80: TWO}, "br1", "green"))
    assert endpoint(catalog, "br0") == ONE
    assert endpoint(catalog, "br1") == TWO
    assert [[each.name for each in catalog.orders(bridge)] for bridge in ("br0", "br1")] == [
        ["blue"],
        ["green"],
    ]


def test_removing_a_bridge_leaves_the_others_and_may_be_done_twice() -> None:
    catalog = Catalog()
    catalog.apply(a_map({80: ONE}, "br0"))
    catalog.apply(a_map({80: TWO}, "br1"))
    for _ in range(2):
        catalog.remove("br0")
        assert catalog.bridges == {"br1"}
        assert catalog.listeners("br0") == ()
        assert list(catalog.services("br0")) == []


def test_a_bridge_with_an_empty_map_is_still_known() -> None:
    catalog = Catalog()
    catalog.apply(a_map({80: ONE}))
    catalog.apply(a_map({}))
    assert catalog.bridges == {"br0"}


def test_the_catalog_returns_the_maps_that_it_was_given() -> None:
    catalog = Catalog()
    maps = [a_map({80: ONE, 81: TWO}, "br0", "blue"), a_map({}, "br1")]
    for each in reversed(maps):
        catalog.apply(each)
    assert catalog.maps() == maps
    catalog.remove("br0")
    assert catalog.maps() == maps[1:]
