"""Parsers of single values of the configuration file, which judge a value as it is written.

There is one for each kind of value (``tproxy.options``); the bounds are those that an option declares.

They read the nodes that YAML composes, never the objects that it would construct. YAML 1.1 constructs 83 from
``0123``, 1000 from ``1_000``, true from ``yes`` and a number from ``10.1``, and no network or address must
match by such an accident. A parser returns the value, or raises Unusable with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from tproxy import options
from tproxy.addresses import UNIX, as_ipv6, can_be_served, is_ipv4, refused, unix_fault
from tproxy.errors import BadName, quoted, to_ascii
from tproxy.model import PROTOCOLS
from tproxy.names import check_interface_name

STR, INT, FLOAT, BOOL, NULL, MERGE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "merge")
)
# Patterns are text that ``re`` compiles at the first use: compiling one takes up to two milliseconds, and
# most files need only the simple ones.
_DECIMAL = r"0|[1-9][0-9]*"
_SECONDS = r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,3})?"  # down to milliseconds: the map keeps no more
# The characters of a bridge's name (see ``model``), and those of a pattern.
BRIDGE_PATTERN = r"[A-Za-z0-9_.\-*?\[\]!]{1,64}"
# The last label must not look like a number: the resolver would take "10.1" or "0x7f.1" for an
# address, as inet_aton(3) does. Host names have no "_" by the standard, but container engines use it.
# This is a pattern of JavaScript too (``schema``).
HOST_NAME = (
    r"(?=.{1,253}$)([A-Za-z0-9_\-]{1,63}\.)*"
    r"(?!([0-9]+|0[xX][0-9a-fA-F]*)\.?$)[A-Za-z0-9_\-]{1,63}\.?"
)


class Unusable(Exception):
    """The reason why a value cannot be used. ``node`` is its place in the file, where the reason has one."""

    def __init__(self, reason: str, node: yaml.Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


def parse(kind: options.Kind, node: yaml.Node) -> object:
    """Return the value of this kind that a node has. Raises Unusable."""
    return _PARSERS[type(kind)](kind, node)


def _port(kind: options.Port, node: yaml.Node) -> int:
    return _whole(node, 1, 65535, "is not a port, 1 to 65535")


def _number(kind: options.Number, node: yaml.Node) -> int:
    text = written(node, INT, STR)
    if text in kind.words:
        return kind.words[text]
    words = "".join(f"{word}, or " for word in kind.words)
    unit = f"{kind.unit}, " if kind.unit else ""
    return _whole(node, kind.least, kind.most, f"is not {words}a number of {unit}{kind.least} to {kind.most}")


def _whole(node: yaml.Node, least: int, most: int, problem: str) -> int:
    text = written(node, INT, STR)
    # The length is compared first, because int() raises another error for some thousand digits.
    if len(text) > len(str(most)) or not re.fullmatch(_DECIMAL, text) or not least <= int(text) <= most:
        raise Unusable(problem)
    return int(text)


def _seconds(kind: options.Seconds, node: yaml.Node) -> float:
    text = written(node, INT, FLOAT, STR)
    if not re.fullmatch(_SECONDS, text) or not kind.least <= float(text) <= kind.most:
        raise Unusable(f"is not a time of {kind.least:g} to {kind.most:g} seconds")
    return float(text)


def _text(kind: options.Text, node: yaml.Node) -> str:
    text = written(node, STR)
    if not text or len(text) > kind.most or not text.isascii() or not text.isprintable():
        raise Unusable(f"is not a name of up to {kind.most} printable ASCII characters")
    return text


def _flag(kind: options.Flag, node: yaml.Node) -> bool:
    text = written(node, BOOL).lower()
    if text not in ("true", "false"):
        raise Unusable("is not true or false")
    return text == "true"


def _choice(kind: options.Choice, node: yaml.Node) -> object:
    text = written(node, INT, STR)
    if text not in kind.values:
        known = list(kind.values)
        digits = len(known) > 2 and all(map(str.isdecimal, known))  # 0, 1, 2 …
        raise Unusable(f"is not one of {f'{known[0]} to {known[-1]}' if digits else ', '.join(known)}")
    return kind.values[text]


def _hosts(kind: options.Hosts, node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        return (_host(node),)
    if not node.value:
        raise Unusable("is empty")
    if len(node.value) > kind.most:
        raise Unusable(f"has more than {kind.most} addresses")
    return tuple(dict.fromkeys(map(_host, node.value)))


def _host(node: yaml.Node) -> str:
    text = written(node, STR) or written(node, INT)
    if node.tag == INT and ":" not in text:  # YAML takes 2001:10:20 for a number, of base 60
        text = ""
    if text.startswith(UNIX):
        if fault := unix_fault(text):
            raise Unusable(fault, node)
        return text
    address = as_ipv6(text) if ":" in text else ""
    if not address and not is_ipv4(text) and not re.fullmatch(HOST_NAME, text):
        raise Unusable("is not an IP address or a host name", node)
    if reason := refused(address or text):
        raise Unusable(reason, node)
    return address or text


def _protocols(kind: options.Protocols, node: yaml.Node) -> tuple[str, ...]:
    listed = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found = [written(each, STR) for each in listed]
    if not found or not set(PROTOCOLS).issuperset(found):
        raise Unusable(f"is not {' or '.join(PROTOCOLS)}, or a list of these")
    return tuple(each for each in PROTOCOLS if each in found)


def _service_address(kind: options.ServiceAddress, node: yaml.Node) -> str:
    text = written(node, STR)
    if not can_be_served(text):
        raise Unusable("is not an IPv4 address that guests can use")
    return text


def _networks(kind: options.NetworkNames, node: yaml.Node) -> frozenset[str]:
    if isinstance(node, yaml.ScalarNode):
        _refuse_several(node, quotes_suffice=False)
        return frozenset({_network_name(node)} if node.value else ())
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_several(each, quotes_suffice=True)
        return frozenset(map(_network_name, node.value))
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


def _network(kind: options.NetworkName, node: yaml.Node) -> str:
    return _network_name(node)


def _network_name(node: yaml.Node) -> str:
    text = written(node, INT, STR)
    if not text or (node.tag == INT and not re.fullmatch(_DECIMAL, text)):
        raise Unusable("is not clearly a name or an id: put a name in quotes", node)
    return text


def _pattern(kind: options.BridgePattern, node: yaml.Node) -> str:
    text = written(node, INT, STR)
    if not re.fullmatch(BRIDGE_PATTERN, text):
        raise Unusable("is not a bridge's name, or a pattern with * ? [..] of names", node)
    return text


def _links(kind: options.LinkNames, node: yaml.Node) -> frozenset[str]:
    if isinstance(node, yaml.SequenceNode):
        return frozenset(map(_link, node.value))
    empty = isinstance(node, yaml.ScalarNode) and not node.value
    return frozenset() if empty else frozenset({_link(node)})


def _link(node: yaml.Node) -> str:
    try:
        return check_interface_name(written(node, INT, STR), "uplink")
    except BadName:
        raise Unusable("is not the name of a link", node) from None


def _one_link(kind: options.LinkName, node: yaml.Node) -> str:
    return _link(node)


def _written_as(kind: options.Written, node: yaml.Node) -> str:
    # Any scalar: YAML takes 52:54:00:12:34:56 for a number.
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    if not re.fullmatch(kind.pattern, text):
        raise Unusable(f"is not {kind.said.replace('`', '')}")
    return str(text)


def _words(kind: options.Words, node: yaml.Node) -> tuple[str, ...]:
    one = options.Written(kind.pattern, kind.said)
    listed = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return tuple(dict.fromkeys(_written_as(one, each) for each in listed))


def _domains(kind: options.Domains, node: yaml.Node) -> tuple[str, ...]:
    def one(each: yaml.Node) -> str:
        text = each.value if isinstance(each, yaml.ScalarNode) else ""
        if not re.fullmatch(HOST_NAME, text):
            raise Unusable("is not the name of a host", each)
        return str(text).lower()

    return tuple(_each(node, one))


def _ranges(kind: options.Ranges, node: yaml.Node) -> tuple[str, ...]:
    from ipaddress import ip_network  # few files have one

    def one(each: yaml.Node) -> str:
        try:
            return str(ip_network(each.value if isinstance(each, yaml.ScalarNode) else ""))
        except ValueError:
            raise Unusable("is not a range of addresses such as 10.1.0.0/16", each) from None

    return tuple(_each(node, one))


def _each(node: yaml.Node, parser: Callable[[yaml.Node], str]) -> list[str]:
    """Return the values of a list, or of a value alone."""
    return [*map(parser, node.value if isinstance(node, yaml.SequenceNode) else [node])]


def _moment(kind: options.Moment, node: yaml.Node) -> int:
    from datetime import datetime, timezone  # few files have one

    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    try:
        found = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        raise Unusable("is not a date such as 2027-01-31 or 2027-01-31T18:00:00Z") from None
    return max(int((found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()), 1)


_PARSERS: dict[type[options.Kind], Callable[[Any, yaml.Node], object]] = {
    options.Port: _port,
    options.Number: _number,
    options.Seconds: _seconds,
    options.Text: _text,
    options.Flag: _flag,
    options.Choice: _choice,
    options.Hosts: _hosts,
    options.Protocols: _protocols,
    options.ServiceAddress: _service_address,
    options.NetworkName: _network,
    options.NetworkNames: _networks,
    options.BridgePattern: _pattern,
    options.LinkNames: _links,
    options.LinkName: _one_link,
    options.Written: _written_as,
    options.Words: _words,
    options.Domains: _domains,
    options.Ranges: _ranges,
    options.Moment: _moment,
}


def written(node: yaml.Node, *tags: str) -> str:
    """Return a scalar as it is written when YAML gives it one of these tags; otherwise ""."""
    return node.value if isinstance(node, yaml.ScalarNode) and node.tag in tags else ""


def texts(node: yaml.Node) -> list[str]:
    """Return a scalar, or those of a list, as they are written."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [each.value for each in nodes if isinstance(each, yaml.ScalarNode)]


def line(at: Any) -> int:
    """Return the number of the line in which a node, or an event of the parser, starts."""
    return int(at.start_mark.line) + 1


def shown(node: yaml.Node) -> str:
    """Return a value for a message."""
    if isinstance(node, yaml.CollectionNode):
        return "(a list)" if isinstance(node, yaml.SequenceNode) else "(a mapping)"
    return quoted(node.value)
