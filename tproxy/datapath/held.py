"""Datagrams of guests whose network is not known yet (``membership``): a few wait for each guest port.

No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

from tproxy.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tproxy.datapath.session import Gate

# Guest ports whose datagrams wait, in one worker, and datagrams of each; arbitrary. A guest's place is known
# some milliseconds after its first packet, and whoever speaks UDP sends again.
MOST, MOST_EACH = 256, 4

Guest = tuple[Any, ...]


class Held:
    """By gate and guest port."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Gate, Guest], tuple[float, list[bytes]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[tuple[Gate, Guest, float]]:
        """Yield gate, guest and deadline of all that wait."""
        for (gate, guest), (deadline, _) in list(self._waiting.items()):
            yield gate, guest, deadline

    def add(self, gate: Gate, guest: Guest, data: bytes, deadline: float) -> None:
        """Keep a datagram until a time; without room it is lost."""
        if len(self._waiting) >= MOST and (gate, guest) not in self._waiting:
            return
        _, kept = self._waiting.setdefault((gate, guest), (deadline, []))
        if len(kept) < MOST_EACH:
            kept.append(data)

    def take(self, gate: Gate, guest: Guest) -> list[bytes]:
        """Return what waits for a guest port, in order; it waits no more."""
        return self._waiting.pop((gate, guest), (0.0, []))[1]

    def drop(self, gate: Gate) -> None:
        """Forget all that waits at a gate."""
        for each in [each for each in self._waiting if each[0] is gate]:
            del self._waiting[each]
