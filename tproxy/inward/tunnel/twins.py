"""The rule by which one key on two machines is noticed. Pure.

A machine whose connection broke comes again with the same key, and takes over: its old connection is dead.
But where the old connection still answers, there is another machine with that key. The two would replace each
other for ever, and nobody could say which of them is reached.
"""

from __future__ import annotations

# Several, since a node that is restarted can overlap with itself once.
MOST = 3
WITHIN = 600.0  # seconds: as long as a node's longest back-off several times


class Twins:
    """Replacements of live connections, by node."""

    def __init__(self) -> None:
        self._replaced: dict[str, list[float]] = {}

    def replaced(self, node: str, now: float) -> bool:
        """A connection that still answered was replaced. Return whether two machines alternate."""
        recent = [each for each in self._replaced.get(node, ()) if now - each < WITHIN]
        self._replaced[node] = [*recent, now]
        return len(recent) + 1 >= MOST

    def forget(self, node: str) -> None:
        self._replaced.pop(node, None)
