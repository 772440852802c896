"""The configuration file: YAML to services, with what was ignored and why.

Values are judged as they are written, on the nodes that YAML composes, never as the objects it
would construct: YAML 1.1 reads ``0123`` as 83, ``1_000`` as 1000, ``yes`` as true and ``10.1`` as a
number, and no network or address must match by such an accident. Besides, nothing foreign in the
file is constructed, an alias is one more reference to the same node, and each node knows its line.

A fault of the file is a ConfigError, a fault of one entry a warning. Both are one line of ASCII
whatever the file holds, so that no value can forge a line of the log.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from tproxy.errors import BadName, ConfigError
from tproxy.model import (
    DEFAULT_CONNECT_TIMEOUT,
    SERVICE_ADDRESS,
    Endpoint,
    Network,
    Service,
    check_interface_name,
)

SEARCH_PATH = ("/var/tmp/one/etc/vnm/OpenNebulaNetwork.conf", "/etc/tproxy/tproxy.yaml")

MAX_BYTES = 1 << 20  # arbitrary: 100 entries are 10 KB, so what is larger is another kind of file
MAX_DEPTH = 50  # libyaml's composer recurses on the C stack: some 10,000 levels end the process
MAX_CONNECT_TIMEOUT = 300  # seconds; arbitrary, a guest's own connect() gives up after two minutes
# Name and time-out share the comment of a map element, 127 bytes, and a character of the name can
# take three. What does not fit would be missing from the map.
MAX_NAME = 32
# Seconds that a watched bridge stays up without guests: longer than a guest takes to be moved or
# started anew, which need not cost its network the services.
DEFAULT_WATCH_GRACE = 30.0
MAX_WATCH_GRACE = 86400  # seconds; arbitrary
MAX_SHOWN = 80  # characters of a value in a message: enough to find it

_LOG_LEVELS = {"0": logging.ERROR, "1": logging.WARNING, "2": logging.INFO, "3": logging.DEBUG}
_FILE_KEYS = ("tproxy", "tproxy_debug_level", "tproxy_watch", "tproxy_watch_grace", "tproxy_bridges")
_REQUIRED = ("remote_addr", "remote_port")

_STR, _INT, _FLOAT, _BOOL, _NULL, _MERGE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "merge")
)
# Patterns are text, compiled when one is first used: that takes up to two milliseconds, and most
# files need the simple ones only.
_MULTICAST = r"(22[4-9]|23[0-9])\.[0-9.]+"  # 224.0.0.0/4
_DECIMAL = r"0|[1-9][0-9]*"
_TIME = r"(0|[1-9][0-9]*)(\.[0-9]{1,3})?"
_BRIDGE_PATTERN = r"[A-Za-z0-9_.\-*?\[\]!]{1,64}"  # a name's characters, see model, and a pattern's
_SECONDS = r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?"  # milliseconds: the map keeps no more
# The last label must not look like a number: the resolver would take "10.1" or "0x7f.1" for an
# address, as inet_aton(3) does. "_" is not for host names, but container engines use it in them.
_HOST_NAME = r"(?ai)(?=.{1,253}\Z)([a-z0-9_-]{1,63}\.)*(?!([0-9]+|0x[0-9a-f]*)\.?\Z)[a-z0-9_-]{1,63}\.?"

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")
Resolver = Callable[[str], list[str]]
Parsers = Mapping[str, Callable[[yaml.Node], object]]


class Entry(NamedTuple):
    """One valid entry of the file; ``remote_addr`` can still be a name that does not resolve."""

    number: int
    line: int
    service_port: int
    remote_addr: str
    remote_port: int
    networks: frozenset[str] = frozenset()  # names or ids; empty is every network
    name: str = ""
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT

    def applies_to(self, network: Network) -> bool:
        return not self.networks or not self.networks.isdisjoint((network.name, network.id))


class WatchedBridge(NamedTuple):
    """Bridges that the watcher brings up for their guests; ``pattern`` is as in a shell."""

    pattern: str
    network: Network = Network()
    uplinks: frozenset[str] = frozenset()


class Config(NamedTuple):
    """What a file says, and warnings about what it says in vain."""

    path: Path
    log_level: int
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]
    bridges: tuple[WatchedBridge, ...] = ()
    watch: bool = False  # whether the daemon keeps a watcher
    watch_grace: float = DEFAULT_WATCH_GRACE

    @property
    def watch_file(self) -> str:
        """The file, if it wants the daemon to keep a watcher; otherwise empty."""
        return os.path.abspath(self.path) if self.watch else ""


class _Unusable(Exception):
    """Why a value cannot be used; ``node`` is where it stands in the file."""

    def __init__(self, reason: str, node: yaml.Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


def search(explicit: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to use; None when there is none.

    A file that was asked for is never replaced by another one that happens to be there.
    """
    for named, by in ((explicit, "--config"), (environ.get("TPROXY_CONFIG") or None, "$TPROXY_CONFIG")):
        if named is not None:
            if not os.path.lexists(named):
                raise ConfigError(f"{_shown(named)}: no such file (from {by})")
            return Path(named)
    return next((Path(each) for each in SEARCH_PATH if os.path.lexists(each)), None)


