"""The service maps, as text to load into nftables and as parsed JSON. Pure: ``nftables`` talks to the kernel.

The map is a contract with other programs (docs/contract.md, nftables is the database). Comments on the map
and on its elements hold the network and the options of a service, as ``key=value`` words with percent-encoded
values. So nft can always load its own listing again.

Beside the map of a bridge is the set of its members: the MAC of each guest's NIC, with the NIC's network in
the comment. Where a hook named the port of a NIC, the set ``pt_<bridge>`` has port and MAC.

Where the options of a service do not fit into one comment, the rest of the text is in the
comments of another set, ``op_<bridge>``, whose elements are a port and a number, from 0 on. The word ``more``
in the comment of the map's element says how many of them belong to it. So what an earlier map left there
means nothing, and a reader that does not know the set has the options that fit. One transaction changes all.

A service without an IPv4 endpoint has no element in the map, where older readers would serve it. Its element
is in ``op_<bridge>`` under the number ALONE, with the same words. If the map has the port too, that counts.

A service that is not plain (``ServiceKey.plain``) is in ``sv_<bridge>``, a map whose key is the whole key of
the service. ``so_<bridge>`` is to it what ``op_<bridge>`` is to ``ep_<bridge>``. Both exist only where they
are needed, and mean nothing without ``ep_<bridge>``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tproxy.errors import BadName
from tproxy.model import (
    MOST_ENDPOINTS,
    PROTOCOLS,
    TABLE,
    BridgeNames,
    Endpoint,
    Member,
    Network,
    Service,
    ServiceKey,
    ServiceMap,
    is_address,
    is_ipv4,
    stand_in,
)
from tproxy.typed import Any

MAP_PREFIX = "ep_"
SET_PREFIX = "gu_"
CARDS_PREFIX = "pt_"
OPTIONS_PREFIX = "op_"
TYPED_PREFIX = "sv_"
TYPED_OPTIONS_PREFIX = "so_"
_CARD = "ifname . ether_addr"
_KEY = "ipv4_addr . inet_proto . inet_service . mark"
_MAP_TYPE = "type inet_service : ipv4_addr . inet_service;"
_TYPED_MAP_TYPE = f"type {_KEY} : ipv4_addr . inet_service;"

# NFTNL_UDATA_COMMENT_MAXLEN of libnftnl is 128 with the final NUL.
MAX_COMMENT = 127
# Bytes for a network, so that its words are the same in the map and in the set, where the order follows them.
_MAX_NETWORK = MAX_COMMENT - len(" order=99999")

# The word that says how many comments in the other set go on with the options, and room for it.
_MORE = "more"
_MOST_BEFORE_MORE = MAX_COMMENT - len(" more=9999")

# The number, in ``op_<bridge>``, of the first comment of a service that has no element in the map. Behind all
# numbers that ``more`` can mean. Its port at the endpoint is the word PORT.
ALONE = 1 << 16
_PORT = "port"

_IPV6 = "ipv6"  # a word in the comment of sv_<bridge>

# The options of a service: words in its element's comment, which it lacks where a default counts.
_OPTIONS = Service._fields[2:]
_DEFAULTS = [Service._field_defaults[field] for field in _OPTIONS]

# Unreserved characters, RFC 3986.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")

Json = dict[str, Any]

# The comments of a set with the rest of options, by key and number.
Rest = Mapping[tuple[ServiceKey, int], str]


def storable(wanted: ServiceMap) -> ServiceMap:
    """The map as it reads after it was loaded: without the words that do not fit into a comment.

    Only such a map can be compared with one that was read.
    """
    services = {
        key: _service(key, each.endpoint, _service_text(each)) for key, each in wanted.services.items()
    }
    members = wanted.members
    if members is not None:
        members = {mac: each._replace(network=stored(each.network)) for mac, each in members.items()}
    return ServiceMap(wanted.bridge, services, stored(wanted.network), members, wanted.ipv6, wanted.cards)


def stored(network: Network) -> Network:
    """The network as it reads after it was loaded, in a map or a set."""
    words = decode_words(_network_comment(network))
    return Network(words.get("network", ""), words.get("id", ""))


def add_map(wanted: ServiceMap) -> list[str]:
    """Return commands that create the map."""
    names = BridgeNames(wanted.bridge)
    comment = _quoted(_network_comment(wanted.network))
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
    ]


def change_map(observed: ServiceMap, wanted: ServiceMap) -> list[str]:
    """Return commands that turn the observed map into the wanted one; none when both are the same."""
    names = BridgeNames(wanted.bridge)
    if (observed.network, observed.ipv6) != (wanted.network, wanted.ipv6):
        # A map's comment cannot be changed, so the map is replaced. One transaction does both.
        new_map = add_map(wanted._replace(members=None, cards=frozenset()))
        plain = f"delete map ip {TABLE} {names.map}"
        typed = _delete_typed_map(names) if _typed(observed) else []
        unused = _unused_rest(names, observed.services, wanted.services)
        cards = _change_cards(names, observed.cards, wanted.cards)
        return [plain, *typed, *new_map, *unused, *_change_set(names, observed, wanted), *cards]
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
    ]


def parse_map(listed: Json, rest: Rest | None = None) -> ServiceMap | None:
    """The service map in an object of ``nft -j list``; None when its name or type is another.

    Its members are in another object, see ``parse_members``, and so are the ``rest`` of the options, see
    ``parse_rest``, and the services that are not plain, see ``parse_typed``.
    """
    name, left, right = listed["name"], listed.get("type"), listed.get("map")
    if not name.startswith(MAP_PREFIX) or (left, _joined(right)) != (
        "inet_service",
        "ipv4_addr . inet_service",
    ):
        return None
    bridge = name.removeprefix(MAP_PREFIX)
    try:
        BridgeNames(bridge)
    except BadName:
        return None
    services = _parse_elements(listed, rest or {})
    return ServiceMap(bridge, services, _member(listed.get("comment", "")).network)


def parse_typed(listed: Json, rest: Rest | None = None) -> dict[ServiceKey, Service] | None:
    """The services in an object ``sv_<bridge>`` of ``nft -j list``, by key; None when its type is another."""
    if " . ".join(listed.get("type", ())) != _KEY or _joined(listed.get("map")) != "ipv4_addr . inet_service":
        return None
    return _parse_elements(listed, rest or {})


def has_ipv6(listed: Json) -> bool:
    """Whether an object ``sv_<bridge>`` of ``nft -j list`` says that services are at the IPv6 address too."""
    return decode_words(listed.get("comment", "")).get(_IPV6) == "yes"


def _joined(kind: Any) -> Any:
    """A type as text; newer versions of nft list its parts."""
    return " . ".join(kind) if isinstance(kind, list) else kind


def _parse_elements(listed: Json, rest: Rest) -> dict[ServiceKey, Service]:
    """The services of a map, and those that have no element there but in the set beside it."""
    found = (_parse_element(rest, *each) for each in listed.get("elem", []))
    services = {each.key: each for each in found if each is not None}
    for key, number in rest:
        if number == ALONE and key not in services and (alone := _parse_alone(rest, key)):
            services[key] = alone
    return services


def parse_members(listed: Json) -> dict[str, Member] | None:
    """The members in an object of ``nft -j list``, by MAC; None when it is no set of that type."""
    if listed.get("type") not in ("ether_addr", ["ether_addr"]):
        return None
    found = {}
    for each in listed.get("elem", []):
        element = each.get("elem", each) if isinstance(each, dict) else {"val": each}
        if isinstance(mac := element.get("val"), str):  # neither a prefix nor a range
            found[mac] = _member(element.get("comment", ""))
    return found


def parse_cards(listed: Json) -> frozenset[tuple[str, str]] | None:
    """The pairs of port and MAC in an object of ``nft -j list``; None when it is no set of that type."""
    if _joined(listed.get("type")) != _CARD:
        return None
    found = set()
    for each in listed.get("elem", []):
        element = each.get("elem", each) if isinstance(each, dict) else {}
        match element.get("val", element):
            case {"concat": [str(port), str(mac)]}:
                found.add((port, mac))
    return frozenset(found)


def continued(listed: Json) -> dict[ServiceKey, int]:
    """How many comments in the set beside a map go on with the options of its services, by key."""
    found = {}
    for left, _ in listed.get("elem", []):
        element = left.get("elem", left) if isinstance(left, dict) else {}
        if (count := _more(element.get("comment", ""))) and (key := _parse_key(element.get("val"))):
            found[key] = count
    return found


def _more(comment: str) -> int:
    text = decode_words(comment).get(_MORE, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0


def parse_rest(listed: Json, *, plain: bool = True) -> dict[tuple[ServiceKey, int], str] | None:
    """The comments of an object of ``nft -j list``, by key and number; None when it is no such set.

    ``plain`` says whether it is ``op_<bridge>`` or ``so_<bridge>``.
    """
    if _joined(listed.get("type")) != ("inet_service . mark" if plain else f"{_KEY} . mark"):
        return None
    found = {}
    for each in listed.get("elem", []):
        element = each.get("elem", {}) if isinstance(each, dict) else {}
        try:
            *left, number = element["val"]["concat"]
            if (key := _parse_key(left[0] if plain else {"concat": left})) is not None:
                found[key, int(number)] = str(element["comment"])
        except (LookupError, TypeError, ValueError):  # without a comment, or a range: not by tproxy
            continue
    return found


def _parse_key(value: Any) -> ServiceKey | None:
    """The key in an element's left side; None for anything else: a range, nft's "*", port 0, a protocol."""
    try:
        if not isinstance(value, dict):
            return ServiceKey(port) if (port := int(value)) else None
        address, protocol, port, network = value["concat"]
        key = ServiceKey(int(port), str(protocol), str(address), int(network))
    except (KeyError, TypeError, ValueError):
        return None
    usable = key.port and key.protocol in PROTOCOLS and is_ipv4(key.address) and not key.plain
    return key if usable else None


def unusable_elements(listed: Json) -> list[str]:
    """The elements of a map that ``parse_map`` leaves out, each as the JSON text of nft."""
    elements = listed.get("elem", [])
    return [json.dumps(each) for each in elements if _parse_element({}, *each) is None]


def _parse_element(rest: Rest, left: Any, right: Any) -> Service | None:
    """The service; None for anything but one key and its endpoint."""
    element = left["elem"] if isinstance(left, dict) and "elem" in left else {"val": left}
    key = _parse_key(element.get("val"))
    try:
        address, remote_port = right["concat"]
        endpoint = Endpoint(address, int(remote_port))
    except (KeyError, TypeError, ValueError):
        return None
    return _service(key, endpoint, _whole(key, element.get("comment", ""), rest)) if key else None


def _parse_alone(rest: Rest, key: ServiceKey) -> Service | None:
    """The service that has no element in the map; None unless its words name an endpoint."""
    comment = _whole(key, rest[key, ALONE], rest)
    words = decode_words(comment)
    addresses, remote_port = _addresses(words.get("endpoints", "")), words.get(_PORT, "")
    if not (addresses and remote_port.isascii() and remote_port.isdecimal()):
        return None
    if any(map(is_ipv4, addresses)) or not 0 < int(remote_port[:6]) < 1 << 16:
        return None
    return _service(key, Endpoint(addresses[0], int(remote_port)), comment)


def _whole(key: ServiceKey, comment: str, rest: Rest) -> str:
    """The text of a service's options. Where a part is missing, only the words before it count."""
    text = ""
    for number in range(_more(comment)):
        if (key, number) not in rest:
            text = text.rpartition(" ")[0]  # without the beginning of a word
            break
        text += rest[key, number]
    return f"{comment} {text}" if text else comment


