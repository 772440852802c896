"""The keys of a YAML mapping, with those that its merge key (``<<``) brings from other mappings.

The rules are those of YAML 1.1, https://yaml.org/type/merge.html: ``<<: *base`` or ``<<: [*first, *second]``
brings the keys of other mappings. A mapping's own keys win, wherever ``<<`` stands among them; then an
earlier mapping of the list wins over a later one. A merged mapping can have a merge key itself.

Nothing is copied into a node: ``groups`` lists references to the keys and values of each mapping in turn. So
each value keeps the line where somebody can change it, and the caller can tell a key that is written twice in
one mapping, a mistake, from a key that overrides a merged one.

What a merge key says is never ignored. An entry that lacks what the merge was to bring, such as ``networks``,
could apply too widely. So each merge key that cannot be followed is an Unusable.

Two limits bound the work. Merged mappings nest ``MAX_DEPTH`` levels at most, and a mapping that merges itself
is found by comparing it with those that are being merged. All nodes on the way are given to ``counted``,
which raises when aliases stand for more nodes than a file could hold ("billion laughs").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

from tproxy.config import values
from tproxy.config.values import Unusable

MAX_DEPTH = 50  # mappings that merge one another; arbitrary, real files have one or two

Counted = Callable[[list[Any]], list[Any]]


class Field(NamedTuple):
    """One key of a mapping, and its value."""

    key: str  # without its leading colon; "" when it is not a string
    key_node: yaml.Node
    node: yaml.Node  # the value
    merged_by: yaml.Node | None  # the outermost merge key that brought it; None for a mapping's own key

    def shown(self) -> str:
        """Key and value for a message, with their origin."""
        return f"{self.key} {values.shown(self.node)}{self.origin()}"

    def origin(self) -> str:
        """The words of a message that name the line of the merge key; empty for a mapping's own key."""
        return f" (merged in line {values.line(self.merged_by)})" if self.merged_by else ""


def groups(mapping: yaml.MappingNode, counted: Counted) -> Iterator[list[Field]]:
    """Yield the mapping's own keys, then those of each merged mapping, in order of precedence.

    A group has all keys of one mapping in the order of the file. Of a key in several groups the first group
    counts. Raises Unusable, after all groups before it, for a merge key that cannot be followed.
    """
    return _groups(mapping, counted, None, ())


def _groups(
    mapping: yaml.MappingNode,
    counted: Counted,
    merged_by: yaml.Node | None,
    outer: tuple[yaml.MappingNode, ...],
) -> Iterator[list[Field]]:
    own: list[Field] = []
    merges: list[tuple[yaml.Node, yaml.Node]] = []
    for key_node, node in counted(mapping.value):
        key = values.written(key_node, values.STR).removeprefix(":")
        if key_node.tag == values.MERGE or key == "<<":
            merges.append((key_node, node))
        else:
            own.append(Field(key, key_node, node, merged_by))
    yield own
    for key_node, _ in merges:
        if key_node.tag != values.MERGE:
            raise Unusable("'<<' merges only when it is written without quotes and colon", key_node)
    if len(merges) > 1:
        # YAML forbids it. Readers that allow it disagree on which one wins.
        raise Unusable("'<<' is there twice: write <<: [*first, *second]", merges[1][0])
    for key_node, node in merges:
        within = (*outer, mapping)
        if len(within) > MAX_DEPTH:
            raise Unusable(f"'<<' merges mappings nested deeper than {MAX_DEPTH} levels", key_node)
        for source in counted(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise Unusable(f"'<<' {values.shown(source)} is not a mapping to merge", key_node)
            if any(source is each for each in within):
                raise Unusable("'<<' merges a mapping into itself", key_node)
            yield from _groups(source, counted, merged_by or key_node, within)
