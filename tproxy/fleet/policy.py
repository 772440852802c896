"""The policy of a fleet: which hosts there are, and what groups of them are to have. Reads YAML.

Entries of groups are those of the configuration file, and are read by the same code, from the nodes of the
policy. So a fault has the file and the line where somebody can change it, also where an entry comes from a
file that a group includes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from tproxy import options
from tproxy.config import keys as known_keys
from tproxy.config import values
from tproxy.config.file import text_of
from tproxy.config.services import place
from tproxy.config.values import Unusable, shown
from tproxy.errors import ConfigError, quoted
from tproxy.fleet.document import HOST

DEFAULT = "/etc/tproxy/fleet.yaml"
MOST_HOSTS = 200_000  # of one pattern; arbitrary, so that a slip of the pen does not fill the memory

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TOP = ("store", "key", "credentials", "zones", "certificates", "limits", "groups")
_GROUP = ("name", "hosts", "networks", "not_after", "include")
_LIMITS = ("routes", "routes_per_owner")
_RANGE = re.compile(r"\[([0-9]+)-([0-9]+)\]")


class Group(NamedTuple):
    """Hosts that have some entries alike. ``keys`` are those of the configuration file, with their nodes."""

    name: str
    hosts: tuple[str, ...]
    networks: frozenset[str]  # of its hosts, besides those that its entries name
    not_after: int
    keys: tuple[tuple[yaml.Node, yaml.Node], ...]


class Policy(NamedTuple):
    """A policy that was read. Paths are absolute. ``size`` is how many characters its files have."""

    path: str
    store: str
    key: str
    credentials: str
    zones: tuple[str, ...]
    certificates: tuple[str, ...]  # names that a gateway has certificates for
    limits: Mapping[str, int]
    groups: tuple[Group, ...]
    size: int

    @property
    def hosts(self) -> list[str]:
        """All hosts, each once, in the order of the file."""
        return [*dict.fromkeys(host for group in self.groups for host in group.hosts)]


def load(path: str) -> Policy:
    """Read a policy and what its groups include. Raises ConfigError: file, line, key and value."""
    return _Reader(path).policy()


def is_list(key: str) -> bool:
    """Whether a key of the configuration file is a list of entries, which those of several groups make up."""
    return key in known_keys.ELSEWHERE or isinstance(known_keys.FILE[key].option.kind, options.Entries)


class _Named(io.StringIO):
    """A text whose nodes know its path."""

    name = ""


def origin_of(node: yaml.Node) -> str:
    """Return the path of the file that a node was read from."""
    return str(node.start_mark.name)


class _Reader:
    def __init__(self, path: str) -> None:
        self._path = path
        self._size = 0

    def policy(self) -> Policy:
        said = self._mapping(self._compose(self._path), _TOP, "the policy")
        for key in ("store", "groups"):
            if key not in said:
                raise ConfigError(f"{place(self._path)}: {key} is missing")
        groups = [self._group(each) for each in self._list(said["groups"], "groups")]
        names: dict[str, Group] = {}
        for group, node in zip(groups, said["groups"].value, strict=True):
            if group.name in names:
                raise self._error(node, f"groups: {group.name} is there twice")
            names[group.name] = group
        return Policy(
            self._path,
            self._text(said["store"], "store"),
            self._file(said, "key"),
            self._file(said, "credentials"),
            tuple(self._texts(said.get("zones"), "zones")),
            tuple(self._texts(said.get("certificates"), "certificates")),
            self._limits(said.get("limits")),
            tuple(groups),
            self._size,
        )

    def _compose(self, path: str) -> yaml.MappingNode:
        text = text_of(path)
        self._size += len(text)
        stream = _Named(text)
        stream.name = path
        try:
            root = yaml.compose(stream, Loader=_LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or "unknown reason"
            raise ConfigError(
                f"{place(path, mark.line + 1 if mark else None)}: not YAML: {reason}"
            ) from error
        except RecursionError:
            raise ConfigError(f"{place(path)}: nested too deeply") from None
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{place(path)}: this is no mapping of keys to values")
        return root

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{place(origin_of(node), values.line(node))}: {text}")

    def _mapping(self, node: yaml.Node, known: Iterable[str], what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what} {shown(node)} is not a mapping of keys to values")
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = values.written(key_node, values.STR)
            if key in found:
                raise self._error(key_node, f"{what}: {key} is there twice")
            if key not in known:
                raise self._error(
                    key_node, f"{what}: key {shown(key_node)} is unknown; known are {', '.join(known)}"
                )
            if value.tag != values.NULL:
                found[key] = value
        return found

    def _group(self, node: yaml.Node) -> Group:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"groups: {shown(node)} is not a mapping of keys to values")
        own: list[tuple[yaml.Node, yaml.Node]] = []
        entries: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value in node.value:
            key = values.written(key_node, values.STR)
            (own if key in _GROUP else entries).append((key_node, value))
        said = self._mapping(yaml.MappingNode(node.tag, own, node.start_mark), _GROUP, "groups")
        if "name" not in said or "hosts" not in said:
            raise self._error(node, "groups: name and hosts are needed")
        name = self._text(said["name"], "name")
        for path in self._texts(said.get("include"), "include"):
            beside = os.path.join(os.path.dirname(os.path.abspath(self._path)), path)
            entries += self._compose(beside).value
        for key_node, value in entries:
            key = values.written(key_node, values.STR)
            if key in known_keys.ELSEWHERE and value.tag != values.NULL:
                self._list(value, key)
            elif key not in known_keys.FILE:
                raise self._error(
                    key_node, f"group {name}: key {shown(key_node)} is no key of the configuration file"
                )
            elif is_list(key) and value.tag != values.NULL:
                self._list(value, key)
        ends = said.get("not_after")
        return Group(
            name,
            tuple(self._hosts(said["hosts"])),
            frozenset(self._texts(said.get("networks"), "networks")),
            self._value(options.Moment(), ends, "not_after") if ends is not None else 0,
            tuple(entries),
        )

    def _hosts(self, node: yaml.Node) -> Iterator[str]:
        for each in self._list(node, "hosts"):
            pattern = values.written(each, values.STR)
            for host in expand(pattern):
                if not re.fullmatch(HOST.pattern, host):
                    raise self._error(each, f"hosts {shown(each)}: {quoted(host)} is no host name")
                yield host

    def _limits(self, node: yaml.Node | None) -> dict[str, int]:
        said = self._mapping(node, _LIMITS, "limits") if node is not None else {}
        return {key: self._value(options.Number(0, 1_000_000), each, key) for key, each in said.items()}

    def _value(self, kind: options.Kind, node: yaml.Node, key: str) -> Any:
        try:
            return values.parse(kind, node)
        except Unusable as fault:
            raise self._error(node, f"{key} {shown(node)} {fault}") from None

    def _list(self, node: yaml.Node, key: str) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, f"{key} {shown(node)} is not a list")
        return [*node.value]

    def _texts(self, node: yaml.Node | None, key: str) -> list[str]:
        if node is None:
            return []
        return [self._text(each, key, values.INT) for each in self._list(node, key)]

    def _text(self, node: yaml.Node, key: str, *more: str) -> str:
        text = values.written(node, values.STR, *more)
        if not text:
            raise self._error(node, f"{key} {shown(node)} is no text")
        return text

    def _file(self, said: Mapping[str, yaml.Node], key: str) -> str:
        """The path that a key has; relative ones begin where the policy is."""
        if key not in said:
            return ""
        return os.path.join(os.path.dirname(os.path.abspath(self._path)), self._text(said[key], key))


def expand(pattern: str) -> Iterator[str]:
    """Yield the hosts of a pattern such as ``node[01-40]``; a pattern without a range is a host."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = int(found[1]), int(found[2])
    if last - first >= MOST_HOSTS:
        raise ConfigError(f"{quoted(pattern)} stands for more than {MOST_HOSTS} hosts")
    for number in range(first, last + 1):
        middle = str(number).zfill(len(found[1]))
        yield from expand(pattern[: found.start()] + middle + pattern[found.end() :])
