"""The reader of egress.yaml: turns YAML into a Policy, or says every reason why it cannot.

Values are judged on the nodes that YAML composes, so that each knows its line and is taken as it is written.
Unlike the configuration of the services, a policy with one problem is not used at all: a rule that was
ignored could be the one that denies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tproxy.config.services import Problem
from tproxy.config.values import HOST_NAME, NULL, Unusable, line, shown
from tproxy.egress.policy import values
from tproxy.egress.policy.rules import (
    ANY,
    Client,
    Credential,
    File,
    Learn,
    Limits,
    Listen,
    Policy,
    Rule,
    Suites,
    Upstreams,
)
from tproxy.errors import ConfigError, quoted, to_ascii

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MAX_BYTES = 4 * 2**20  # of the file; a rule for each of 10,000 networks has a third of it
_MAX_DEPTH = 20
_MAX_ALIASES = 10_000  # a few lines of aliases of aliases can stand for thousands of millions of nodes

Parser = Callable[[yaml.Node], Any]
Pairs = list[tuple[str, yaml.Node, yaml.Node]]  # key, its node, its value


class PolicyError(ConfigError):
    """The policy cannot be used. ``problems`` are all the reasons."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda each: each.line)
        more = f" (and {len(problems) - 1} more: tproxy egress check)" if len(problems) > 1 else ""
        super().__init__(f"{self.problems[0].at(path)}{more}")


