"""The service maps and the sets beside them: their names, their types, and how they read. Pure.

The map is a contract with other programs (docs/contract.md, nftables is the database). ``map_commands``
writes it, ``comments`` has the words in it, and ``nftables`` talks to the kernel.

Beside the map of a bridge is the set of its members: the MAC of each guest's NIC, with the NIC's network in
the comment. Where a hook named the port of a NIC, the set ``pt_<bridge>`` has port and MAC.

Where the options of a service do not fit into one comment, the rest of the text is in the
comments of another set, ``op_<bridge>``, whose elements are a port and a number, from 0 on. The word ``more``
in the comment of the map's element says how many of them belong to it. So what an earlier map left there
means nothing, and a reader that does not know the set has the options that fit. One transaction changes all.

A service without an IPv4 endpoint has no element in the map, where older readers would serve it. Its element
is in ``op_<bridge>`` under the number ALONE, with the same words. If the map has the port too, that counts.
Where all endpoints are UNIX sockets it has no port, so older readers, which know none of these, leave it out.

A service that is not plain (``ServiceKey.plain``) is in ``sv_<bridge>``, a map whose key is the whole key of
the service. ``so_<bridge>`` is to it what ``op_<bridge>`` is to ``ep_<bridge>``. Both exist only where they
are needed, and mean nothing without ``ep_<bridge>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tproxy.addresses import is_ipv4, is_unix
from tproxy.bridge.comments import MORE, PORT, addresses_in, decode_words, parse_member, parse_service
from tproxy.errors import BadName
from tproxy.model import PROTOCOLS, TCP, UDP, Endpoint, Member, Service, ServiceKey, ServiceMap, leading
from tproxy.names import BridgeNames
from tproxy.typed import Any

MAP_PREFIX = "ep_"
SET_PREFIX = "gu_"
CARDS_PREFIX = "pt_"
OPTIONS_PREFIX = "op_"
TYPED_PREFIX = "sv_"
TYPED_OPTIONS_PREFIX = "so_"

CARD = "ifname . ether_addr"  # the type of pt_<bridge>
KEY = "ipv4_addr . inet_proto . inet_service . mark"  # of sv_<bridge>
ENDPOINT = "ipv4_addr . inet_service"  # what both maps lead to

# The number, in ``op_<bridge>``, of the first comment of a service that has no element in the map. Behind all
# numbers that ``more`` can mean. Its port at the endpoint is the word PORT.
ALONE = 1 << 16

IPV6 = "ipv6"  # a word in the comment of sv_<bridge>

_PROTOCOLS = {6: TCP, 17: UDP}  # <linux/in.h>

Json = dict[str, Any]

# The comments of a set with the rest of options, by key and number.
Rest = Mapping[tuple[ServiceKey, int], str]


def parse_map(listed: Json, rest: Rest | None = None) -> ServiceMap | None:
    """The service map in an object of ``nft -j list``; None when its name or type is another.

    Its members are in another object, see ``parse_members``, and so are the ``rest`` of the options, see
    ``parse_rest``, and the services that are not plain, see ``parse_typed``.
    """
    name, left, right = listed["name"], listed.get("type"), listed.get("map")
    if not name.startswith(MAP_PREFIX) or (left, _joined(right)) != (
        "inet_service",
        ENDPOINT,
    ):
        return None
    bridge = name.removeprefix(MAP_PREFIX)
    try:
        BridgeNames(bridge)
    except BadName:
        return None
    services = _parse_elements(listed, rest or {})
    return ServiceMap(bridge, services, parse_member(listed.get("comment", "")).network)


def parse_typed(listed: Json, rest: Rest | None = None) -> dict[ServiceKey, Service] | None:
    """The services in an object ``sv_<bridge>`` of ``nft -j list``, by key; None when its type is another."""
    if " . ".join(listed.get("type", ())) != KEY or _joined(listed.get("map")) != ENDPOINT:
        return None
    return _parse_elements(listed, rest or {})


def has_ipv6(listed: Json) -> bool:
    """Whether an object ``sv_<bridge>`` of ``nft -j list`` says that services are at the IPv6 address too."""
    return decode_words(listed.get("comment", "")).get(IPV6) == "yes"


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
            found[mac] = parse_member(element.get("comment", ""))
    return found


def parse_cards(listed: Json) -> frozenset[tuple[str, str]] | None:
    """The pairs of port and MAC in an object of ``nft -j list``; None when it is no set of that type."""
    if _joined(listed.get("type")) != CARD:
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
    text = decode_words(comment).get(MORE, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0


def parse_rest(listed: Json, *, plain: bool = True) -> dict[tuple[ServiceKey, int], str] | None:
    """The comments of an object of ``nft -j list``, by key and number; None when it is no such set.

    ``plain`` says whether it is ``op_<bridge>`` or ``so_<bridge>``.
    """
    if _joined(listed.get("type")) != ("inet_service . mark" if plain else f"{KEY} . mark"):
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
        key = ServiceKey(int(port), protocol_of(protocol), str(address), int(network))
    except (KeyError, TypeError, ValueError):
        return None
    usable = key.port and key.protocol in PROTOCOLS and is_ipv4(key.address) and not key.plain
    return key if usable else None


def protocol_of(value: Any) -> str:
    """Return the name of a protocol in an element: nft lists its number where there is no /etc/protocols."""
    return _PROTOCOLS.get(value) or str(value)


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
    return parse_service(key, endpoint, _whole(key, element.get("comment", ""), rest)) if key else None


def _parse_alone(rest: Rest, key: ServiceKey) -> Service | None:
    """The service that has no element in the map; None unless its words name an endpoint."""
    comment = _whole(key, rest[key, ALONE], rest)
    words = decode_words(comment)
    addresses, remote_port = addresses_in(words.get("endpoints", "")), words.get(PORT, "0")
    if key.protocol == UDP:
        addresses = tuple(each for each in addresses if not is_unix(each))
    if not (addresses and remote_port.isascii() and remote_port.isdecimal()):
        return None
    endpoint = Endpoint(leading(addresses), int(remote_port[:6]))
    if is_ipv4(endpoint.address) or not (endpoint.is_unix or 0 < endpoint.port < 1 << 16):
        return None
    return parse_service(key, endpoint, comment)


def _whole(key: ServiceKey, comment: str, rest: Rest) -> str:
    """The text of a service's options. Where a part is missing, only the words before it count."""
    text = ""
    for number in range(_more(comment)):
        if (key, number) not in rest:
            text = text.rpartition(" ")[0]  # without the beginning of a word
            break
        text += rest[key, number]
    return f"{comment} {text}" if text else comment