def _service(key: ServiceKey, endpoint: Endpoint, comment: str) -> Service:
    options = list(_DEFAULTS)
    for word, text in decode_words(comment).items():
        if word in _OPTIONS:
            place = _OPTIONS.index(word)
            options[place] = _value(text, _DEFAULTS[place])
    service = Service(key, endpoint, *options)
    if not service.endpoints:
        return service
    # Another program may have changed the element's address alone.
    others = service.endpoints if endpoint.address in service.endpoints else ()
    return service._replace(endpoints=others if len(others) > 1 else ())


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(is_address, text.split(","))))[:MOST_ENDPOINTS]


def _value(text: str, default: Any) -> Any:
    """The value that a word stands for: of the type of the option's default, which counts for any other text.

    Another program may have written the word, so its bounds are wider than those of the configuration file: a
    whole number can be 0, which may mean "never", and any other number is above 0.
    """
    if isinstance(default, bool):
        return {"yes": True, "no": False}.get(text, default)
    if isinstance(default, int):
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default
    if isinstance(default, float):
        try:
            number = float(text)
        except ValueError:
            return default
        return number if 0 < number < float("inf") else default
    return _addresses(text) if isinstance(default, tuple) else text


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _elements(verb: str, names: BridgeNames, services: Iterable[Service]) -> list[str]:
    texts: dict[str, list[str]] = {names.map: [], names.typed_map: []}
    for service in services:
        if not in_map(service):
            continue
        comment = _quoted(_parts(service)[0]) if verb == "add" else ""
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
    comment = f' comment "{_IPV6}=yes";' if ipv6 else ""
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
    return f"add set ip {TABLE} {names.cards} {{ type {_CARD}; }}"


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
        f"{mac} {_quoted(member_comment(each)) if verb == 'add' else ''}" for mac, each in members.items()
    )
    return [f"{verb} element ip {TABLE} {names.members} {{ {', '.join(texts)} }}"] if members else []


