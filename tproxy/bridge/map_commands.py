"""Commands of nft that create, change and delete a service map and the sets beside it. Pure.

``service_map`` says what stands where. All commands of a call belong into one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.bridge.comments import comments_of, in_map, member_comment, network_comment, quoted
from tproxy.bridge.service_map import ALONE, CARD, ENDPOINT, IPV6, KEY
from tproxy.model import Member, Service, ServiceKey, ServiceMap
from tproxy.names import TABLE, BridgeNames
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.routes import Route

_MAP_TYPE = f"type inet_service : {ENDPOINT};"
_ROUTES_TYPE = "type mark . mark : ipv4_addr . inet_service;"  # as ``route_map``
_TYPED_MAP_TYPE = f"type {KEY} : {ENDPOINT};"


def add_map(wanted: ServiceMap) -> list[str]:
    """Return commands that create the map."""
    names = BridgeNames(wanted.bridge)
    comment = quoted(network_comment(wanted.network))
    return [
        f"add table ip {TABLE}",
        f"add map ip {TABLE} {names.map} {{ {_MAP_TYPE} {comment + ';' if comment else ''} }}",
        # What outlived its map says nothing of the services that the bridge has now.
        *([*_delete_typed_map(names), _map(names, ipv6=wanted.ipv6)] if _typed(wanted) else []),
        *_elements("add", names, wanted.services.values()),
        *_set_rest(names, wanted.services),
        *_add_set(names, wanted.members),
        *([_card_set(names), f"flush set ip {TABLE} {names.cards}"] if wanted.cards else []),
        *_change_cards(names, frozenset(), wanted.cards),
        *_change_routes(wanted, {}, anew=True),
    ]


def change_map(observed: ServiceMap, wanted: ServiceMap) -> list[str]:
    """Return commands that turn the observed map into the wanted one; none when both are the same."""
    names = BridgeNames(wanted.bridge)
    if (observed.network, observed.ipv6) != (wanted.network, wanted.ipv6):
        # A map's comment cannot be changed, so the map is replaced. One transaction does both.
        new_map = add_map(wanted._replace(members=None, cards=frozenset(), routes={}))
        plain = f"delete map ip {TABLE} {names.map}"
        typed = _delete_typed_map(names) if _typed(observed) else []
        unused = _unused_rest(names, observed.services, wanted.services)
        cards = _change_cards(names, observed.cards, wanted.cards)
        routes = _change_routes(wanted, observed.routes)
        return [plain, *typed, *new_map, *unused, *_change_set(names, observed, wanted), *cards, *routes]
    gone = [each for key, each in observed.services.items() if wanted.services.get(key) != each]
    new = [each for key, each in wanted.services.items() if observed.services.get(key) != each]
    services = _elements("delete", names, gone)
    if _typed(wanted) != _typed(observed):
        services += [_map(names, ipv6=wanted.ipv6)] if _typed(wanted) else _delete_typed_map(names)
    services += _elements("add", names, new)
    if gone or new:
        services += _set_rest(names, wanted.services)
        services += _unused_rest(names, observed.services, wanted.services)
    return [
        *services,
        *_change_set(names, observed, wanted),
        *_change_cards(names, observed.cards, wanted.cards),
        *_change_routes(wanted, observed.routes),
    ]


def delete_map(bridge: str) -> list[str]:
    """Return the commands that delete the bridge's map and the sets beside it."""
    return [f"delete map ip {TABLE} {BridgeNames(bridge).map}", *delete_sets(bridge)]


def delete_sets(bridge: str, *, all_of_them: bool = True) -> list[str]:
    """Return commands after which the bridge has nothing beside its map, whether or not it has that now.

    Unless it is ``all_of_them``, what belongs to the services of the map stays.
    """
    # Added first, because deleting a missing set fails.
    names = BridgeNames(bridge)
    members = [
        f"add table ip {TABLE}",
        _set(names),
        f"delete set ip {TABLE} {names.members}",
        _card_set(names),
        f"delete set ip {TABLE} {names.cards}",
    ]
    if not all_of_them:
        return members
    return [
        *members,
        _options_set(names, plain=True),
        f"delete set ip {TABLE} {names.options}",
        *_delete_typed_map(names),
        _options_set(names, plain=False),
        f"delete set ip {TABLE} {names.typed_options}",
        f"add map ip {TABLE} {names.routes} {{ {_ROUTES_TYPE} }}",
        f"delete map ip {TABLE} {names.routes}",
    ]


def _change_routes(wanted: ServiceMap, before: Mapping[int, Route], *, anew: bool = False) -> list[str]:
    """Return commands for the routes. ``anew``: what outlived its service map goes."""
    if before == wanted.routes:
        return []
    from tproxy.bridge import route_map  # few bridges have routes

    gone = route_map.delete(wanted.bridge) if anew else []
    return [*gone, *route_map.change(wanted.bridge, before, wanted.routes)]


