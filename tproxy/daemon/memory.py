"""What the daemon remembers of the bridges that it serves, for who restores maps that somebody deleted.

The request is ``{"op": "maps"}``. The answer has an object for each bridge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tproxy.daemon.client import PING_TIMEOUT, Json, ask
from tproxy.model import Endpoint, Member, Network, Service, ServiceKey, ServiceMap
from tproxy.routes import Route, key_of, number_of


class Remembered(NamedTuple):
    """One bridge.

    ``guarded`` says that it had guards of ours, ``uplinks`` are those that the operator named.
    """

    map: ServiceMap
    guarded: bool
    uplinks: frozenset[str]


def remembered() -> list[Remembered]:
    """Ask the daemon, for all bridges that it serves. Raises ProcessError as ``client.ask`` does."""
    return [from_json(each) for each in ask({"op": "maps"}, PING_TIMEOUT)["maps"]]


def to_json(each: Remembered) -> Json:
    """Return the object for one bridge."""
    bridge, services, network, members, ipv6, cards, routes = each.map
    return {
        "bridge": bridge,
        "network": network.name,
        "network_id": network.id,
        "services": [
            # A plain key as its port alone, as versions without other keys have it.
            [key.port if key.plain else key, *endpoint, *options]
            for key, endpoint, *options in services.values()
        ],
        "members": members
        and {mac: [network.name, network.id, order] for mac, (network, order) in members.items()},
        "ipv6": ipv6,
        "cards": sorted(cards),
        "routes": [
            [id_, *service.endpoint, mac, place, expires, service.options]
            for id_, service, mac, place, expires in routes.values()
        ],
        "guarded": each.guarded,
        "uplinks": sorted(each.uplinks),
    }


def from_json(each: Json) -> Remembered:
    """Return the bridge that an object stands for."""
    found = (
        _service(key, Endpoint(address, remote_port), options)
        for key, address, remote_port, *options in each["services"]
    )
    services = {service.key: service for service in found}
    members = each["members"]
    if members is not None:
        members = {mac: Member(Network(name, id_), order) for mac, (name, id_, order) in members.items()}
    network = Network(each["network"], each["network_id"])
    cards = frozenset((port, mac) for port, mac in each.get("cards", ()))  # of older versions none
    found_map = ServiceMap(each["bridge"], services, network, members, bool(each.get("ipv6")), cards)
    routes = dict(map(_route, each.get("routes", ())))
    return Remembered(found_map._replace(routes=routes), each["guarded"], frozenset(each["uplinks"]))


def _route(said: list[Any]) -> tuple[int, Route]:
    id_, address, port, mac, place, expires, options = said
    number = number_of(id_)
    service = Service(key_of(number), Endpoint(address, port), **options)
    return number, Route(id_, service, mac, place, expires)


def _service(key: int | list[Any], endpoint: Endpoint, options: list[Any]) -> Service:
    known = ServiceKey(key) if isinstance(key, int) else ServiceKey(*key)
    service = Service(known, endpoint, *options[: len(Service._fields) - 2])
    return service._replace(endpoints=tuple(service.endpoints))  # JSON has lists only
