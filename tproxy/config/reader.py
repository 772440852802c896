"""The reader of the configuration file: turns YAML into a Config, with a warning for all that is not used.

Values are judged on the nodes that YAML composes (``values``), and merge keys are followed on them
(``merging``). So no object of another program's part of the file is constructed, an alias is one more
reference to the same node, and each node knows its line.

A warning about a merged value has the line where the value is written, since that is the line to change. Its
text names the entry, and the line of the merge key that brought the value there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from tproxy.config import keys, merging, values, whole_entry
from tproxy.config.file import text_of
from tproxy.config.keys import Keys
from tproxy.config.merging import Field
from tproxy.config.route_faults import usable
from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config, Entry, Problem, WatchedBridge, place
from tproxy.config.tunnels import TunnelEntry
from tproxy.config.values import Unusable, shown
from tproxy.errors import ConfigError, to_ascii
from tproxy.options import Declared, Entries, Kind

# Arbitrary: twice as many as 100 entries that share 1,000 networks by an alias. Reading that many takes some
# tenths of a second.
MAX_NODES = 200_000
MAX_DEPTH = 50  # libyaml's composer recurses on the C stack: some 10,000 levels crash the process

# Keys of an entry that are at the top level when they are not indented. "name" can be another program's.
_MISPLACED = keys.ENTRY.keys() - {"name"}

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


def judge(path: str, root: yaml.Node, size: int) -> Config:
    """Read these nodes as a configuration file, thoroughly; ``size`` is how many characters they are made of.

    Raises ConfigError as ``load`` does.
    """
    return _Reader(path, " " * size, thorough=True, root=root).config()


class _Reader:
    """One reading of one file. ``root`` is what YAML composes of ``text``, where that is known."""

    def __init__(self, path: str, text: str, *, thorough: bool, root: yaml.Node | None = None) -> None:
        self._root = root
        self._path = path
        self._text = text
        self._thorough = thorough
        self._warnings: list[Problem] = []
        self._visits = 0
        self._reported: set[yaml.Node] = set()  # keys of merged mappings
        self._general: dict[str, Any] = {}  # options for all entries that do not have them

    def config(self) -> Config:
        ours = self._top_level(self._root or self._compose())
        options: dict[str, Any] = {}
        for key, field in ours.items():
            declared = keys.FILE[key]
            if field.node.tag == values.NULL or isinstance(declared.option.kind, Entries):
                continue
            value = self._option(field, declared)
            if key in keys.GENERAL:
                self._general[declared.field] = value
            else:
                options[declared.field] = value
        entries = [self._entry(number, node) for number, node in enumerate(self._list(ours, "tproxy"), 1)]
        bridges = [
            self._bridge(number, node) for number, node in enumerate(self._list(ours, "tproxy_bridges"), 1)
        ]
        routes = [
            self._route(number, node) for number, node in enumerate(self._list(ours, "tproxy_routes"), 1)
        ]
        tunnels = [
            self._tunnel(number, node) for number, node in enumerate(self._list(ours, "tproxy_tunnels"), 1)
        ]
        return Config(
            self._path,
            tunnels=tuple(filter(None, tunnels)),
            routes=self._usable(filter(None, routes)),
            entries=tuple(filter(None, entries)),
            warnings=tuple(self._warnings),
            bridges=tuple(filter(None, bridges)),
            silent=not {"tproxy", "tproxy_routes", "tproxy_tunnels"} & ours.keys(),
            said=frozenset(options),
            **options,
        )

    def _error(self, reason: str, line: int | None = None) -> ConfigError:
        return ConfigError(f"{place(self._path, line)}: {reason}")

    def _warn(self, node: yaml.Node, text: str) -> None:
        self._warnings.append(Problem(values.line(node), text, self._origin(node)))

    def _origin(self, node: yaml.Node) -> str:
        """The file that a node is from, where nodes can be from several."""
        return str(node.start_mark.name) if self._root is not None else ""

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
            if field.key in keys.FILE:
                ours[field.key] = field
            elif self._thorough and field.key not in keys.ELSEWHERE:
                self._doubt(field)
        return ours

    def _doubt(self, field: Field) -> None:
        """Warn of a key at the top level that looks as if it were meant for us."""
        from tproxy.config import suggestions

        name = f"key {shown(field.key_node)}{field.origin()}"
        if key := suggestions.meant_at_top_level(field.key_node, [*keys.FILE, *keys.ELSEWHERE]):
            self._warn_of_key(field, f"{name} is ignored: did you mean {key}?")
        elif field.key in _MISPLACED:
            self._warn_of_key(
                field, f"{name} is ignored at the top level: it belongs into an entry of tproxy"
            )

    def _option(self, field: Field, declared: Declared) -> Any:
        try:
            return values.parse(declared.option.kind, field.node)
        except Unusable as problem:
            stays, default = declared.option.kept, declared.default_as_written()
            result = "it stays as it is" if stays else f"{default} is used"
            self._warn(field.node, f"{field.shown()} {problem}: {result}")
            return None if stays else declared.default

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
        said = self._checked(f"entry {number}", node, keys.ENTRY)
        if said is None:
            return None
        options = self._service_options(said)
        own = {key: value for key, value in said.items() if key not in options}
        own.setdefault("service_port", own.get("remote_port"))
        return Entry(number, values.line(node), **own, options=options, origin=self._origin(node))

    def _service_options(self, said: Mapping[str, Any]) -> dict[str, Any]:
        return self._general | {
            each.field: said[each.field] for each in keys.SERVICE.values() if each.field in said
        }

    def _bridge(self, number: int, node: yaml.Node) -> WatchedBridge | None:
        said = self._checked(f"tproxy_bridges: entry {number}", node, keys.BRIDGE)
        return None if said is None else WatchedBridge(**said)

    def _route(self, number: int, node: yaml.Node) -> RouteEntry | None:
        said = self._checked(f"tproxy_routes: entry {number}", node, keys.ROUTE)
        return None if said is None else RouteEntry(values.line(node), **said, origin=self._origin(node))

    def _tunnel(self, number: int, node: yaml.Node) -> TunnelEntry | None:
        said = self._checked(f"tproxy_tunnels: entry {number}", node, keys.TUNNEL)
        return None if said is None else TunnelEntry(values.line(node), **said)

    def _usable(self, routes: Iterable[RouteEntry]) -> tuple[RouteEntry, ...]:
        found, problems = usable(routes)
        self._warnings += problems
        return tuple(found)

    def _checked(self, label: str, node: yaml.Node, known: Keys) -> dict[str, Any] | None:
        """Return the values of an entry by field; None, with a warning for each fault, if it is unusable."""
        if isinstance(node, yaml.MappingNode):
            said, faults = self._values(label, node, known)
        else:
            said, faults = {}, [Unusable(f"{shown(node)} is not a mapping of keys to values", node)]
        for fault in faults:
            self._warn(fault.node or node, f"{label}: {fault}: entry skipped")
        return None if faults else said

    def _values(
        self, label: str, entry: yaml.MappingNode, known: Keys
    ) -> tuple[dict[str, Any], list[Unusable]]:
        """Return the values of an entry, and all of its faults: an operator corrects them in one go."""
        found: dict[str, Field] = {}
        misspelt: list[tuple[str, Unusable]] = []  # the key that was meant, and the fault
        faults: list[Unusable] = []
        try:
            for group in merging.groups(entry, self._counted):
                found |= self._known(label, group, known, found, misspelt)
        except Unusable as fault:  # a merge key that cannot be followed
            faults.append(fault)
        incomplete = bool(faults)
        faults += [fault for _, fault in misspelt]
        said: dict[str, Any] = {}
        for key, field in found.items():
            if field.node.tag != values.NULL:
                try:
                    said[known[key].field] = self._value(field, known[key].option.kind)
                except Unusable as fault:
                    faults.append(fault)
        meant = {key for key, _ in misspelt}
        present = {key for key, field in found.items() if field.node.tag != values.NULL}
        needed = [key for key in known if known[key].option.required]
        if known is keys.ENTRY:
            if contradiction := whole_entry.contradiction(said):
                faults.append(Unusable(contradiction, entry))
            addresses = found.get("remote_addr")
            written = values.texts(addresses.node) if addresses is not None else []
            needed += filter(None, [whole_entry.missing(written, present | meant)])
        for key in () if incomplete else needed:
            if key not in meant and key not in present:
                faults.append(Unusable(f"{key} is missing", entry))
        return said, faults

    def _known(
        self,
        label: str,
        group: list[Field],
        known: Keys,
        before: Mapping[str, Field],
        misspelt: list[tuple[str, Unusable]],
    ) -> dict[str, Field]:
        """Return the last field of each known key that is not in ``before``. Warn of all other fields.

        Adds a fault to ``misspelt`` for each unknown key that resembles a known one.
        """
        last: dict[str, Field] = {}
        for field in group:
            if field.key not in known:
                from tproxy.config import suggestions  # most files have no such key

                name = f"key {shown(field.key_node)}{field.origin()}"
                if key := suggestions.meant(field.key_node, known):
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

    def _value(self, field: Field, kind: Kind) -> Any:
        node = field.node
        if isinstance(node, yaml.SequenceNode):
            self._counted(node.value)
        try:
            return values.parse(kind, node)
        except Unusable as problem:
            value = f"{field.key} {shown(problem.node or node)}{field.origin()}"
            raise Unusable(f"{value} {problem}", node) from None