def load(path: Path) -> Config:
    """Read the file; raise ConfigError when it cannot be used as a whole."""
    return _Reader(path).config()


def resolve_ipv4(name: str) -> list[str]:
    """The IPv4 addresses of a host name; raises OSError when there is none."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]


def services_for(
    config: Config, network: Network, resolve: Resolver = resolve_ipv4
) -> tuple[dict[int, Service], list[str]]:
    """What a network gets, by service port, and warnings about entries for it that are left out.

    The first entry of a port wins, among those that apply to the network and can be used.
    """
    services: dict[int, Service] = {}
    winners: dict[int, Entry] = {}
    warnings: list[str] = []

    @cache  # failures too: ten ports of one host must not wait ten times for a dead name server
    def address_of(remote_addr: str) -> str | _Unusable:
        try:
            return _resolved(remote_addr, resolve)
        except _Unusable as problem:
            return problem

    for entry in config.entries:
        if not entry.applies_to(network):
            continue
        place = f"{_place(config.path, entry.line)}: entry {entry.number}"
        port = entry.service_port
        if port in winners:
            taken = f"entry {winners[port].number} (line {winners[port].line}) has it on this network"
            warnings.append(f"{place}: service_port {port}: {taken}: entry ignored")
            continue
        address = address_of(entry.remote_addr)
        if isinstance(address, _Unusable):
            warnings.append(f"{place}: {address}: entry skipped")
            continue
        winners[port] = entry
        endpoint = Endpoint(address, entry.remote_port)
        services[port] = Service(port, endpoint, entry.name, entry.connect_timeout)
    return services, warnings


def line_of(path: Path, warning: str) -> int:
    """The line of the file that a warning is about."""
    return int(warning.removeprefix(_place(path, None) + ":").partition(":")[0])


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warnings: list[str] = []
        self._text = ""
        self._visits = 0

    def config(self) -> Config:
        self._text = self._read()
        ours = self._top_level(self._compose())
        level = self._log_level(ours.get("tproxy_debug_level"))
        entries = [self._entry(number, node) for number, node in enumerate(self._list(ours, "tproxy"), 1)]
        bridges = [
            self._bridge(number, node) for number, node in enumerate(self._list(ours, "tproxy_bridges"), 1)
        ]
        watch = self._option(ours, "tproxy_watch", _flag, default=False)
        grace = self._option(ours, "tproxy_watch_grace", _grace, default=DEFAULT_WATCH_GRACE)
        return Config(
            self._path,
            level,
            tuple(filter(None, entries)),
            tuple(self._warnings),
            tuple(filter(None, bridges)),
            watch,
            grace,
        )

    def _error(self, reason: str, line: int | None = None) -> ConfigError:
        return ConfigError(f"{_place(self._path, line)}: {reason}")

    def _warn(self, node: yaml.Node, text: str) -> None:
        self._warnings.append(f"{_place(self._path, _line(node))}: {text}")

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise self._error(error.strerror or type(error).__name__) from error
        if len(data) > MAX_BYTES:
            raise self._error(f"larger than {MAX_BYTES} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._error("not UTF-8", data.count(b"\n", 0, error.start) + 1) from error

    def _compose(self) -> yaml.Node | None:
        depth = 0
        try:
            for event in yaml.parse(self._text, Loader=_LOADER):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:
                    raise self._error(f"nested deeper than {MAX_DEPTH} levels", _line(event))
            return yaml.compose(self._text, Loader=_LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unknown reason"
            line = mark.line + 1 if mark else None
            raise self._error(f"not YAML: {_ascii(reason)}", line) from error

    def _top_level(self, root: yaml.Node | None) -> dict[str, yaml.Node]:
        if root is None or root.tag == _NULL:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise self._error(f"{_shown(root)} is not a mapping of keys to values", _line(root))
        ours: dict[str, yaml.Node] = {}
        for key, _, value in self._pairs(root):
            if key in ours:
                # With and without a colon, or twice: half of what somebody wrote would be off.
                raise self._error(f"{key} is there already, in line {_line(ours[key])}", _line(value))
            if key in _FILE_KEYS:
                ours[key] = value
        return ours

    def _log_level(self, node: yaml.Node | None) -> int:
        if node is None or node.tag == _NULL:
            return logging.INFO
        level = _LOG_LEVELS.get(_written(node, _INT, _STR))
        if level is None:
            self._warn(node, f"tproxy_debug_level {_shown(node)} is not one of 0 to 3: 2 is used")
            return logging.INFO
        return level

    def _option(
        self, ours: Mapping[str, yaml.Node], key: str, parser: Callable[[yaml.Node], T], *, default: T
    ) -> T:
        node = ours.get(key)
        if node is None or node.tag == _NULL:
            return default
        try:
            return parser(node)
        except _Unusable as problem:
            self._warn(node, f"{key} {_shown(node)} {problem}: ignored")
            return default

    def _list(self, ours: Mapping[str, yaml.Node], key: str) -> list[yaml.Node]:
        node = ours.get(key)
        if node is None or node.tag == _NULL:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(f"{key} is not a list", _line(node))
        return self._counted(node.value)

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """The key without its colon, "" where it is no string; the key's node; the value's node."""
        for key, value in self._counted(node.value):
            yield _written(key, _STR).removeprefix(":"), key, value

    def _counted(self, children: list[T]) -> list[T]:
        # Each node takes a character or more, so that only aliases can make more nodes than that:
        # a few lines of them can stand for thousands of millions.
        self._visits += len(children)
        if self._visits > len(self._text):
            raise self._error("too many aliases")
        return children

    def _entry(self, number: int, node: yaml.Node) -> Entry | None:
        values = self._checked(f"entry {number}", node, _PARSERS, _REQUIRED)
        if values is None:
            return None
        values.setdefault("service_port", values["remote_port"])
        return Entry(number, _line(node), **values)

    def _bridge(self, number: int, node: yaml.Node) -> WatchedBridge | None:
        values = self._checked(f"tproxy_bridges: entry {number}", node, _BRIDGE_PARSERS, ("bridge",))
        if values is None:
            return None
        network = Network(values.get("network", ""), values.get("network_id", ""))
        return WatchedBridge(values["bridge"], network, values.get("uplinks", frozenset()))

    def _checked(
        self, label: str, node: yaml.Node, parsers: Parsers, required: tuple[str, ...]
    ) -> dict[str, Any] | None:
        """What an entry says; None, and a warning for all that is wrong, when it cannot be used."""
        if isinstance(node, yaml.MappingNode):
            values, faults = self._values(label, node, parsers, required)
        else:
            values, faults = {}, [_Unusable(f"{_shown(node)} is not a mapping of keys to values", node)]
        for fault in faults:
            self._warn(fault.node or node, f"{label}: {fault}: entry skipped")
        return None if faults else values

    def _values(
        self, label: str, entry: yaml.MappingNode, parsers: Parsers, required: tuple[str, ...]
    ) -> tuple[dict[str, Any], list[_Unusable]]:
        """What an entry says, and all that is wrong with it: an operator mends it in one go."""
        nodes: dict[str, yaml.Node] = {}
        faults: list[_Unusable] = []
        for key, key_node, node in self._pairs(entry):
            if key_node.tag == _MERGE:
                # Not merely ignored: without what it brings, the entry could apply too widely.
                faults.append(_Unusable("'<<' (merge) is not supported", key_node))
                continue
            if key not in parsers:
                self._warn(key_node, f"{label}: key {_shown(key_node)} is unknown and ignored")
                continue
            if key in nodes:
                self._warn(key_node, f"{label}: {key} is there twice: {_shown(node)} is used")
            nodes[key] = node
        values: dict[str, Any] = {}
        for key, node in nodes.items():
            if node.tag != _NULL:
                try:
                    values[key] = self._value(key, node, parsers[key])
                except _Unusable as fault:
                    faults.append(fault)
        for key in required:
            if key not in nodes or nodes[key].tag == _NULL:
                faults.append(_Unusable(f"{key} is missing", entry))
        return values, faults

    def _value(self, key: str, node: yaml.Node, parser: Callable[[yaml.Node], object]) -> Any:
        if isinstance(node, yaml.SequenceNode):
            self._counted(node.value)
        try:
            return parser(node)
        except _Unusable as problem:
            raise _Unusable(f"{key} {_shown(problem.node or node)} {problem}", node) from None


# Values


def _port(node: yaml.Node) -> int:
    text = _written(node, _INT, _STR)
    # The length first: int() refuses some thousand digits with another error.
    if len(text) > 5 or not re.fullmatch(_DECIMAL, text) or not 1 <= int(text) <= 65535:
        raise _Unusable("is not a port, 1 to 65535")
    return int(text)


def _remote_addr(node: yaml.Node) -> str:
    text = _written(node, _STR)
    if not _is_ipv4(text) and not re.fullmatch(_HOST_NAME, text):
        raise _Unusable("is not an IPv4 address or a host name")
    if reason := _refused(text):
        raise _Unusable(reason)
    return text


def _networks(node: yaml.Node) -> frozenset[str]:
    if isinstance(node, yaml.ScalarNode):
        return frozenset({_network(node)} if node.value else ())
    if isinstance(node, yaml.SequenceNode):
        return frozenset(map(_network, node.value))
    raise _Unusable("is not a list of names or ids")


def _network(node: yaml.Node) -> str:
    text = _written(node, _INT, _STR)
    if not text or (node.tag == _INT and not re.fullmatch(_DECIMAL, text)):
        raise _Unusable("is not clearly a name or an id: put a name in quotes", node)
    return text


def _name(node: yaml.Node) -> str:
    text = _written(node, _STR)
    if not text or len(text) > MAX_NAME or not text.isascii() or not text.isprintable():
        raise _Unusable(f"is not a name of up to {MAX_NAME} printable ASCII characters")
    return text


def _connect_timeout(node: yaml.Node) -> float:
    text = _written(node, _INT, _FLOAT, _STR)
    if not re.fullmatch(_SECONDS, text) or not 0 < float(text) <= MAX_CONNECT_TIMEOUT:
        raise _Unusable(f"is not a time of 0.001 to {MAX_CONNECT_TIMEOUT} seconds")
    return float(text)


def _flag(node: yaml.Node) -> bool:
    text = _written(node, _BOOL).lower()
    if text not in ("true", "false"):
        raise _Unusable("is not true or false")
    return text == "true"


def _grace(node: yaml.Node) -> float:
    text = _written(node, _INT, _FLOAT, _STR)
    if len(text) > 9 or not re.fullmatch(_TIME, text) or float(text) > MAX_WATCH_GRACE:
        raise _Unusable(f"is not a time of 0 to {MAX_WATCH_GRACE} seconds")
    return float(text)


def _pattern(node: yaml.Node) -> str:
    text = _written(node, _INT, _STR)
    if not re.fullmatch(_BRIDGE_PATTERN, text):
        raise _Unusable("is not a bridge's name, or a pattern with * ? [..] of names", node)
    return text


def _uplinks(node: yaml.Node) -> frozenset[str]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node] if node.value else []
    return frozenset(map(_uplink, nodes))


def _uplink(node: yaml.Node) -> str:
    try:
        return check_interface_name(_written(node, _INT, _STR), "uplink")
    except BadName:
        raise _Unusable("is not the name of a link", node) from None


_PARSERS: Parsers = {
    "service_port": _port,
    "remote_addr": _remote_addr,
    "remote_port": _port,
    "networks": _networks,
    "name": _name,
    "connect_timeout": _connect_timeout,
}
_BRIDGE_PARSERS: Parsers = {
    "bridge": _pattern,
    "network": _network,
    "network_id": _network,
    "uplinks": _uplinks,
}


# Addresses


def _resolved(remote_addr: str, resolve: Resolver) -> str:
    if _is_ipv4(remote_addr):
        return remote_addr
    try:
        found = resolve(remote_addr)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _Unusable(f"remote_addr {_shown(remote_addr)} does not resolve: {_ascii(reason)}") from error
    usable = [address for address in found if _is_ipv4(address) and not _refused(address)]
    if not usable:
        raise _Unusable(f"remote_addr {_shown(remote_addr)} resolves to no address that can be used")
    # Name servers rotate their answers. The lowest is the same at each hook, so that starting a VM
    # does not move the services of the others.
    return min(usable, key=socket.inet_aton)


def _is_ipv4(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def _refused(address: str) -> str:
    """Why this cannot be an endpoint; "" when it can, or is a name."""
    if address == SERVICE_ADDRESS:
        return "is the service address itself: a loop"
    if address in ("0.0.0.0", "255.255.255.255") or re.fullmatch(_MULTICAST, address):
        return "is not the address of one host"
    return ""


# Texts


def _place(path: Path, line: int | None) -> str:
    return _ascii(path) + (f":{line}" if line else "")


def _written(node: yaml.Node, *tags: str) -> str:
    """A scalar as it is written, if YAML takes it for one of these; "" otherwise."""
    return node.value if isinstance(node, yaml.ScalarNode) and node.tag in tags else ""


def _line(at: Any) -> int:
    """The line in which a node or an event of the parser starts."""
    return int(at.start_mark.line) + 1


def _shown(value: yaml.Node | str) -> str:
    """A value for a message: quoted, one line of ASCII, not too long."""
    if isinstance(value, yaml.CollectionNode):
        return "(a list)" if isinstance(value, yaml.SequenceNode) else "(a mapping)"
    text = ascii(value if isinstance(value, str) else value.value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _ascii(text: object) -> str:
    """Unquoted text for a message, in one line of ASCII."""
    return str(text).encode("unicode_escape").decode("ascii")
