"""Parsers of single values of the configuration file, which judge a value as it is written.

They read the nodes that YAML composes, never the objects that it would construct. YAML 1.1 constructs 83 from
``0123``, 1000 from ``1_000``, true from ``yes`` and a number from ``10.1``, and no network or address must
match by such an accident. A parser returns the value, or raises Unusable with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from tproxy.errors import BadName, quoted, to_ascii
from tproxy.model import check_interface_name, is_ipv4, refused

MAX_CONNECT_TIMEOUT = 300  # seconds; arbitrary, a guest's own connect() gives up after two minutes
# Characters. Name and time-out share the comment of a map element, 127 bytes, and a character of the name can
# take three bytes. A longer name would be missing from the map.
MAX_NAME = 32
MAX_WATCH_GRACE = 86400  # seconds; arbitrary
MAX_WORKERS = 64  # processes; arbitrary, far more than a hypervisor can spare cores for them

STR, INT, FLOAT, BOOL, NULL, MERGE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "merge")
)
# Patterns are text that ``re`` compiles at the first use: compiling one takes up to two milliseconds, and
# most files need only the simple ones.
_DECIMAL = r"0|[1-9][0-9]*"
_TIME = r"(0|[1-9][0-9]*)(\.[0-9]{1,3})?"
# The characters of a bridge's name (see ``model``), and those of a pattern.
_BRIDGE_PATTERN = r"[A-Za-z0-9_.\-*?\[\]!]{1,64}"
_SECONDS = r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?"  # down to milliseconds: the map keeps no more
# The last label must not look like a number: the resolver would take "10.1" or "0x7f.1" for an
# address, as inet_aton(3) does. Host names have no "_" by the standard, but container engines use it.
_HOST_NAME = r"(?ai)(?=.{1,253}\Z)([a-z0-9_-]{1,63}\.)*(?!([0-9]+|0x[0-9a-f]*)\.?\Z)[a-z0-9_-]{1,63}\.?"

Parsers = Mapping[str, Callable[[yaml.Node], object]]


class Unusable(Exception):
    """The reason why a value cannot be used. ``node`` is its place in the file, where the reason has one."""

    def __init__(self, reason: str, node: yaml.Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


def _port(node: yaml.Node) -> int:
    text = written(node, INT, STR)
    # The length is compared first, because int() raises another error for some thousand digits.
    if len(text) > 5 or not re.fullmatch(_DECIMAL, text) or not 1 <= int(text) <= 65535:
        raise Unusable("is not a port, 1 to 65535")
    return int(text)


def _remote_addr(node: yaml.Node) -> str:
    text = written(node, STR)
    if not is_ipv4(text) and not re.fullmatch(_HOST_NAME, text):
        raise Unusable("is not an IPv4 address or a host name")
    if reason := refused(text):
        raise Unusable(reason)
    return text


def _networks(node: yaml.Node) -> frozenset[str]:
    if isinstance(node, yaml.ScalarNode):
        _refuse_several(node, quotes_suffice=False)
        return frozenset({_network(node)} if node.value else ())
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_several(each, quotes_suffice=True)
        return frozenset(map(_network, node.value))
    raise Unusable("is not a list of names or ids")


def _refuse_several(node: yaml.Node, *, quotes_suffice: bool) -> None:
    """Raise Unusable for several networks that are written as one string: no network has that name.

    A name that really holds a comma can be written in quotes in a list.
    """
    if quotes_suffice and isinstance(node, yaml.ScalarNode) and node.style in ("'", '"'):
        return
    text = written(node, STR)
    several = text.replace(";", ",").split(",")
    if len(several) == 1 and text.replace(" ", "").isdecimal():
        several = text.split()  # ids; a name can hold spaces
    if len(several) > 1:
        items = ", ".join(filter(None, map(str.strip, several)))
        raise Unusable(f"is one string: write [{to_ascii(items)}]", node)


def _network(node: yaml.Node) -> str:
    text = written(node, INT, STR)
    if not text or (node.tag == INT and not re.fullmatch(_DECIMAL, text)):
        raise Unusable("is not clearly a name or an id: put a name in quotes", node)
    return text


def _name(node: yaml.Node) -> str:
    text = written(node, STR)
    if not text or len(text) > MAX_NAME or not text.isascii() or not text.isprintable():
        raise Unusable(f"is not a name of up to {MAX_NAME} printable ASCII characters")
    return text


def _connect_timeout(node: yaml.Node) -> float:
    text = written(node, INT, FLOAT, STR)
    if not re.fullmatch(_SECONDS, text) or not 0 < float(text) <= MAX_CONNECT_TIMEOUT:
        raise Unusable(f"is not a time of 0.001 to {MAX_CONNECT_TIMEOUT} seconds")
    return float(text)


def flag(node: yaml.Node) -> bool:
    """Return a boolean that is written as true or false."""
    text = written(node, BOOL).lower()
    if text not in ("true", "false"):
        raise Unusable("is not true or false")
    return text == "true"


def workers(node: yaml.Node) -> int:
    """Return a number of workers; 0 for ``auto``."""
    text = written(node, INT, STR)
    if text == "auto":
        return 0
    if len(text) > 2 or not re.fullmatch(_DECIMAL, text) or not 1 <= int(text) <= MAX_WORKERS:
        raise Unusable(f"is not auto, or a number of 1 to {MAX_WORKERS}")
    return int(text)


def grace(node: yaml.Node) -> float:
    """Return a grace time in seconds."""
    text = written(node, INT, FLOAT, STR)
    if len(text) > 9 or not re.fullmatch(_TIME, text) or float(text) > MAX_WATCH_GRACE:
        raise Unusable(f"is not a time of 0 to {MAX_WATCH_GRACE} seconds")
    return float(text)


def _pattern(node: yaml.Node) -> str:
    text = written(node, INT, STR)
    if not re.fullmatch(_BRIDGE_PATTERN, text):
        raise Unusable("is not a bridge's name, or a pattern with * ? [..] of names", node)
    return text


def _uplinks(node: yaml.Node) -> frozenset[str]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node] if node.value else []
    return frozenset(map(_uplink, nodes))


def _uplink(node: yaml.Node) -> str:
    try:
        return check_interface_name(written(node, INT, STR), "uplink")
    except BadName:
        raise Unusable("is not the name of a link", node) from None


ENTRY: Parsers = {
    "service_port": _port,
    "remote_addr": _remote_addr,
    "remote_port": _port,
    "networks": _networks,
    "name": _name,
    "connect_timeout": _connect_timeout,
}
BRIDGE: Parsers = {
    "bridge": _pattern,
    "network": _network,
    "network_id": _network,
    "uplinks": _uplinks,
}


def written(node: yaml.Node, *tags: str) -> str:
    """Return a scalar as it is written when YAML gives it one of these tags; otherwise ""."""
    return node.value if isinstance(node, yaml.ScalarNode) and node.tag in tags else ""


def line(at: Any) -> int:
    """Return the number of the line in which a node, or an event of the parser, starts."""
    return int(at.start_mark.line) + 1


def shown(node: yaml.Node) -> str:
    """Return a value for a message."""
    if isinstance(node, yaml.CollectionNode):
        return "(a list)" if isinstance(node, yaml.SequenceNode) else "(a mapping)"
    return quoted(node.value)
