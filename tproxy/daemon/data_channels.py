"""The data channels of all bridges: from a bridge's relay to each worker, which gets accepted sockets there.

The daemon keeps a copy of the worker's end of each channel. So sockets that a worker has not received when it
ends are not lost: the next worker in its place gets the copy.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

from tproxy.relay.channel import pair


class _Bridge(NamedTuple):
    """``ends`` are the workers' ends in the order of places; the relay has that of place ``shift`` first."""

    cookie: int | None
    shift: int
    ends: list[socket.socket]


class DataChannels:
    """Our copies of the workers' ends, by bridge. Close them with ``let_go``."""

    def __init__(self) -> None:
        self._bridges: dict[str, _Bridge] = {}
        self._made = 0  # how many times ``make`` was called

    def make(self, bridge: str, cookie: int | None, places: int) -> list[socket.socket]:
        """Make a channel to each place, instead of earlier ones; return the relay's ends, which are the
        caller's.

        Their order differs from bridge to bridge, because guests of different bridges often have the same
        addresses. ``cookie`` is that of the bridge's namespace. Raises OSError.
        """
        self.let_go(bridge)
        ours: list[socket.socket] = []
        theirs: list[socket.socket] = []
        try:
            for _ in range(places):
                near, far = pair()
                ours.append(near)
                theirs.append(far)
        except OSError:
            for each in (*ours, *theirs):
                each.close()
            raise
        shift = self._made % places
        self._made += 1
        self._bridges[bridge] = _Bridge(cookie, shift, theirs)
        return ours[shift:] + ours[:shift]

    def of_place(self, place: int) -> Iterator[tuple[str, int | None, int]]:
        """Yield bridge, cookie, and the descriptor of the worker's end, for each channel to this place."""
        for bridge, (cookie, _, ends) in self._bridges.items():
            if place < len(ends):  # otherwise relays get other channels in a moment
                yield bridge, cookie, ends[place].fileno()

    def of_bridge(self, bridge: str) -> list[int]:
        """Return the descriptors of the workers' ends for a bridge, in the order of places."""
        found = self._bridges.get(bridge)
        return [end.fileno() for end in found.ends] if found is not None else []

    def place(self, bridge: str, position: int) -> int | None:
        """Return the place to which the relay's channel at this position leads; None without channels."""
        found = self._bridges.get(bridge)
        return (position + found.shift) % len(found.ends) if found is not None else None

    def let_go(self, bridge: str) -> None:
        """Close our copies, because the bridge's relay is gone or gets other channels."""
        found = self._bridges.pop(bridge, None)
        if found is not None:
            for end in found.ends:
                end.close()