def load(path: Path | str, *, look: bool = False) -> Policy:
    """Read the file. With ``look``, a file that it names and that cannot be read is an error too.

    Raises PolicyError, with a problem for each error, and ConfigError when there is no file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{to_ascii(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{to_ascii(path)}: is no UTF-8 text") from None
    return parse(str(path), text, look=look)


def parse(path: str, text: str, *, look: bool = False) -> Policy:
    """Read this text as a policy. ``path`` is for messages. Raises PolicyError."""
    if len(text) > _MAX_BYTES:
        raise PolicyError(path, [Problem(1, f"is larger than {_MAX_BYTES} bytes")])
    problems: list[Problem] = []
    found = _Reader(problems, look).policy(path, _compose(path, text))
    if problems:
        raise PolicyError(path, problems)
    return found


def _compose(path: str, text: str) -> yaml.Node | None:
    depth = aliases = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > _MAX_DEPTH or aliases > _MAX_ALIASES:
                raise PolicyError(path, [Problem(line(event), "nested too deep, or too many aliases")])
        return yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "unknown reason"
        raise PolicyError(
            path, [Problem(mark.line + 1 if mark else 1, f"not YAML: {to_ascii(reason)}")]
        ) from None


class _Reader:
    """One reading of one file, which adds to ``problems`` and goes on."""

    def __init__(self, problems: list[Problem], look: bool) -> None:
        self._problems, self._look = problems, look
        self._hashes: dict[str, str] = {}  # of files, by URL

    def policy(self, path: str, root: yaml.Node | None) -> Policy:
        if root is None or root.tag == NULL:
            return Policy(path)
        said = self._mapping(
            "the file",
            root,
            {
                "mode": lambda node: self._choice(node, "dmz", "sealed"),
                "rules": lambda node: tuple(filter(None, self._each("rules", node, self._rule))),
                "limits": self._limits,
                "learn": self._learn,
                "tunnel": lambda node: tuple(filter(None, self._each("tunnel", node, self._tunnel))),
                "clients": self._clients,
                "upstreams": self._upstreams,
                "credentials": lambda node: tuple(
                    filter(None, self._each("credentials", node, self._credential))
                ),
                "upstream_ca": self._path,
                "inner": self._list("inner", values.ip_addresses),
                "listen": self._listen,
            },
        )
        return Policy(path, **said)

    def _problem(self, node: yaml.Node, key: str, text: str) -> None:
        self._problems.append(Problem(line(node), f"{key}: {text}" if key else text))

    def _mapping(
        self, what: str, node: yaml.Node, known: Mapping[str, Parser], required: tuple[str, ...] = ()
    ) -> Any:
        """Return the values of a mapping's keys that could be read; the other ones are problems."""
        said: dict[str, Any] = {}
        for key, key_node, value in self._pairs(what, node):
            if key not in known:
                from tproxy.config import suggestions

                meant = suggestions.meant(key_node, known)
                hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"
                self._problem(key_node, "", f"unknown key {shown(key_node)} in {what}: {hint}")
            elif key in said:
                self._problem(key_node, key, "is there twice")
            else:
                try:
                    said[key] = known[key](value)
                except Unusable as reason:
                    at = reason.node or value
                    self._problem(at, key, f"{shown(at)} {reason}")
                    said[key] = None
        for key in required:
            if key not in said and isinstance(node, yaml.MappingNode):
                self._problem(node, key, f"is missing in {what}")
        return {key: value for key, value in said.items() if value is not None}

    def _pairs(self, what: str, node: yaml.Node) -> Pairs:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, "", f"{what}: {shown(node)} is not a mapping of keys to values")
            return []
        return [
            (key.value if isinstance(key, yaml.ScalarNode) else "", key, value) for key, value in node.value
        ]

    def _each(self, what: str, node: yaml.Node, parse: Parser) -> tuple[Any, ...]:
        if node.tag == NULL:  # a list of which all lines are comments
            return ()
        if not isinstance(node, yaml.SequenceNode):
            raise Unusable("is not a list", node)
        return tuple(self._tried(what, each, parse) for each in node.value)

    def _tried(self, key: str, node: yaml.Node, parse: Parser) -> Any:
        try:
            return parse(node)
        except Unusable as reason:
            at = reason.node or node
            self._problem(at, key, f"{shown(at)} {reason}")

    def _list(self, key: str, parse: Parser) -> Parser:
        """Make a parser of lists in which each bad value is a problem of its own."""

        def read(node: yaml.Node) -> tuple[Any, ...]:
            items = node.value if isinstance(node, yaml.SequenceNode) else [node]
            return tuple(found for each in items if (found := self._tried(key, each, parse)) is not None)

        return read

    def _names(self, key: str) -> Parser:
        """Make a parser of names of networks or hypervisors, of which there is at least one."""

        def read(node: yaml.Node) -> frozenset[str]:
            if isinstance(node, yaml.SequenceNode) and not node.value:
                raise Unusable(f"names nothing: write '{ANY}' for all", node)
            return frozenset(self._list(key, values.name)(node))

        return read

    def _choice(self, node: yaml.Node, *words: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.value not in words:
            raise Unusable(f"is not one of {', '.join(words)}", node)
        return str(node.value)

    def _path(self, node: yaml.Node) -> str:
        found = values.name(node)
        if not found.startswith("/"):
            raise Unusable("is not an absolute path", node)
        if self._look and not os.access(found, os.R_OK):
            raise Unusable("cannot be read", node)
        return found

    def _rule(self, node: yaml.Node) -> Rule | None:
        said = self._mapping(
            "a rule",
            node,
            {
                "networks": self._names("networks"),
                "hypervisors": self._names("hypervisors"),
                "deny": values.flag,
                "pypi": self._list("pypi", values.project),
                "deb": self._suites,
                "oci": self._list("oci", values.image),
                "galaxy": lambda node: frozenset(self._list("galaxy", values.collection)(node)),
                "files": lambda node: tuple(filter(None, self._each("files", node, self._file))),
                "get": self._list("get", values.url),
                "limits": self._limits,
            },
            required=("networks",),
        )
        if not isinstance(node, yaml.MappingNode):
            return None
        rule = Rule(line(node), **said)
        keys = {key for key, _, _ in self._pairs("a rule", node)}
        if not rule.fetches and keys <= {"networks", "hypervisors", "deny"}:
            self._problem(
                node, "", "a rule names nothing: give it pypi, deb, oci, galaxy, files, get or limits"
            )
        return rule

    def _suites(self, node: yaml.Node) -> Suites:
        said = self._mapping(
            "deb",
            node,
            {
                "suites": lambda node: frozenset(self._list("suites", values.text)(node)),
                "packages": lambda node: frozenset(self._list("packages", values.text)(node)),
            },
            required=("suites",),
        )
        return Suites(said.get("suites", frozenset()), said.get("packages", frozenset()))

    def _file(self, node: yaml.Node) -> Any:
        known = {"url": values.plain_url, "sha256": values.sha256}
        said = self._mapping("a file", node, known, tuple(known))
        if len(said) != len(known):
            return None
        if self._hashes.setdefault(said["url"], said["sha256"]) != said["sha256"]:
            self._problem(node, "files", f"{quoted(said['url'])} has another hash in a line before")
        return File(**said)

    def _limits(self, node: yaml.Node) -> Limits:
        known: dict[str, Parser] = {"connections": values.connections, "bytes_per_second": values.size}
        return Limits(**self._mapping("limits", node, known))

    def _learn(self, node: yaml.Node) -> Learn | None:
        known = {"network": values.name, "until": values.day}
        said = self._mapping("learn", node, known, tuple(known))
        return Learn(**said) if len(said) == len(known) else None

    def _tunnel(self, node: yaml.Node) -> tuple[str, frozenset[str]] | None:
        if isinstance(node, yaml.ScalarNode):
            return values.host(node), frozenset({"*"})
        said = self._mapping(
            "tunnel", node, {"host": values.host, "networks": self._names("networks")}, ("host", "networks")
        )
        return (said["host"], said["networks"]) if len(said) == 2 else None

    def _clients(self, node: yaml.Node) -> tuple[Client, ...]:
        found = []
        for _, key, value in self._pairs("clients", node):
            addresses = self._tried("clients", key, values.ip_addresses)
            network = self._tried("clients", value, values.name)
            if addresses and network:
                found.append(Client(addresses, network))
        return tuple(found)

    def _upstreams(self, node: yaml.Node) -> Upstreams:
        prefixes = self._list("upstreams", values.prefix)
        known = {
            "pypi_index": values.prefix,
            "pypi_files": prefixes,
            "deb": prefixes,
            "galaxy": values.prefix,
        }
        return Upstreams(**self._mapping("upstreams", node, {**known, "oci": self._registries}))

    def _registries(self, node: yaml.Node) -> dict[str, str]:
        found = {}
        for name, key, value in self._pairs("oci", node):
            if not re.fullmatch(HOST_NAME + "(:[0-9]+)?", name):
                self._problem(key, "oci", f"{shown(key)} is not the name of a registry")
            elif url := self._tried("oci", value, values.prefix):
                found[name] = url
        return {**Upstreams().oci, **found}

    def _credential(self, node: yaml.Node) -> Credential | None:
        known = {"realm": values.prefix, "user": values.name, "password_file": self._path}
        said = self._mapping("credentials", node, known, tuple(known))
        return Credential(**said) if len(said) == len(known) else None

    def _listen(self, node: yaml.Node) -> Listen:
        one = {each.name: values.port for each in fields(Listen) if each.type == "int"}
        addresses = dict.fromkeys(("address", "clients_address", "hosts_address"), _address)
        said = self._mapping("listen", node, {**one, "proxy": self._list("proxy", values.port), **addresses})
        found = Listen(**said)
        every = [*found.proxy, *(getattr(found, name) for name in one if getattr(found, name))]
        for port in sorted({each for each in every if every.count(each) > 1}):
            self._problem(node, "listen", f"port {port} is there twice, with those that are not written")
        return found


def _address(node: yaml.Node) -> str:
    found = values.ip_addresses(node)
    if found.num_addresses != 1:
        raise Unusable("is not one address", node)
    return str(found.network_address)
