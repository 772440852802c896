"""Finds the known key that an unknown one was probably meant to be.

``network:`` in the place of ``networks:`` would open a service to all networks, so a key that resembles a
known one is not a key to ignore. Imported only for files that have an unknown key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import yaml

# Ratios of difflib. In an entry every key is ours: "timeout" must be found for connect_timeout (0.67), but
# "remark" nothing (0.63 for remote_addr). At the top level other programs have their keys: "tporxy" must be
# found (0.83), but not "http_proxy" (0.8).
ENTRY_CUTOFF = 0.65
TOP_LEVEL_CUTOFF = 0.82

LONGEST = 60  # characters: no key of ours is as long, and comparing takes the square of the length
_SHORTEST_START = 3  # letters: "net" is the start of "networks", and "n" could be anything


def meant(key_node: yaml.Node, known: Iterable[str], cutoff: float = ENTRY_CUTOFF) -> str:
    """Return the known key that the unknown key of this node resembles; "" if there is none."""
    # Not by the tag: a key with a tag of another program is no key of ours, and may have been meant for one.
    written = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
    if not written or len(written) > LONGEST:
        return ""
    letters = _letters(written)
    by_letters = {_letters(key): key for key in known}
    if letters in by_letters:
        return by_letters[letters]
    if close := difflib.get_close_matches(letters, by_letters, 1, cutoff):
        return by_letters[close[0]]
    if len(letters) >= _SHORTEST_START:
        return next((key for start, key in by_letters.items() if start.startswith(letters)), "")
    return ""


def meant_at_top_level(key_node: yaml.Node, known: Iterable[str]) -> str:
    """As ``meant``, for a key beside those of other programs. What begins like all of ours is ours."""
    ours = isinstance(key_node, yaml.ScalarNode) and _letters(key_node.value[:LONGEST]).startswith("tprox")
    return meant(key_node, known, ENTRY_CUTOFF if ours else TOP_LEVEL_CUTOFF)


def _letters(key: str) -> str:
    """What stays of a key without case, underscores and the like, and without the s of a plural."""
    return "".join(filter(str.isalnum, key)).casefold().removesuffix("s")
