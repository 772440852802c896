"""The configuration file's language: YAML to a Config, with what was ignored and why.

Values are judged on the nodes that YAML composes (``values``). So nothing foreign in the file is
constructed, an alias is one more reference to the same node, and each node knows its line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import yaml

from tproxy.config import values
from tproxy.config.services import DEFAULT_WATCH_GRACE, Config, Entry, WatchedBridge, place, text_of
from tproxy.config.values import Unusable, shown
from tproxy.errors import ConfigError, to_ascii
from tproxy.model import Network

# Arbitrary: twice 1,000 networks that 100 entries share by an alias, and read in some tenths of a second.
MAX_NODES = 200_000
MAX_DEPTH = 50  # libyaml's composer recurses on the C stack: some 10,000 levels end the process

_LOG_LEVELS = {"0": logging.ERROR, "1": logging.WARNING, "2": logging.INFO, "3": logging.DEBUG}
_FILE_KEYS = ("tproxy", "tproxy_debug_level", "tproxy_watch", "tproxy_watch_grace", "tproxy_bridges")
_REQUIRED = ("remote_addr", "remote_port")

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")


def load(path: str | os.PathLike[str]) -> Config:
    """Read the file; raise ConfigError when it cannot be used as a whole."""
    path = os.fspath(path)
    return parse(path, text_of(path))


def parse(path: str, text: str) -> Config:
    """What a file of this text says; ``path`` is for messages. Raises as ``load`` does."""
    return _Reader(path, text).config()


class _Reader:
    """One reading of one file."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text
        self._warnings: list[str] = []
        self._visits = 0

    def config(self) -> Config:
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
            "tproxy" not in ours,
        )

    def _error(self, reason: str, line: int | None = None) -> ConfigError:
        return ConfigError(f"{place(self._path, line)}: {reason}")

    def _warn(self, node: yaml.Node, text: str) -> None:
        self._warnings.append(f"{place(self._path, values.line(node))}: {text}")

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
            raise self._error(f"not YAML: {to_ascii(reason)}", line) from error

    def _top_level(self, root: yaml.Node | None) -> dict[str, yaml.Node]:
        if root is None or root.tag == values.NULL:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise self._error(f"{shown(root)} is not a mapping of keys to values", values.line(root))
        ours: dict[str, yaml.Node] = {}
        for key, key_node, value in self._pairs(root):
            if key_node.tag == values.MERGE and (merged := self._merged(value)):
                reason = f"'<<' (merge) is not supported, and brings {merged}"
                raise self._error(reason, values.line(key_node))
            if key in ours:
                # With and without a colon, or twice: half of what somebody wrote would be off.
                raise self._error(
                    f"{key} is there already, in line {values.line(ours[key])}", values.line(value)
                )
            if key in _FILE_KEYS:
                ours[key] = value
        return ours

    def _merged(self, node: yaml.Node) -> str:
        """A key of ours that would come by a merge; not merely ignored: all that it holds would be off."""
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(each, yaml.MappingNode):
                for key, _, _ in self._pairs(each):
                    if key in _FILE_KEYS:
                        return key
        return ""

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
        # Each node takes a character or more, so that only aliases can make more nodes than the text has:
        # a few lines of them can stand for thousands of millions.
        self._visits += len(children)
        if self._visits > max(len(self._text), MAX_NODES):
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
