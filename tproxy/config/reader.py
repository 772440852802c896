"""The reader of the configuration file: turns YAML into a Config, with a warning for all that is not used.

Values are judged on the nodes that YAML composes (``values``), and merge keys are followed on them
(``merging``). So no object of another program's part of the file is constructed, an alias is one more
reference to the same node, and each node knows its line.

A warning about a merged value has the line where the value is written, since that is the line to change. Its
text names the entry, and the line of the merge key that brought the value there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml

from tproxy.config import merging, values
from tproxy.config.file import text_of
from tproxy.config.merging import Field
from tproxy.config.services import DEFAULT_WATCH_GRACE, Config, Entry, Problem, WatchedBridge, place
from tproxy.config.values import Unusable, shown
from tproxy.errors import ConfigError, to_ascii
from tproxy.model import Network

# Arbitrary: twice as many as 100 entries that share 1,000 networks by an alias. Reading that many takes some
# tenths of a second.
MAX_NODES = 200_000
MAX_DEPTH = 50  # libyaml's composer recurses on the C stack: some 10,000 levels crash the process

_LOG_LEVELS = {"0": logging.ERROR, "1": logging.WARNING, "2": logging.INFO, "3": logging.DEBUG}
_FILE_KEYS = (
    "tproxy",
    "tproxy_debug_level",
    "tproxy_workers",
    "tproxy_watch",
    "tproxy_watch_grace",
    "tproxy_bridges",
)
_REQUIRED = ("remote_addr", "remote_port")
# Keys of an entry that are at the top level when they are not indented. "name" can be another program's.
_MISPLACED = values.ENTRY.keys() - {"name"}

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")


def load(path: str | os.PathLike[str], *, thorough: bool = False) -> Config:
    """Read the file. Raises ConfigError when it cannot be used as a whole.

    ``thorough`` also warns of keys at the top level that are not ours, and look as if they were meant to be.
    """
    path = os.fspath(path)
    return parse(path, text_of(path), thorough=thorough)


def parse(path: str, text: str, *, thorough: bool = False) -> Config:
    """Read this text as a configuration file. ``path`` is for messages. For the rest see ``load``."""
    return _Reader(path, text, thorough=thorough).config()


class _Reader:
    """One reading of one file."""

    def __init__(self, path: str, text: str, *, thorough: bool) -> None:
        self._path = path
        self._text = text
        self._thorough = thorough
        self._warnings: list[Problem] = []
        self._visits = 0
        self._reported: set[yaml.Node] = set()  # keys of merged mappings

    def config(self) -> Config:
        ours = self._top_level(self._compose())
        level = self._log_level(ours.get("tproxy_debug_level"))
        entries = [self._entry(number, node) for number, node in enumerate(self._list(ours, "tproxy"), 1)]
        bridges = [
            self._bridge(number, node) for number, node in enumerate(self._list(ours, "tproxy_bridges"), 1)
        ]
        watch = self._option(ours, "tproxy_watch", values.flag, default=False)
        grace = self._option(ours, "tproxy_watch_grace", values.grace, default=DEFAULT_WATCH_GRACE)
        workers = self._workers(ours)
        return Config(
            self._path,
            level,
            tuple(filter(None, entries)),
            tuple(self._warnings),
            tuple(filter(None, bridges)),
            watch,
            grace,
            "tproxy" not in ours,
            workers,
        )

    def _error(self, reason: str, line: int | None = None) -> ConfigError:
        return ConfigError(f"{place(self._path, line)}: {reason}")

    def _warn(self, node: yaml.Node, text: str) -> None:
        self._warnings.append(Problem(values.line(node), text))

    def _warn_of_key(self, field: Field, text: str) -> None:
        """Warn of a key; of one in a merged mapping once, not for each entry that merges it."""
        if field.merged_by is not None:
            if field.key_node in self._reported:
                return
            self._reported.add(field.key_node)
        self._warn(field.key_node, text)

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

    def _top_level(self, root: yaml.Node | None) -> dict[str, Field]:
        if root is None or root.tag == values.NULL:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise self._error(f"{shown(root)} is not a mapping of keys to values", values.line(root))
        ours: dict[str, Field] = {}
        try:
            for group in merging.groups(root, self._counted):
                ours = self._file_keys(group) | ours
        except Unusable as fault:
            raise self._error(str(fault), values.line(fault.node)) from None
        return ours

    def _file_keys(self, group: list[Field]) -> dict[str, Field]:
        ours: dict[str, Field] = {}
        for field in group:
            if field.key in ours:
                # Written twice, or with and without a colon: one of the two would be ignored in silence.
                reason = f"{field.key} is there already, in line {values.line(ours[field.key].node)}"
                raise self._error(reason, values.line(field.node))
            if field.key in _FILE_KEYS:
                ours[field.key] = field
            elif self._thorough:
                self._doubt(field)
        return ours

    def _doubt(self, field: Field) -> None:
        """Warn of a key at the top level that looks as if it were meant for us."""
        from tproxy.config import suggestions

        name = f"key {shown(field.key_node)}{field.origin()}"
        if key := suggestions.meant_at_top_level(field.key_node, _FILE_KEYS):
            self._warn_of_key(field, f"{name} is ignored: did you mean {key}?")
        elif field.key in _MISPLACED:
            self._warn_of_key(
                field, f"{name} is ignored at the top level: it belongs into an entry of tproxy"
            )

    def _log_level(self, field: Field | None) -> int:
        if field is None or field.node.tag == values.NULL:
            return logging.INFO
        level = _LOG_LEVELS.get(values.written(field.node, values.INT, values.STR))
        if level is None:
            self._warn(field.node, f"{field.shown()} is not one of 0 to 3: 2 is used")
            return logging.INFO
        return level

    def _option(
        self, ours: Mapping[str, Field], key: str, parser: Callable[[yaml.Node], T], *, default: T
    ) -> T:
        field = ours.get(key)
        if field is None or field.node.tag == values.NULL:
            return default
        try:
            return parser(field.node)
        except Unusable as problem:
            self._warn(field.node, f"{field.shown()} {problem}: ignored")
            return default

    def _workers(self, ours: Mapping[str, Field]) -> int | None:
        field = ours.get("tproxy_workers")
        if field is None or field.node.tag == values.NULL:
            return 0
        try:
            return values.workers(field.node)
        except Unusable as problem:
            self._warn(field.node, f"{field.shown()} {problem}: the number of workers stays as it is")
            return None

    def _list(self, ours: Mapping[str, Field], key: str) -> list[yaml.Node]:
        field = ours.get(key)
        if field is None or field.node.tag == values.NULL:
            return []
        if not isinstance(field.node, yaml.SequenceNode):
            raise self._error(f"{key}{field.origin()} is not a list", values.line(field.node))
        return self._counted(field.node.value)

    def _counted(self, children: list[T]) -> list[T]:
        # Each node takes a character or more, so only aliases can make more nodes than there are characters.
        # A few lines of aliases can stand for thousands of millions of nodes.
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
        """Return the values of an entry; None, with a warning for each fault, when it cannot be used."""
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
        """Return the values of an entry, and all of its faults: an operator corrects them in one go."""
        found: dict[str, Field] = {}
        misspelt: list[tuple[str, Unusable]] = []  # the key that was meant, and the fault
        faults: list[Unusable] = []
        try:
            for group in merging.groups(entry, self._counted):
                found |= self._known(label, group, parsers, found, misspelt)
        except Unusable as fault:  # a merge key that cannot be followed
            faults.append(fault)
        incomplete = bool(faults)
        faults += [fault for _, fault in misspelt]
        said: dict[str, Any] = {}
        for key, field in found.items():
            if field.node.tag != values.NULL:
                try:
                    said[key] = self._value(field, parsers[key])
                except Unusable as fault:
                    faults.append(fault)
        meant = {key for key, _ in misspelt}
        for key in () if incomplete else required:
            if key not in meant and (key not in found or found[key].node.tag == values.NULL):
                faults.append(Unusable(f"{key} is missing", entry))
        return said, faults

    def _known(
        self,
        label: str,
        group: list[Field],
        parsers: values.Parsers,
        before: Mapping[str, Field],
        misspelt: list[tuple[str, Unusable]],
    ) -> dict[str, Field]:
        """Return the last field of each known key that is not in ``before``. Warn of all other fields.

        Adds a fault to ``misspelt`` for each unknown key that resembles a known one.
        """
        last: dict[str, Field] = {}
        for field in group:
            if field.key not in parsers:
                from tproxy.config import suggestions  # most files have no such key

                name = f"key {shown(field.key_node)}{field.origin()}"
                if key := suggestions.meant(field.key_node, parsers):
                    fault = Unusable(f"{name} is unknown (did you mean {key}?)", field.key_node)
                    misspelt.append((key, fault))
                else:
                    self._warn_of_key(field, f"{label}: {name} is unknown and ignored")
            elif field.key not in before:
                if field.key in last:
                    value = f"{shown(field.node)}{field.origin()}"
                    self._warn_of_key(field, f"{label}: {field.key} is there twice: {value} is used")
                last[field.key] = field
        return last

    def _value(self, field: Field, parser: Callable[[yaml.Node], object]) -> Any:
        node = field.node
        if isinstance(node, yaml.SequenceNode):
            self._counted(node.value)
        try:
            return parser(node)
        except Unusable as problem:
            value = f"{field.key} {shown(problem.node or node)}{field.origin()}"
            raise Unusable(f"{value} {problem}", node) from None
