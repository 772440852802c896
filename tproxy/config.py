"""The configuration file: YAML to services, with what was ignored and why.

Values are judged on the nodes that YAML composes (``values``). So nothing foreign in the file is
constructed, an alias is one more reference to the same node, and each node knows its line.

A fault of the file is a ConfigError, a fault of one entry a warning. Both are one line of ASCII
whatever the file holds, so that no value can forge a line of the log.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from tproxy import values
from tproxy.errors import ConfigError
from tproxy.model import DEFAULT_CONNECT_TIMEOUT, Endpoint, Network, Service
from tproxy.values import Unusable, shown

SEARCH_PATH = ("/var/tmp/one/etc/vnm/OpenNebulaNetwork.conf", "/etc/tproxy/tproxy.yaml")

MAX_BYTES = 1 << 20  # arbitrary: 100 entries are 10 KB, so what is larger is another kind of file
MAX_DEPTH = 50  # libyaml's composer recurses on the C stack: some 10,000 levels end the process
# Seconds that a watched bridge stays up without guests: longer than a guest takes to be moved or
# started anew, which need not cost its network the services.
DEFAULT_WATCH_GRACE = 30.0

_LOG_LEVELS = {"0": logging.ERROR, "1": logging.WARNING, "2": logging.INFO, "3": logging.DEBUG}
_FILE_KEYS = ("tproxy", "tproxy_debug_level", "tproxy_watch", "tproxy_watch_grace", "tproxy_bridges")
_REQUIRED = ("remote_addr", "remote_port")

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")
Resolver = Callable[[str], list[str]]


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


def search(explicit: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to use; None when there is none.

    A file that was asked for is never replaced by another one that happens to be there.
    """
    for named, by in ((explicit, "--config"), (environ.get("TPROXY_CONFIG") or None, "$TPROXY_CONFIG")):
        if named is not None:
            if not os.path.lexists(named):
                raise ConfigError(f"{shown(named)}: no such file (from {by})")
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
    def address_of(remote_addr: str) -> str | Unusable:
        try:
            return _resolved(remote_addr, resolve)
        except Unusable as problem:
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
        if isinstance(address, Unusable):
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
        watch = self._option(ours, "tproxy_watch", values.flag, default=False)
        grace = self._option(ours, "tproxy_watch_grace", values.grace, default=DEFAULT_WATCH_GRACE)
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
        self._warnings.append(f"{_place(self._path, values.line(node))}: {text}")

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
                    raise self._error(f"nested deeper than {MAX_DEPTH} levels", values.line(event))
            return yaml.compose(self._text, Loader=_LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unknown reason"
            line = mark.line + 1 if mark else None
            raise self._error(f"not YAML: {values.to_ascii(reason)}", line) from error

    def _top_level(self, root: yaml.Node | None) -> dict[str, yaml.Node]:
        if root is None or root.tag == values.NULL:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise self._error(f"{shown(root)} is not a mapping of keys to values", values.line(root))
        ours: dict[str, yaml.Node] = {}
        for key, _, value in self._pairs(root):
            if key in ours:
                # With and without a colon, or twice: half of what somebody wrote would be off.
                raise self._error(
                    f"{key} is there already, in line {values.line(ours[key])}", values.line(value)
                )
            if key in _FILE_KEYS:
                ours[key] = value
        return ours

    def _log_level(self, node: yaml.Node | None) -> int:
        if node is None or node.tag == values.NULL:
            return logging.INFO
        level = _LOG_LEVELS.get(values.written(node, values.INT, values.STR))
        if level is None:
            self._warn(node, f"tproxy_debug_level {shown(node)} is not one of 0 to 3: 2 is used")
            return logging.INFO
        return level

    def _option(
        self, ours: Mapping[str, yaml.Node], key: str, parser: Callable[[yaml.Node], T], *, default: T
    ) -> T:
        node = ours.get(key)
        if node is None or node.tag == values.NULL:
            return default
        try:
            return parser(node)
        except Unusable as problem:
            self._warn(node, f"{key} {shown(node)} {problem}: ignored")
            return default

    def _list(self, ours: Mapping[str, yaml.Node], key: str) -> list[yaml.Node]:
        node = ours.get(key)
        if node is None or node.tag == values.NULL:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(f"{key} is not a list", values.line(node))
        return self._counted(node.value)

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """The key without its colon, "" where it is no string; the key's node; the value's node."""
        for key, value in self._counted(node.value):
            yield values.written(key, values.STR).removeprefix(":"), key, value

    def _counted(self, children: list[T]) -> list[T]:
        # Each node takes a character or more, so that only aliases can make more nodes than that:
        # a few lines of them can stand for thousands of millions.
        self._visits += len(children)
        if self._visits > len(self._text):
            raise self._error("too many aliases")
        return children

    def _entry(self, number: int, node: yaml.Node) -> Entry | None:
        said = self._checked(f"entry {number}", node, values.ENTRY, _REQUIRED)
        if said is None:
            return None
        said.setdefault("service_port", said["remote_port"])
        return Entry(number, values.line(node), **said)

    def _bridge(self, number: int, node: yaml.Node) -> WatchedBridge | None:
        said = self._checked(f"tproxy_bridges: entry {number}", node, values.BRIDGE, ("bridge",))
        if said is None:
            return None
        network = Network(said.get("network", ""), said.get("network_id", ""))
        return WatchedBridge(said["bridge"], network, said.get("uplinks", frozenset()))

    def _checked(
        self, label: str, node: yaml.Node, parsers: values.Parsers, required: tuple[str, ...]
    ) -> dict[str, Any] | None:
        """What an entry says; None, and a warning for all that is wrong, when it cannot be used."""
        if isinstance(node, yaml.MappingNode):
            said, faults = self._values(label, node, parsers, required)
        else:
            said, faults = {}, [Unusable(f"{shown(node)} is not a mapping of keys to values", node)]
        for fault in faults:
            self._warn(fault.node or node, f"{label}: {fault}: entry skipped")
        return None if faults else said

    def _values(
        self, label: str, entry: yaml.MappingNode, parsers: values.Parsers, required: tuple[str, ...]
    ) -> tuple[dict[str, Any], list[Unusable]]:
        """What an entry says, and all that is wrong with it: an operator mends it in one go."""
        nodes: dict[str, yaml.Node] = {}
        faults: list[Unusable] = []
        for key, key_node, node in self._pairs(entry):
            if key_node.tag == values.MERGE:
                # Not merely ignored: without what it brings, the entry could apply too widely.
                faults.append(Unusable("'<<' (merge) is not supported", key_node))
                continue
            if key not in parsers:
                self._warn(key_node, f"{label}: key {shown(key_node)} is unknown and ignored")
                continue
            if key in nodes:
                self._warn(key_node, f"{label}: {key} is there twice: {shown(node)} is used")
            nodes[key] = node
        said: dict[str, Any] = {}
        for key, node in nodes.items():
            if node.tag != values.NULL:
                try:
                    said[key] = self._value(key, node, parsers[key])
                except Unusable as fault:
                    faults.append(fault)
        for key in required:
            if key not in nodes or nodes[key].tag == values.NULL:
                faults.append(Unusable(f"{key} is missing", entry))
        return said, faults

    def _value(self, key: str, node: yaml.Node, parser: Callable[[yaml.Node], object]) -> Any:
        if isinstance(node, yaml.SequenceNode):
            self._counted(node.value)
        try:
            return parser(node)
        except Unusable as problem:
            raise Unusable(f"{key} {shown(problem.node or node)} {problem}", node) from None


def _resolved(remote_addr: str, resolve: Resolver) -> str:
    if values.is_ipv4(remote_addr):
        return remote_addr
    try:
        found = resolve(remote_addr)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unusable(
            f"remote_addr {shown(remote_addr)} does not resolve: {values.to_ascii(reason)}"
        ) from error
    usable = [address for address in found if values.is_ipv4(address) and not values.refused(address)]
    if not usable:
        raise Unusable(f"remote_addr {shown(remote_addr)} resolves to no address that can be used")
    # Name servers rotate their answers. The lowest is the same at each hook, so that starting a VM
    # does not move the services of the others.
    return min(usable, key=socket.inet_aton)


def _place(path: Path, line: int | None) -> str:
    return values.to_ascii(path) + (f":{line}" if line else "")
