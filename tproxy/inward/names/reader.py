"""Reads ``tproxy_zones`` from the configuration file. Pure but for the file.

Any fault means that nothing is used, since a zone that is left out would release its names. Each fault is one
line with file, line, key and value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import yaml

from tproxy.config import joined, merging, values
from tproxy.config.file import DOCUMENT, document, text_of
from tproxy.config.merging import Field
from tproxy.config.services import Config, Problem
from tproxy.config.suggestions import meant
from tproxy.config.values import Unusable
from tproxy.errors import BadName, ConfigError, to_ascii
from tproxy.inward.names import domain
from tproxy.inward.names.model import ANY, NAMESERVER, POWERDNS, RFC2136, TXT, Gateway, Server, Zone
from tproxy.options import Choice, Flag, Number, Text

KEY = "tproxy_zones"
MAX_NODES = 200_000  # as in ``config.reader``
_GATEWAY_NAME = r"[a-z0-9]([a-z0-9\-]{0,30}[a-z0-9])?"
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Parser = Callable[[yaml.Node], Any]


def load(path: str) -> tuple[Config, tuple[Zone, ...]]:
    """Return the configuration, and the zones of its file. Raises ConfigError with the first fault."""
    config, zones, problems = read(path)
    if problems:
        raise ConfigError(problems[0].at(path))
    return config, zones


def read(path: str) -> tuple[Config, tuple[Zone, ...], list[Problem]]:
    """As ``load``, with all faults of the zones. Raises ConfigError where the file is unusable as a whole."""
    return joined.load(path), *of_file(path)


def of_file(path: str) -> tuple[tuple[Zone, ...], list[Problem]]:
    """Return the zones of a file that ``config.joined`` can read, and of the host's document, and all faults.

    An entry of the file wins over one of the document for the same domain.
    """
    zones: list[Zone] = []
    problems: list[Problem] = []
    texts = [] if path == DOCUMENT else [("", text_of(path))]
    if (of_fleet := document()) is not None:
        texts.append((DOCUMENT, of_fleet))
    for origin, text in texts:
        if KEY not in text:  # most files have none, and composing one takes time
            continue
        found, faults = parse(text)
        problems += [each._replace(origin=origin) for each in faults]
        zones += [
            each._replace(origin=origin) for each in found if not any(_same(each, one) for one in zones)
        ]
    return tuple(zones), problems


def parse(text: str) -> tuple[tuple[Zone, ...], list[Problem]]:
    """Return the zones of this text, which ``config.reader`` has read, and all faults."""
    reading = _Reading(max(len(text), MAX_NODES))
    try:
        node = reading.find(yaml.compose(text, Loader=_LOADER))
    except (Unusable, yaml.YAMLError) as fault:
        raise ConfigError(f"not YAML: {to_ascii(fault)}") from None
    if node is None or node.tag == values.NULL:
        return (), []
    zones: list[Zone] = []
    if not isinstance(node, yaml.SequenceNode):
        return (), [Problem(values.line(node), f"{KEY} {values.shown(node)} is not a list")]
    for number, each in enumerate(node.value, 1):
        before = len(reading.problems)
        zone = reading.zone(f"{KEY}: entry {number}", each)
        if len(reading.problems) > before or zone is None:
            continue
        if twin := next((one for one in zones if _same(one, zone)), None):
            reading.fault(each, f"{KEY}: domain {zone.domain!a} is there already, in line {twin.line}")
        else:
            zones.append(zone)
    return tuple(zones), sorted(reading.problems, key=lambda each: each.line)


def _same(one: Zone, other: Zone) -> bool:
    """Whether two entries are for the same domain. Two owners may both wish for one: a proof decides."""
    contest = one.owner and other.owner and one.owner != other.owner
    return one.domain == other.domain and not contest


class _Reading:
    def __init__(self, most: int) -> None:
        self.problems: list[Problem] = []
        self._left = most

    def fault(self, node: yaml.Node, text: str) -> None:
        self.problems.append(Problem(values.line(node), text))

    def _counted(self, children: list[Any]) -> list[Any]:
        self._left -= len(children)
        if self._left < 0:
            raise ConfigError("too many aliases")
        return children

    def find(self, root: yaml.Node | None) -> yaml.Node | None:
        """Return the value of the key at the top level."""
        if not isinstance(root, yaml.MappingNode):
            return None
        for group in merging.groups(root, self._counted):
            for field in group:
                if field.key == KEY:
                    return field.node
        return None

    def zone(self, label: str, node: yaml.Node) -> Zone | None:
        """Return the zone of one entry; None with a fault."""
        said = self._mapping(label, node, _ZONE, ("domain",))
        if said is None:
            return None
        label = f"{KEY}: {said['domain']}"
        before = len(self.problems)
        gateways = [self._gateway(label, each) for each in self._counted(said.pop("gateways", []))]
        names = [each.name for each in gateways if each]
        for name in {each for each in names if names.count(each) > 1}:
            self.fault(node, f"{label}: gateways: name {name!a} is there twice")
        server = self._server(label, node, said)
        if len(self.problems) == before and (fault := _contradiction(server, said, names)):
            self.fault(node, f"{label}: {fault}")
        return Zone(values.line(node), gateways=tuple(filter(None, gateways)), server=server, **said)

    def _server(self, label: str, node: yaml.Node, said: dict[str, Any]) -> Server | None:
        api, update, key = (said.pop(each, "") for each in (POWERDNS, RFC2136, "key_file"))
        if api and update:
            self.fault(
                node, f"{label}: {POWERDNS} {api!a} and {RFC2136} {update!a}: only one can be the server"
            )
        if (api or update) and not key:
            self.fault(node, f"{label}: key_file is missing")
        if not api and not update:
            if key:
                self.fault(
                    node, f"{label}: key_file {key!a} is for {POWERDNS} or {RFC2136}, which are missing"
                )
            return None
        return Server(POWERDNS, api, key) if api else Server(RFC2136, update, key)

    def _gateway(self, label: str, node: yaml.Node) -> Gateway | None:
        label = f"{label}: gateways"
        said = self._mapping(label, node, _GATEWAY, ("name", "addr"))
        return None if said is None else Gateway(said["name"], said["addr"], said.get("nameservers", ()))

    def _mapping(
        self, label: str, node: yaml.Node, known: dict[str, Parser], needed: tuple[str, ...]
    ) -> dict[str, Any] | None:
        """Return the values of a mapping by key; None with a fault where it cannot be used."""
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, f"{label}: {values.shown(node)} is not a mapping of keys to values")
            return None
        fields: dict[str, Field] = {}
        before = len(self.problems)
        try:
            for group in merging.groups(node, self._counted):
                fields = self._own(label, group) | fields
        except Unusable as fault:
            self.fault(fault.node or node, f"{label}: {fault}")
        said: dict[str, Any] = {}
        for key, field in fields.items():
            if key not in known:
                name = f"key {values.shown(field.key_node)}{field.origin()}"
                hint = meant(field.key_node, known)
                self.fault(
                    field.key_node,
                    f"{label}: {name} is unknown" + (f" (did you mean {hint}?)" if hint else ""),
                )
            elif field.node.tag != values.NULL:
                try:
                    said[key] = known[key](field.node)
                except (Unusable, BadName) as fault:
                    at = getattr(fault, "node", None) or field.node
                    shown = (
                        f"{key} {values.shown(at)}{field.origin()} "
                        if isinstance(fault, Unusable)
                        else f"{key} "
                    )
                    self.fault(at, f"{label}: {shown}{fault}")
        if len(self.problems) == before:
            for key in needed:
                if key not in said:
                    self.fault(node, f"{label}: {key} is missing")
        return said if len(self.problems) == before else None

    def _own(self, label: str, group: list[Field]) -> dict[str, Field]:
        found: dict[str, Field] = {}
        for field in group:
            if field.key in found:
                self.fault(field.key_node, f"{label}: {field.key} {values.shown(field.node)} is there twice")
            found[field.key] = field
        return found


def _contradiction(server: Server | None, said: dict[str, Any], gateways: list[str]) -> str:
    if server is not None and not gateways:
        return "gateways is missing: which addresses do its names have?"
    if server is None and not said.get("owner"):
        return f"{POWERDNS} or {RFC2136} is missing; a domain without either needs an owner, who proves it"
    if server is None and said.get("dnssec") is not None:
        return "dnssec is for zones with a server"
    if server is not None and server.kind == RFC2136 and said.get("dnssec") is not None:
        return f"dnssec is for {POWERDNS}: any other server signs by its own configuration"
    if server is None and said.get("proof") == NAMESERVER:
        return "proof 'nameserver' is for zones with a server"
    return ""


def _list(node: yaml.Node) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise Unusable("is not a list")
    return list(node.value)


def _several(parser: Parser) -> Parser:
    def parse_all(node: yaml.Node) -> tuple[Any, ...]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            raise Unusable("is empty")
        return tuple(dict.fromkeys(map(parser, nodes)))

    return parse_all


def _domain(node: yaml.Node) -> str:
    return domain.normalised(_scalar(node))


def _scalar(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise Unusable("is not a text", node)
    return str(node.value)


def _address(node: yaml.Node) -> str:
    try:
        found = ipaddress.ip_address(_scalar(node))
    except ValueError:
        raise Unusable("is not an IP address", node) from None
    if (
        found.is_multicast
        or found.is_unspecified
        or found.is_link_local
        or found.is_loopback
        or str(found) == "255.255.255.255"
    ):
        raise Unusable("is no address that clients can reach", node)
    return str(found)


def _resolver(node: yaml.Node) -> str:
    try:
        return str(ipaddress.ip_address(_scalar(node)))
    except ValueError:
        raise Unusable("is not an IP address", node) from None


def _api(node: yaml.Node) -> str:
    text = _scalar(node).rstrip("/")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise Unusable("is not a URL") from None
    if parts.scheme not in ("http", "https") or not host or parts.path or parts.query or parts.username:
        raise Unusable("is not a URL such as http://127.0.0.1:8081")
    if parts.scheme == "http" and not (host in ("localhost", "::1") or host.startswith("127.")):
        raise Unusable("is not on this host, and would carry its key in the clear: https is needed")
    return text


def _update(node: yaml.Node) -> str:
    text = _scalar(node)
    host, port = text, "53"
    if match := re.fullmatch(r"\[(.+)\](?::(\d{1,5}))?|([^:]+)(?::(\d{1,5}))?", text):
        host, port = match[1] or match[3], match[2] or match[4] or "53"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise Unusable(
            "is not an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353"
        ) from None
    if not 1 <= int(port) <= 65535:
        raise Unusable("has no port, 1 to 65535")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _path(node: yaml.Node) -> str:
    text = _scalar(node)
    if not text.startswith("/") or not text.isprintable():
        raise Unusable("is not an absolute path")
    return text


def _gateway_name(node: yaml.Node) -> str:
    text = _scalar(node)
    if not re.fullmatch(_GATEWAY_NAME, text):
        raise Unusable("is not up to 32 small letters, digits and '-'")
    return text


def _of(kind: Any) -> Parser:
    return lambda node: values.parse(kind, node)


_ZONE: dict[str, Parser] = {
    "domain": _domain,
    "gateways": _list,
    POWERDNS: _api,
    RFC2136: _update,
    "key_file": _path,
    "owner": _of(Text(64)),
    "proof": _of(Choice({each: each for each in (ANY, TXT, NAMESERVER)})),
    "proof_grace": _of(Number(0, 31_536_000, "seconds")),
    "resolver": _resolver,
    "dnssec": _of(Flag()),
    "ttl": _of(Number(1, 86_400, "seconds")),
    "lease": _of(Number(5, 86_400, "seconds", words={"never": 0})),
}
_GATEWAY: dict[str, Parser] = {
    "name": _gateway_name,
    "addr": _several(_address),
    "nameservers": _several(_domain),
}
