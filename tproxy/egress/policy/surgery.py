"""Changes the text of egress.yaml where a rule or an entry is, and leaves every other character as it was.

YAML's nodes say where they begin and end. Pure: text in, text out. A comment that stands beside what would go
is not removed: then the change is refused (None).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import yaml

from tproxy.errors import TproxyError

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # which YAML takes for something else


class NotEditable(TproxyError):
    """The file is written in a way in which no place for the change can be found."""


@dataclass(frozen=True)
class Place:
    """One rule: its node, and the node of its list of Python projects, which may be missing."""

    node: yaml.Node
    projects: yaml.Node | None

    @property
    def is_list(self) -> bool:
        return isinstance(self.projects, yaml.SequenceNode)


def written(text: str) -> str:
    """Return a name as YAML reads it back."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text)


class Rules:
    """The rules of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        self._root = root if isinstance(root, yaml.MappingNode) else None
        pairs = self._root.value if self._root else []
        self._list = next((value for key, value in pairs if key.value == "rules"), None)
        nodes = self._list.value if isinstance(self._list, yaml.SequenceNode) else []
        self.places = [_place(node) for node in nodes]
        starts = [node.start_mark.index for node in nodes]
        if starts != sorted(set(starts)):
            raise NotEditable("rules are aliases of others: edit the file by hand")

    def with_rule(self, index: int, rule: str) -> str:
        """Return the text with a rule, written in one line, before the one with this index, or at the end."""
        nodes = [place.node for place in self.places]
        if self._list is None:
            start = self._text if not self._text or self._text.endswith("\n") else self._text + self._newline
            return f"{start}rules:{self._newline}  - {rule}{self._newline}"
        if not isinstance(self._list, yaml.SequenceNode):  # "rules:" without anything
            at = self._end_of_line(self._list.start_mark.index)
            return self._inserted(at, f"{self._newline}  - {rule}")
        if self._list.flow_style:
            if index < len(nodes):
                return self._inserted(nodes[index].start_mark.index, f"{rule}, ")
            at = nodes[-1].end_mark.index if nodes else self._list.start_mark.index + 1
            return self._inserted(at, f", {rule}" if nodes else rule)
        if index < len(nodes):
            at = self._start_of_line(self._dash(nodes[index]))
            indent = self._text[at : self._dash(nodes[index])]
            while (above := self._start_of_line(at - 1)) < at and self._is_comment(above):
                at = above  # the comment is about the rule below it
            return self._inserted(at, f"{indent}- {rule}{self._newline}")
        dash = self._dash(nodes[-1])
        indent = self._text[self._start_of_line(dash) : dash]
        at = self._end_of_line(_end(nodes[-1]))
        return self._inserted(at, f"{self._newline}{indent}- {rule}")

    def with_project(self, index: int, project: str) -> str:
        """Return the text with a project at the end of the list of a rule."""
        projects = self.places[index].projects
        assert isinstance(projects, yaml.SequenceNode)
        items = projects.value
        if projects.flow_style:
            at = items[-1].end_mark.index if items else projects.start_mark.index + 1
            return self._inserted(at, f", {project}" if items else project)
        dash = self._dash(items[-1])
        indent = self._text[self._start_of_line(dash) : dash]
        return self._inserted(self._end_of_line(_end(items[-1])), f"{self._newline}{indent}- {project}")

    def without_projects(self, index: int, gone: set[int]) -> str | None:
        """Return the text without these entries of a rule's list, or without the rule when none is left."""
        place = self.places[index]
        assert isinstance(place.projects, yaml.SequenceNode)
        if len(gone) == len(place.projects.value):
            assert isinstance(self._list, yaml.SequenceNode)
            return self._without(self._list, index)
        text: str | None = self._text
        for at in sorted(gone, reverse=True):  # from the end, so that places before stay what they are
            text = Rules(text)._without_project(index, at) if text is not None else None
        return text

    def _without_project(self, index: int, at: int) -> str | None:
        projects = self.places[index].projects
        assert isinstance(projects, yaml.SequenceNode)
        return self._without(projects, at)

    def _without(self, sequence: yaml.SequenceNode, index: int) -> str | None:
        items = sequence.value
        item = items[index]
        if sequence.flow_style:
            if index:
                start, end = items[index - 1].end_mark.index, item.end_mark.index
            else:
                start = item.start_mark.index
                end = items[1].start_mark.index if len(items) > 1 else item.end_mark.index
        elif len(items) == 1:
            return None  # a list without entries would be nothing, rather than an empty list
        else:
            start = self._start_of_line(self._dash(item))
            end = min(self._end_of_line(_end(item)) + len(self._newline), len(self._text))
        gone = self._text[start:end]
        return None if "#" in gone else self._text[:start] + self._text[end:]

    def _dash(self, node: yaml.Node) -> int:
        """Return where the "-" of an item is."""
        at: int = self._text.rfind("-", 0, node.start_mark.index)
        between = self._text[at + 1 : node.start_mark.index]
        if at < 0 or between.strip() or self._text[self._start_of_line(at) : at].strip():
            raise NotEditable("the rules are written in an unusual way: edit the file by hand")
        return at

    def _start_of_line(self, at: int) -> int:
        return self._text.rfind("\n", 0, max(at, 0)) + 1

    def _end_of_line(self, at: int) -> int:
        """Return where the line ends, in front of its line break."""
        found = self._text.find(self._newline, at)
        return len(self._text) if found < 0 else found

    def _is_comment(self, start: int) -> bool:
        return self._text[start : self._end_of_line(start)].lstrip().startswith("#")

    def _inserted(self, at: int, text: str) -> str:
        return self._text[:at] + text + self._text[at:]


def _place(node: yaml.Node) -> Place:
    if not isinstance(node, yaml.MappingNode):
        return Place(node, None)
    projects = next((value for key, value in node.value if key.value == "pypi"), None)
    # What an alias stands for is elsewhere, and others may use it as well.
    own = projects is not None and projects.start_mark.index >= node.start_mark.index
    return Place(node, projects if own else None)


def _end(node: yaml.Node) -> int:
    """Return where the last character of a node is. A block's own mark is behind the comments after it."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