def _elements(verb: str, names: BridgeNames, services: Iterable[Service]) -> list[str]:
    texts: dict[str, list[str]] = {names.map: [], names.typed_map: []}
    for service in services:
        if not in_map(service):
            continue
        comment = quoted(comments_of(service)[0]) if verb == "add" else ""
        endpoint = f"{service.endpoint.address} . {service.endpoint.port}"
        place = names.map if service.key.plain else names.typed_map
        texts[place].append(f"{_left(service.key)} {comment} : {endpoint}")
    return [
        f"{verb} element ip {TABLE} {place} {{ {', '.join(each)} }}" for place, each in texts.items() if each
    ]


def _left(key: ServiceKey) -> str:
    """The key of an element."""
    if key.plain:
        return str(key.port)
    return f"{key.address} . {key.protocol} . {key.port} . {key.network:#x}"


def _typed(found: ServiceMap) -> bool:
    """Whether ``sv_<bridge>`` is needed."""
    return found.ipv6 or any(not key.plain for key in found.services)


def _delete_typed_map(names: BridgeNames) -> list[str]:
    return [_map(names), f"delete map ip {TABLE} {names.typed_map}"]  # deleting a missing one fails


def _map(names: BridgeNames, *, ipv6: bool = False) -> str:
    comment = f' comment "{IPV6}=yes";' if ipv6 else ""
    return f"add map ip {TABLE} {names.typed_map} {{ {_TYPED_MAP_TYPE}{comment} }}"


def _add_set(names: BridgeNames, members: Mapping[str, Member] | None) -> list[str]:
    if members is None:
        return []
    # A set that outlived its map says nothing of the guests that the bridge has now.
    return [_set(names), f"flush set ip {TABLE} {names.members}", *_member_elements("add", names, members)]


def _change_set(names: BridgeNames, observed: ServiceMap, wanted: ServiceMap) -> list[str]:
    before, after = observed.members, wanted.members
    if before is None or after is None:
        if before is None:
            return _add_set(names, after)
        return [f"add table ip {TABLE}", _set(names), f"delete set ip {TABLE} {names.members}"]
    gone = {mac: each for mac, each in before.items() if after.get(mac) != each}
    new = {mac: each for mac, each in after.items() if before.get(mac) != each}
    return [*_member_elements("delete", names, gone), *_member_elements("add", names, new)]


def _set(names: BridgeNames) -> str:
    return f"add set ip {TABLE} {names.members} {{ type ether_addr; }}"


def _card_set(names: BridgeNames) -> str:
    return f"add set ip {TABLE} {names.cards} {{ type {CARD}; }}"


def _card(port: str, mac: str) -> str:
    return f'"{port}" . {mac}'


def _change_cards(
    names: BridgeNames, before: frozenset[tuple[str, str]], after: frozenset[tuple[str, str]]
) -> list[str]:
    """Return commands for the set of cards, which exists only while there are some."""
    if before and not after:
        return [f"delete set ip {TABLE} {names.cards}"]
    changes = [("delete", sorted(before - after)), ("add", sorted(after - before))]
    lines = [
        f"{verb} element ip {TABLE} {names.cards} {{ {', '.join(_card(*each) for each in cards)} }}"
        for verb, cards in changes
        if cards
    ]
    return [_card_set(names), *lines] if lines else []


def _member_elements(verb: str, names: BridgeNames, members: Mapping[str, Member]) -> list[str]:
    texts = (
        f"{mac} {quoted(member_comment(each)) if verb == 'add' else ''}" for mac, each in members.items()
    )
    return [f"{verb} element ip {TABLE} {names.members} {{ {', '.join(texts)} }}"] if members else []


def _options_set(names: BridgeNames, *, plain: bool) -> str:
    name, key = (names.options, "inet_service") if plain else (names.typed_options, KEY)
    return f"add set ip {TABLE} {name} {{ type {key} . mark; }}"


def _rest(services: Mapping[ServiceKey, Service], *, plain: bool) -> list[str]:
    """The elements of ``op_<bridge>``, or of ``so_<bridge>``, for these services."""
    return [
        f'{_left(key)} . {number} comment "{part}"'
        for key, service in services.items()
        if key.plain == plain
        for number, part in _numbered(service)
    ]


def _numbered(service: Service) -> list[tuple[int, str]]:
    first, parts = comments_of(service)
    alone = [] if in_map(service) else [(ALONE, first)]
    return [*alone, *enumerate(parts)]


def _set_rest(names: BridgeNames, services: Mapping[ServiceKey, Service]) -> list[str]:
    """Return commands after which ``op_<bridge>`` and ``so_<bridge>`` have what the services need of them.

    They are filled anew with each change, so that they repair themselves.
    """
    commands = []
    for plain, name in ((True, names.options), (False, names.typed_options)):
        if rest := _rest(services, plain=plain):
            elements = f"add element ip {TABLE} {name} {{ {', '.join(rest)} }}"
            commands += [_options_set(names, plain=plain), f"flush set ip {TABLE} {name}", elements]
    return commands


def _unused_rest(
    names: BridgeNames, before: Mapping[ServiceKey, Service], after: Mapping[ServiceKey, Service]
) -> list[str]:
    """Return the commands that delete those of the two sets which no service needs any more."""
    return [
        command
        for plain, name in ((True, names.options), (False, names.typed_options))
        if _rest(before, plain=plain) and not _rest(after, plain=plain)
        for command in (_options_set(names, plain=plain), f"delete set ip {TABLE} {name}")
    ]