def member_comment(member: Member) -> str:
    order = f"order={member.order}" if member.order > 1 else ""
    return " ".join(filter(None, (_network_comment(member.network), order)))


def _member(comment: str) -> Member:
    words = decode_words(comment)
    order = words.get("order", "")
    network = Network(words.get("network", ""), words.get("id", ""))
    return Member(network, int(order) if order.isascii() and order.isdecimal() else 1)


def _network_comment(network: Network) -> str:
    # The id comes first, so that it always fits. A name that does not fit is replaced by a short stand-in,
    # which always fits, and by which entries for that name still apply (Network.is_one_of).
    comment = encode_words({"id": network.id, "network": network.name}, _MAX_NETWORK)
    if network.name and "network" not in decode_words(comment):
        comment = encode_words({"id": network.id, "network": stand_in(network.name)}, _MAX_NETWORK)
    return comment


def _options_set(names: BridgeNames, *, plain: bool) -> str:
    name, key = (names.options, "inet_service") if plain else (names.typed_options, _KEY)
    return f"add set ip {TABLE} {name} {{ type {key} . mark; }}"


def _rest(services: Mapping[ServiceKey, Service], *, plain: bool) -> list[str]:
    """The elements of ``op_<bridge>``, or of ``so_<bridge>``, for these services."""
    return [
        f'{_left(key)} . {number} comment "{part}"'
        for key, service in services.items()
        if key.plain == plain
        for number, part in _numbered(service)
    ]


