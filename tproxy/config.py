"""The configuration file: YAML to services, with what was ignored and why.

Values are judged as they were written, on the nodes that YAML composes, never as the objects it
would construct: YAML 1.1 reads ``0123`` as 83, ``1_000`` as 1000, ``yes`` as true and ``10.1`` as a
number, and a network or an address must not match by such an accident. Nothing foreign in the file
is constructed at all, an alias is one more reference to the same node, and each node knows its line.

A fault of the file is a ConfigError, a fault of one entry a warning. Both are one line of ASCII
whatever the file holds, so that no value can forge a line of the log.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import yaml

from tproxy.errors import ConfigError
from tproxy.model import DEFAULT_CONNECT_TIMEOUT, SERVICE_ADDRESS, Endpoint, Network, Service

SEARCH_PATH = ("/var/tmp/one/etc/vnm/OpenNebulaNetwork.conf", "/etc/tproxy/tproxy.yaml")

MAX_BYTES = 1 << 20  # arbitrary; 100 entries are 10 KB, and more than this is another kind of file
MAX_DEPTH = 50  # libyaml's composer recurses on the C stack: some 10,000 levels end the process
MAX_CONNECT_TIMEOUT = 300.0  # seconds; a guest's own TCP gives up after two minutes
# Name and time-out have to fit the comment of a map element, 127 bytes, when each character of the
# name is escaped to three. What does not fit would be missing from the map, and a change each time.
MAX_NAME = 32
MAX_SHOWN = 80  # characters of a value in a message: enough to find it

_LOG_LEVELS = {"0": logging.ERROR, "1": logging.WARNING, "2": logging.INFO, "3": logging.DEBUG}
_FILE_KEYS = ("tproxy", "tproxy_debug_level")
_ENTRY_KEYS = ("service_port", "remote_addr", "remote_port", "networks", "name", "connect_timeout")

_STR, _INT, _FLOAT, _NULL, _MERGE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "null", "merge")
)
_DECIMAL = re.compile(r"0|[1-9][0-9]*", re.ASCII)
# Milliseconds are the finest that the map keeps.
_SECONDS = re.compile(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?", re.ASCII)
# The last label must not look like a number: the resolver would take "10.1" and "0x7f.1" for
# addresses, as inet_aton(3) does. "_" is no letter of a host name, yet common in container names.
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_-]{1,63}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)\.?\Z)[a-z0-9_-]{1,63}\.?",
    re.ASCII | re.IGNORECASE,
)

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")
Resolver = Callable[[str], list[str]]


@dataclass(frozen=True)
class Entry:
    """One valid entry of the file. ``remote_addr`` can still be a name that does not resolve."""

    number: int
    line: int
    service_port: int
    remote_addr: str
    remote_port: int
    networks: frozenset[str]  # names or ids; empty is every network
    name: str
    connect_timeout: float

    def applies_to(self, network: Network) -> bool:
        return not self.networks or not self.networks.isdisjoint((network.name, network.id))


@dataclass(frozen=True)
class Config:
    """What a file says, and the warnings about what it says in vain."""

    path: Path
    log_level: int
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]


def search(explicit: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to use; None when there is none.

    A file that was asked for by name is never replaced by another one.
    """
    for named, by in ((explicit, "--config"), (environ.get("TPROXY_CONFIG") or None, "$TPROXY_CONFIG")):
        if named is not None:
            if not os.path.lexists(named):
                raise ConfigError(f"{_ascii(named)}: no such file (named by {by})")
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
    """The services that a network gets, by port, and warnings about its entries that are left out.

    The first entry of a port wins, among those that apply to the network and can be used.
    """
    services: dict[int, Service] = {}
    winners: dict[int, Entry] = {}
    warnings: list[str] = []

    @cache  # failures too: ten ports of one host must not wait ten times for a dead name server
    def address_of(remote_addr: str) -> str | _Unusable:
        try:
            return _address(remote_addr, resolve)
        except _Unusable as problem:
            return problem

    for entry in config.entries:
        if not entry.applies_to(network):
            continue
        place = f"{_ascii(config.path)}:{entry.line}: entry {entry.number}"
        port, winner = entry.service_port, winners.get(entry.service_port)
        if winner is not None:
            taken = f"service_port {port} is taken by entry {winner.number} of line {winner.line}"
            warnings.append(f"{place}: {taken}: entry ignored")
            continue
        address = address_of(entry.remote_addr)
        if isinstance(address, _Unusable):
            warnings.append(f"{place}: {address}: entry skipped")
            continue
        winners[port] = entry
        services[port] = Service(port, Endpoint(address, entry.remote_port), entry.name, entry.connect_timeout)
    return services, warnings


