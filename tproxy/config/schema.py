"""The JSON schema of the configuration file, made of the declarations: ``etc/tproxy.schema.json``.

Editors use it to complete keys and to mark mistakes. It judges what a YAML reader makes of the file, where
``0123`` is 83 already, and ``yes`` true. So `tproxy check` finds more. What the schema marks, `tproxy check`
reports too.
"""

from __future__ import annotations

import re
from typing import Any

from tproxy import options
from tproxy.addresses import MOST_PATH, SERVICE_ADDRESS, UNIX
from tproxy.config import keys, values
from tproxy.config.keys import Keys
from tproxy.model import PROTOCOLS
from tproxy.options import Declared

Json = dict[str, Any]

_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
# Not exactly those: `tproxy check` judges. None is link-local, multicast, or an IPv4 address in disguise.
_IPV6 = r"(?![fF][eE][89abAB]|[fF][fF]|::$|::[fF]{4}:)(?=.*:.*:)[0-9a-fA-F:.]{2,45}"
# Where the file has a number in quotes.
_DIGITS = "(0|[1-9][0-9]{0,%d})"
# Printable ASCII, without spaces and commas.
_UNIX = rf"{UNIX}/[!-+\-.-~]{{0,{MOST_PATH - 2}}}[!-+\-.0-~]"

_LINK: Json = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^((?!\.\.?$)[A-Za-z0-9_.\-]{1,15})$"},
    ]
}
_MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*"


