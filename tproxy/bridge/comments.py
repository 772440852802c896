"""The comments of maps, sets and elements: networks, members and services as words. Pure.

A comment holds ``key=value`` words with percent-encoded values, so nft can always load its own listing again.
Options of a service that do not fit into the comment of its element go on in further comments
(``service_map``). The word MORE says how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from tproxy.addresses import is_endpoint, is_ipv4, is_unix
from tproxy.model import MOST_ENDPOINTS, UDP, Endpoint, Member, Network, Service, ServiceKey, ServiceMap
from tproxy.names import stand_in
from tproxy.typed import Any

# NFTNL_UDATA_COMMENT_MAXLEN of libnftnl is 128 with the final NUL.
MAX_COMMENT = 127
# Bytes for a network, so that its words are the same in the map and in the set, where the order follows them.
_MAX_NETWORK = MAX_COMMENT - len(" order=99999")

# The word that says how many further comments go on with the options, and room for it.
MORE = "more"
_MOST_BEFORE_MORE = MAX_COMMENT - len(" more=9999")

# The word for the port at the endpoint of a service that has no element in the map.
PORT = "port"

# The options of a service: words in its element's comment, which it lacks where a default counts.
_OPTIONS = Service._fields[2:]
_DEFAULTS = [Service._field_defaults[field] for field in _OPTIONS]

# Unreserved characters, RFC 3986.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")


def storable(wanted: ServiceMap) -> ServiceMap:
    """The map as it reads after it was loaded: without the words that do not fit into a comment.

    Only such a map can be compared with one that was read.
    """
    services = {
        key: parse_service(key, each.endpoint, _service_text(each)) for key, each in wanted.services.items()
    }
    members = wanted.members
    if members is not None:
        members = {mac: each._replace(network=stored(each.network)) for mac, each in members.items()}
    found = ServiceMap(wanted.bridge, services, stored(wanted.network), members, wanted.ipv6, wanted.cards)
    if not wanted.routes:
        return found
    from tproxy.bridge import route_map  # few bridges have routes

    return found._replace(routes=route_map.storable(wanted.routes))


def stored(network: Network) -> Network:
    """The network as it reads after it was loaded, in a map or a set."""
    words = decode_words(network_comment(network))
    return Network(words.get("network", ""), words.get("id", ""))


def member_comment(member: Member) -> str:
    order = f"order={member.order}" if member.order > 1 else ""
    return " ".join(filter(None, (network_comment(member.network), order)))


def parse_member(comment: str) -> Member:
    words = decode_words(comment)
    order = words.get("order", "")
    network = Network(words.get("network", ""), words.get("id", ""))
    return Member(network, int(order) if order.isascii() and order.isdecimal() else 1)


def network_comment(network: Network) -> str:
    # The id comes first, so that it always fits. A name that does not fit is replaced by a short stand-in,
    # which always fits, and by which entries for that name still apply (Network.is_one_of).
    comment = encode_words({"id": network.id, "network": network.name}, _MAX_NETWORK)
    if network.name and "network" not in decode_words(comment):
        comment = encode_words({"id": network.id, "network": stand_in(network.name)}, _MAX_NETWORK)
    return comment


def parse_service(key: ServiceKey, endpoint: Endpoint, comment: str) -> Service:
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
    if key.protocol == UDP:  # datagrams lead to no UNIX socket
        others = tuple(each for each in others if not is_unix(each))
    return service._replace(endpoints=others if len(others) > 1 else ())


def addresses_in(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(is_endpoint, text.split(","))))[:MOST_ENDPOINTS]


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
    return addresses_in(text) if isinstance(default, tuple) else text


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_map(service: Service) -> bool:
    """Whether the service has an element in the map: then its leading endpoint has an IPv4 address."""
    return is_ipv4(service.endpoint.address)


def _service_text(service: Service) -> str:
    """The options of a service as words, however long that is."""
    words = _words(service.options)
    if not in_map(service):
        addresses = service.endpoints or (service.endpoint.address,)
        # UNIX sockets have no port.
        port = str(service.endpoint.port) if service.endpoint.port else ""
        words = {PORT: port, **words, "endpoints": _word(addresses)}
    return " ".join(f"{key}={_escaped(value)}" for key, value in words.items() if value)


def comments_of(service: Service) -> tuple[str, list[str]]:
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
    return f"{first} {MORE}={len(parts)}".lstrip(), parts


def option_words(service: Service) -> dict[str, str]:
    """The options of a service as words."""
    return _words(service.options)


def _words(options: Mapping[str, Any]) -> dict[str, str]:
    # The name, which is the first option, comes last: of all, a reader without the set misses it least.
    return {
        key: _word(options[key])
        for key, default in zip(reversed(_OPTIONS), reversed(_DEFAULTS), strict=True)
        if options.get(key, default) != default
    }


def quoted(comment: str) -> str:
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