class _Unusable(Exception):
    """A value that cannot be used, and why; ``node`` is where it stands in the file."""

    def __init__(self, reason: str, node: yaml.Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warnings: list[str] = []
        self._text = self._read()
        self._visits = 0

    def config(self) -> Config:
        ours = self._top_level()
        level = self._log_level(ours.get("tproxy_debug_level"))
        entries = [self._entry(number, node) for number, node in enumerate(self._listed(ours.get("tproxy")), 1)]
        return Config(self._path, level, tuple(filter(None, entries)), tuple(self._warnings))

    def _place(self, line: int | None) -> str:
        return _ascii(self._path) if line is None else f"{_ascii(self._path)}:{line}"

    def _error(self, reason: str, line: int | None = None) -> ConfigError:
        return ConfigError(f"{self._place(line)}: {reason}")

    def _warn(self, node: yaml.Node, text: str) -> None:
        self._warnings.append(f"{self._place(_line(node))}: {text}")

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise self._error(error.strerror or "cannot be read") from error
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
                    raise self._error(f"nested deeper than {MAX_DEPTH} levels", event.start_mark.line + 1)
            return yaml.compose(self._text, Loader=_LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unknown reason"
            raise self._error(f"not YAML: {_ascii(reason)}", mark and mark.line + 1) from error

    def _top_level(self) -> dict[str, yaml.Node]:
        root = self._compose()
        if root is None or root.tag == _NULL:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise self._error("not a mapping of keys to values", _line(root))
        ours: dict[str, yaml.Node] = {}
        for key, _, value in self._pairs(root):
            if key in ours:
                # Of a whole list the last one must not win quietly, be it with a colon or without.
                raise self._error(f"{key} is there already, in line {_line(ours[key])}", _line(value))
            if key in _FILE_KEYS:
                ours[key] = value
        return ours

    def _counted(self, children: list[T]) -> list[T]:
        # A node takes a character at least, so only aliases make more of them than that: a few
        # lines can stand for thousands of millions.
        self._visits += len(children)
        if self._visits > len(self._text):
            raise self._error("too many aliases")
        return children

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Key without its colon, "" where it is no string; key node; value node."""
        for key, value in self._counted(node.value):
            yield _written(key, _STR).removeprefix(":"), key, value

    def _listed(self, node: yaml.Node | None) -> list[yaml.Node]:
        if node is None or node.tag == _NULL:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self._error("tproxy is not a list", _line(node))
        return self._counted(node.value)

    def _log_level(self, node: yaml.Node | None) -> int:
        if node is None or node.tag == _NULL:
            return logging.INFO
        level = _LOG_LEVELS.get(_written(node, _INT, _STR))
        if level is None:
            self._warn(node, f"tproxy_debug_level {_shown(node)} is not 0, 1, 2 or 3: 2 is used")
        return level or logging.INFO

    def _entry(self, number: int, node: yaml.Node) -> Entry | None:
        try:
            fields = self._fields(number, node)
            for key in ("remote_addr", "remote_port"):
                if key not in fields:
                    raise _Unusable(f"{key} is missing")
            remote_port = _port("remote_port", fields["remote_port"])
            return Entry(
                number,
                _line(node),
                _port("service_port", fields.get("service_port", fields["remote_port"])),
                _remote_addr(fields["remote_addr"]),
                remote_port,
                self._networks(fields.get("networks")),
                self._or_default(number, _name, fields.get("name"), ""),
                self._or_default(number, _connect_timeout, fields.get("connect_timeout"), DEFAULT_CONNECT_TIMEOUT),
            )
        except _Unusable as problem:
            self._warn(problem.node or node, f"entry {number}: {problem}: entry skipped")
            return None

    def _fields(self, number: int, node: yaml.Node) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise _Unusable(f"{_shown(node)} is not a mapping of keys to values")
        fields: dict[str, yaml.Node] = {}
        for key, key_node, value in self._pairs(node):
            if key_node.tag == _MERGE:
                # Without what it brings, such as networks, the entry would apply too widely.
                raise _Unusable("'<<' (merge) is not supported", key_node)
            if key not in _ENTRY_KEYS:
                self._warn(key_node, f"entry {number}: unknown key {_shown(key_node)} is ignored")
                continue
            if key in fields:
                self._warn(key_node, f"entry {number}: {key} is there twice: the last one counts")
            fields[key] = value
        return {key: value for key, value in fields.items() if value.tag != _NULL}

    def _networks(self, node: yaml.Node | None) -> frozenset[str]:
        if node is None or _is_empty(node)
