"""The service maps, as text to load into nftables and as parsed JSON. Pure: ``nftables`` talks to the kernel.

The map is a contract with other programs (docs/contract.md, nftables is the database). Comments on the map
and on its elements hold the network and the options of a service, as ``key=value`` words with percent-encoded
values. So nft can always load its own listing again.

Beside the map of a bridge is the set of its members: the MAC of each guest's NIC, with the NIC's network in
the comment. One transaction changes both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tproxy.errors import BadName
from tproxy.model import (
    TABLE,
    BridgeNames,
    Endpoint,
    Member,
    Network,
    Service,
    ServiceMap,
    stand_in,
)
from tproxy.typed import Any

MAP_PREFIX = "ep_"
SET_PREFIX = "gu_"
_MAP_TYPE = "type inet_service : ipv4_addr . inet_service;"

# NFTNL_UDATA_COMMENT_MAXLEN of libnftnl is 128 with the final NUL.
MAX_COMMENT = 127
# Bytes for a network, so that its words are the same in the map and in the set, where the order follows them.
_MAX_NETWORK = MAX_COMMENT - len(" order=99999")

# The options of a service: words in its element's comment, which it lacks where a default counts.
_OPTIONS = Service._fields[2:]
_DEFAULTS = [Service._field_defaults[field] for field in _OPTIONS]

# Unreserved characters, RFC 3986.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")

Json = dict[str, Any]


def storable(wanted: ServiceMap) -> ServiceMap:
    """The map as it reads after it was loaded: without the words that do not fit into a comment.

    Only such a map can be compared with one that was read.
    """
    services = {
        port: _service(port, each.endpoint, _service_comment(each)) for port, each in wanted.services.items()
    }
    members = wanted.members
    if members is not None:
        members = {mac: each._replace(network=stored(each.network)) for mac, each in members.items()}
    return ServiceMap(wanted.bridge, services, stored(wanted.network), members)


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
        *_elements("add", names, wanted.services.values()),
        *_add_set(names, wanted.members),
    ]


def change_map(observed: ServiceMap, wanted: ServiceMap) -> list[str]:
    """Return commands that turn the observed map into the wanted one; none when both are the same."""
    names = BridgeNames(wanted.bridge)
    if observed.network != wanted.network:
        # A map's comment cannot be changed, so the map is replaced. One transaction does both.
        new_map = add_map(wanted._replace(members=None))
        return [f"delete map ip {TABLE} {names.map}", *new_map, *_change_set(names, observed, wanted)]
    gone = [each for port, each in observed.services.items() if wanted.services.get(port) != each]
    new = [each for port, each in wanted.services.items() if observed.services.get(port) != each]
    services = [*_elements("delete", names, gone), *_elements("add", names, new)]
    return [*services, *_change_set(names, observed, wanted)]


def delete_map(bridge: str) -> list[str]:
    """Return the commands that delete the bridge's map and its set of members."""
    return [f"delete map ip {TABLE} {BridgeNames(bridge).map}", *delete_set(bridge)]


def delete_set(bridge: str) -> list[str]:
    """Return commands after which the bridge has no set of members, whether or not it has one now."""
    # Added first, because deleting a missing set fails.
    names = BridgeNames(bridge)
    return [f"add table ip {TABLE}", _set(names), f"delete set ip {TABLE} {names.members}"]


def parse_map(listed: Json) -> ServiceMap | None:
    """The service map in an object of ``nft -j list``; None when its name or type is another.

    Its members are in another object, see ``parse_members``.
    """
    name, key, value = listed["name"], listed.get("type"), listed.get("map")
    if isinstance(value, list):  # newer versions of nft list the parts of the type
        value = " . ".join(value)
    if not name.startswith(MAP_PREFIX) or (key, value) != ("inet_service", "ipv4_addr . inet_service"):
        return None
    bridge = name.removeprefix(MAP_PREFIX)
    try:
        BridgeNames(bridge)
    except BadName:
        return None
    found = (_parse_element(*each) for each in listed.get("elem", []))
    services = {each.port: each for each in found if each is not None}
    return ServiceMap(bridge, services, _member(listed.get("comment", "")).network)


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


def unusable_elements(listed: Json) -> list[str]:
    """The elements of a map that ``parse_map`` leaves out, each as the JSON text of nft."""
    elements = listed.get("elem", [])
    return [json.dumps(each) for each in elements if _parse_element(*each) is None]


def _parse_element(left: Any, right: Any) -> Service | None:
    """The service; None for anything but one port and its endpoint: a range, nft's "*", or port 0."""
    element = left.get("elem", left) if isinstance(left, dict) else {"val": left}
    try:
        port, (address, remote_port) = int(element["val"]), right["concat"]
        endpoint = Endpoint(address, int(remote_port))
    except (KeyError, TypeError, ValueError):
        return None
    return _service(port, endpoint, element.get("comment", "")) if port else None


def _service(port: int, endpoint: Endpoint, comment: str) -> Service:
    options = list(_DEFAULTS)
    for key, text in decode_words(comment).items():
        if key in _OPTIONS:
            place = _OPTIONS.index(key)
            options[place] = _value(text, _DEFAULTS[place])
    return Service(port, endpoint, *options)


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
    return text


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _elements(verb: str, names: BridgeNames, services: Iterable[Service]) -> list[str]:
    texts = []
    for service in services:
        comment = _quoted(_service_comment(service)) if verb == "add" else ""
        endpoint = f"{service.endpoint.address} . {service.endpoint.port}"
        texts.append(f"{service.port} {comment} : {endpoint}")
    return [f"{verb} element ip {TABLE} {names.map} {{ {', '.join(texts)} }}"] if texts else []


def _add_set(names: BridgeNames, members: Mapping[str, Member] | None) -> list[str]:
    if members is None:
        return []
    # A set that outlived its map says nothing of the guests that the bridge has now.
    return [_set(names), f"flush set ip {TABLE} {names.members}", *_member_elements("add", names, members)]


def _change_set(names: BridgeNames, observed: ServiceMap, wanted: ServiceMap) -> list[str]:
    before, after = observed.members, wanted.members
    if before is None or after is None:
        return _add_set(names, after) if before is None else delete_set(names.bridge)
    gone = {mac: each for mac, each in before.items() if after.get(mac) != each}
    new = {mac: each for mac, each in after.items() if before.get(mac) != each}
    return [*_member_elements("delete", names, gone), *_member_elements("add", names, new)]


def _set(names: BridgeNames) -> str:
    return f"add set ip {TABLE} {names.members} {{ type ether_addr; }}"


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


def _service_comment(service: Service) -> str:
    return encode_words(_words(service.options))


def _words(options: Mapping[str, Any]) -> dict[str, str]:
    # The name, which is the first option, comes last: of all it is missed least where there is no room.
    return {
        key: _word(options[key])
        for key, default in zip(reversed(_OPTIONS), reversed(_DEFAULTS), strict=True)
        if options.get(key, default) != default
    }


def misfits(options: Mapping[str, Any]) -> list[str]:
    """Return those of a service's options for which its element's comment has no room."""
    words = {key: word for key, word in _words(options).items() if word}
    return [key for key in words if key not in decode_words(encode_words(words))]


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