def schema() -> Json:
    """Return the schema, of JSON Schema draft 7, which editors know."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The configuration file of tproxy",
        "type": ["object", "null"],
        **_keys(keys.FILE),
        "definitions": {
            "tproxy": {**_mapping(keys.ENTRY), "title": "A service"},
            "tproxy_bridges": {**_mapping(keys.BRIDGE), "title": "Bridges that the watcher brings up"},
            "tproxy_routes": {**_mapping(keys.ROUTE), "title": "A route from outside to a guest"},
            "tproxy_tunnels": {**_mapping(keys.TUNNEL), "title": "What nodes may offer, and to whom"},
        },
    }


def _mapping(known: Keys) -> Json:
    """The schema of an entry, which has no other keys, and has all that are required."""
    needed = [_having(key) for key, each in known.items() if each.option.required]
    if known is keys.ENTRY:
        needed.append({"anyOf": [_having("remote_port"), _only_unix()]})  # whole_entry
    return {"type": "object", **_keys(known), "additionalProperties": False, "allOf": needed}


def _having(key: str) -> Json:
    return {"anyOf": [{"required": [key]}, {"required": [f":{key}"]}]}


def _only_unix() -> Json:
    """An entry whose endpoints are UNIX sockets, and which names its service port."""
    socket = _matching(_UNIX)
    sockets = {"anyOf": [socket, {"type": "array", "items": socket}]}
    named = {"properties": {"remote_addr": sockets, ":remote_addr": sockets}}
    return {"allOf": [named, _having("service_port")]}


def _keys(known: Keys) -> Json:
    found = {key: _value(each) for key, each in known.items()}
    with_colon = {f"^:{re.escape(key)}$": {"$ref": f"{_place(known)}/{key}"} for key in found}
    return {"properties": found, "patternProperties": with_colon}


def _one_or_list(one: Json) -> Json:
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _place(known: Keys) -> str:
    if known is keys.FILE:
        return "#/properties"
    lists = {
        "tproxy": keys.ENTRY,
        "tproxy_bridges": keys.BRIDGE,
        "tproxy_routes": keys.ROUTE,
        "tproxy_tunnels": keys.TUNNEL,
    }
    return f"#/definitions/{next(name for name, each in lists.items() if each is known)}/properties"


def _value(declared: Declared) -> Json:
    option = declared.option
    known = _kind(option.kind)
    if not option.required:
        known = {"anyOf": [known, {"type": "null"}]}  # as if the key were missing
    found: Json = {"description": option.help.replace("`", ""), **known}
    if written := declared.default_as_written():
        found["default"] = _plain(written)
    return found


def _plain(written: str) -> Any:
    """A default as a YAML reader would give it."""
    if written in ("true", "false"):
        return written == "true"
    try:
        return int(written) if written.isdecimal() else float(written)
    except ValueError:
        return written


def _kind(kind: options.Kind) -> Json:
    match kind:
        case options.Port():
            return _whole(1, 65535)
        case options.Number():
            number = _whole(kind.least, kind.most)
            return {"anyOf": [*number["anyOf"], {"enum": list(kind.words)}]} if kind.words else number
        case options.Seconds():
            quoted = _DIGITS % (len(f"{kind.most:.0f}") - 1) + r"(\.[0-9]{1,3})?"
            number = {"type": "number", "minimum": kind.least, "maximum": kind.most}
            return {"anyOf": [number, _matching(quoted)]}
        case options.Text():
            return {"type": "string", "minLength": 1, "maxLength": kind.most, "pattern": "^[ -~]*$"}
        case options.Flag():
            return {"type": "boolean"}
        case options.Choice():
            digits = [int(each) for each in kind.values if each.isdecimal()]
            return {"enum": [*digits, *kind.values]}
        case options.Hosts():
            unusable = (
                rf"{re.escape(SERVICE_ADDRESS)}|0\.0\.0\.0|255\.255\.255\.255|(22[4-9]|23[0-9])\.[0-9.]*"
            )
            one = {
                "anyOf": [*map(_matching, (_IPV4, _IPV6, values.HOST_NAME, _UNIX))],
                "not": _matching(unusable),
            }
            return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": kind.most}]}
        case options.Protocols():
            protocol: Json = {"enum": list(PROTOCOLS)}
            return {"anyOf": [protocol, {"type": "array", "items": protocol, "minItems": 1}]}
        case options.ServiceAddress():
            return {**_matching(_IPV4), "not": _matching(r"(0|127|22[4-9]|2[34][0-9]|25[0-5])\..*")}
        case options.NetworkName():
            return _network(".+")
        case options.NetworkNames():
            # Several networks in one string are a mistake, and so are ids with spaces between them.
            one = _network(r"(?![0-9 ]* [0-9 ]*$)[^,;]*")
            return {"anyOf": [one, {"type": "array", "items": _network(".+")}]}
        case options.BridgePattern():
            return {"anyOf": [{"type": "integer", "minimum": 0}, _matching(values.BRIDGE_PATTERN)]}
        case options.LinkNames():
            return {"anyOf": [_LINK, {"const": ""}, {"type": "array", "items": _LINK}]}
        case options.LinkName():
            return _LINK
        case options.Written():
            return {"anyOf": [_matching(kind.pattern), {"type": "integer"}]}  # an id of digits, a MAC
        case options.Words():
            one = {"anyOf": [_matching(kind.pattern), {"type": "integer"}]}
            return {"anyOf": [one, {"type": "array", "items": one}]}
        case options.Domains():
            return _one_or_list(_matching(values.HOST_NAME))
        case options.Ranges():
            return _one_or_list(_matching(r"[0-9A-Fa-f.:]{2,45}(/[0-9]{1,3})?"))
        case options.Moment():
            return {"anyOf": [_matching(_MOMENT), {"type": "integer"}]}
        case options.Entries():
            return {"type": "array", "items": {"$ref": f"#/definitions/{kind.of}"}}


def _whole(least: int, most: int) -> Json:
    number = {"type": "integer", "minimum": least, "maximum": most}
    return {"anyOf": [number, _matching(_DIGITS % (len(str(most)) - 1))]}


def _network(pattern: str) -> Json:
    return {"anyOf": [{"type": "integer", "minimum": 0}, _matching(pattern)]}


def _matching(pattern: str) -> Json:
    return {"type": "string", "pattern": f"^({pattern})$"}
