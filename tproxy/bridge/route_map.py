"""The routes of a bridge in nftables: the map ``rt_<bridge>`` beside the service map. Pure.

A route's key is its number, which is a hash of its id (``tproxy.routes``), and a second number. The element
with 0 has the guest's address and port, and the first words of the route in its comment. Where these take
more than one comment, those of the elements with 1, 2 and so on go on; no word is cut. ``id`` is the first
word. The others are ``to`` (an address of IPv6, beside which the element has 0.0.0.0), ``mac``, ``at`` (a
port of the bridge), ``expires`` and the options, as those of a service.

The map exists only while the bridge has routes, and means nothing without ``ep_<bridge>``. It is filled anew
with each change, so that it repairs itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from tproxy.addresses import as_ipv6
from tproxy.bridge.comments import MAX_COMMENT, decode_words, encode_words, option_words, parse_service
from tproxy.model import Endpoint
from tproxy.names import TABLE, BridgeNames
from tproxy.routes import NOWHERE, Route, key_of, number_of
from tproxy.typed import Any

PREFIX = "rt_"
KEY = "mark . mark"
VALUE = "ipv4_addr . inet_service"

Routes = Mapping[int, Route]


def change(bridge: str, before: Routes, after: Routes) -> list[str]:
    """Return commands that turn the routes of a bridge into others; none when both are the same."""
    if before == after:
        return []
    name = BridgeNames(bridge).routes
    if not after:
        return delete(bridge)
    elements = [
        f'{number:#x} . {part} comment "{text}" : {_value(each)} . {each.endpoint.port}'
        for number, each in sorted(after.items())
        for part, text in enumerate(_comments(each))
    ]
    return [
        f"add table ip {TABLE}",
        _map(name),
        f"flush map ip {TABLE} {name}",
        f"add element ip {TABLE} {name} {{ {', '.join(elements)} }}",
    ]


def delete(bridge: str) -> list[str]:
    """Return commands after which the bridge has no routes, whether or not it has some now."""
    name = BridgeNames(bridge).routes
    return [_map(name), f"delete map ip {TABLE} {name}"]  # deleting a missing one fails


def parse(listed: Mapping[str, Any]) -> dict[int, Route] | None:
    """The routes in an object of ``nft -j list``, by number; None when it is no such map.

    An element that is not as ``change`` makes it is left out.
    """
    if (_joined(listed.get("type")), _joined(listed.get("map"))) != (KEY, VALUE):
        return None
    texts: dict[int, dict[int, str]] = {}
    endpoints: dict[int, Endpoint] = {}
    for left, right in listed.get("elem", []):
        try:
            number, part = map(int, left["elem"]["val"]["concat"])
            texts.setdefault(number, {})[part] = str(left["elem"]["comment"])
            if part == 0:
                address, port = right["concat"]
                endpoints[number] = Endpoint(str(address), int(port))
        except (KeyError, TypeError, ValueError):
            continue
    found = {}
    for number, endpoint in endpoints.items():
        comments = texts[number]
        whole = [comments[part] for part in range(len(comments)) if part in comments]
        route = _route(number, endpoint, " ".join(whole))
        if route is not None:
            found[number] = route
    return found


def storable(routes: Routes) -> Routes:
    """The routes as they read after they were loaded."""
    found = {
        number: _route(number, each.endpoint, " ".join(_comments(each))) for number, each in routes.items()
    }
    return {number: each for number, each in found.items() if each is not None}


def _route(number: int, endpoint: Endpoint, text: str) -> Route | None:
    words = decode_words(text)
    if to := as_ipv6(words.get("to", "")):
        endpoint = Endpoint(to, endpoint.port)
    id_, expires = words.get("id", ""), words.get("expires", "")
    if not id_ or number_of(id_) != number or not 0 < endpoint.port < 1 << 16:
        return None
    service = parse_service(key_of(number), endpoint, text)._replace(endpoints=(), name="")
    mac, place = words.get("mac", ""), words.get("at", "")
    if endpoint.address == NOWHERE and not (mac or place):
        return None
    when = int(expires) if expires.isascii() and expires.isdecimal() and len(expires) < 16 else 0
    return Route(id_, service, mac, place, when)


def _value(route: Route) -> str:
    return NOWHERE if ":" in route.endpoint.address else route.endpoint.address


def _comments(route: Route) -> list[str]:
    words = {
        "id": route.id,
        "to": route.endpoint.address if ":" in route.endpoint.address else "",
        "mac": route.mac,
        "at": route.place,
        "expires": str(route.expires or ""),
        **option_words(route.service),
    }
    parts: list[str] = [""]
    for key, value in words.items():
        if word := encode_words({key: value}):
            if len(parts[-1]) + 1 + len(word) > MAX_COMMENT:
                parts.append("")
            parts[-1] += f" {word}" if parts[-1] else word
    return parts


def _map(name: str) -> str:
    return f"add map ip {TABLE} {name} {{ type {KEY} : {VALUE}; }}"


def _joined(kind: Any) -> Any:
    return " . ".join(kind) if isinstance(kind, list) else kind