def in_map(service: Service) -> bool:
    """Whether the service has an element in the map: then its leading endpoint has an IPv4 address."""
    return is_ipv4(service.endpoint.address)


def _numbered(service: Service) -> list[tuple[int, str]]:
    first, parts = _parts(service)
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


def _service_text(service: Service) -> str:
    """The options of a service as words, however long that is."""
    words = _words(service.options)
    if not in_map(service):
        addresses = service.endpoints or (service.endpoint.address,)
        words = {_PORT: str(service.endpoint.port), **words, "endpoints": _word(addresses)}
    return " ".join(f"{key}={_escaped(value)}" for key, value in words.items() if value)


def _parts(service: Service) -> tuple[str, list[str]]:
    """The comment of a service's element, and those that go on with it, cut anywhere."""
    text = _service_text(service)
    if len(text) <= MAX_COMMENT:
        return text, []
    words = text.split(" ")
    first = ""
    while words and len(first) + 1 + len(words[0]) <= _MOST_BEFORE_MORE:
        first = f"{first} {words.pop(0)}".lstrip()
    rest = " ".join(words)
    parts = [rest[start : start + MAX_COMMENT] for start in range(0, len(rest), MAX_COMMENT)]
    return f"{first} {_MORE}={len(parts)}".lstrip(), parts


def _words(options: Mapping[str, Any]) -> dict[str, str]:
    # The name, which is the first option, comes last: of all, a reader without the set misses it least.
    return {
        key: _word(options[key])
        for key, default in zip(reversed(_OPTIONS), reversed(_DEFAULTS), strict=True)
        if options.get(key, default) != default
    }


def _quoted(comment: str) -> str:
    return f'comment "{comment}"' if comment else ""


def encode_words(words: Mapping[str, str], most: int = MAX_COMMENT) -> str:
    """Return a comment of these words, without the empty ones, of at most ``most`` bytes.

    A word that does not fit is left out as a whole, because half a name would be another name.
    """
    text = ""
    for key, value in words.items():
        word = f"{key}={_escaped(value)}" if value else ""
        if word and len(text) + len(word) + 1 <= most:
            text += (" " if text else "") + word
    return text


def decode_words(comment: str) -> dict[str, str]:
    """The words of a comment. Anything else in it is ignored."""
    pairs = (word.partition("=") for word in comment.split())
    return {key: _unescaped(value) for key, mark, value in pairs if mark}


# urllib is imported only for names that need it: the import takes milliseconds, and most names are plain.


def _escaped(value: str) -> str:
    if _PLAIN.issuperset(value):
        return value
    from urllib.parse import quote

    # With surrogateescape any bytes in a name come back as they were.
    return quote(value.encode(errors="surrogateescape"), safe="")


def _unescaped(value: str) -> str:
    if "%" not in value:
        return value
    from urllib.parse import unquote

    return unquote(value, errors="surrogateescape")
