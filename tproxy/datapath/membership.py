"""Which network of a bridge a caller belongs to, and so which services it gets. Pure: no I/O, no clock.

Theory of operation. Hooks name guests: a MAC address with its network (a member), and the port of the bridge
behind which this MAC is (a card), where the platform knows it. The bridge's forwarding table tells behind
which port a MAC really is (its place). A caller belongs to the network for which a hook named its port,
otherwise to that for which a hook named its MAC. The port is the hypervisor's, and a guest cannot choose it.
So a MAC that a hook named, at another port than the one named with it, is refused: there is another guest
that uses this address.

A place that is not known yet is not the same as a port that no hook named: the caller has to wait. Where no
hook named any port, MACs alone decide, and places do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.typed import NamedTuple

# The network of callers that no hook named: they get the services that all networks have in common. It is the
# network of these services too (``model.ServiceKey``).
EVERYBODY = 0

# Not known yet: wait for the place of the caller's MAC.
WAIT = -1

# The caller gets nothing.
REFUSED = -2

# The place of a MAC that is behind several ports at once. No link can have this name.
SEVERAL = "/"


_NOWHERE: frozenset[int] = frozenset()

# A port of the bridge, the MAC that a hook named with it, and the network. Several cards can have one port.
Card = tuple[str, str, int]


class Verdict(NamedTuple):
    """The network of a caller, or EVERYBODY, WAIT or REFUSED; ``why`` it is refused."""

    network: int
    why: str = ""


class Guests:
    """What is known of the guests of one bridge.

    ``places`` is kept current by the owner: the port by MAC, or SEVERAL; a MAC that is missing has no place
    yet.
    """

    __slots__ = ("_at", "_members", "_ports", "places")

    def __init__(self, members: Mapping[str, int] | None = None, cards: Iterable[Card] = ()) -> None:
        self.places: dict[str, str] = {}
        self.name(members or {}, cards)

    def name(self, members: Mapping[str, int], cards: Iterable[Card]) -> None:
        """Take over what hooks named, in place of all that they named before.

        ``members``: the network (its ``order``, ``model.Member``) by MAC.
        """
        self._members = members
        self._ports: dict[str, set[str]] = {}  # by MAC
        self._at: dict[str, set[int]] = {}  # the networks of a port's cards
        for port, mac, network in cards:
            self._at.setdefault(port, set()).add(network)
            if mac in members:
                self._ports.setdefault(mac, set()).add(port)

    def judge(self, mac: str) -> Verdict:
        """Return what a caller gets. ``mac`` is "" where nobody knows it."""
        if not mac:
            return Verdict(REFUSED, "nobody knows its MAC address")
        network = self._members.get(mac, EVERYBODY)
        if not self._at:
            return Verdict(network)
        place = self.places.get(mac)
        if place is None:
            return Verdict(WAIT)
        if place == SEVERAL:
            if not network:
                return Verdict(EVERYBODY)
            return Verdict(REFUSED, f"{mac} is behind several ports")
        at = self._at.get(place, _NOWHERE)
        if not network:
            if len(at) > 1:
                return Verdict(REFUSED, f"guests of several networks are behind {place}")
            return Verdict(next(iter(at), EVERYBODY))
        named = self._ports.get(mac)
        if named is not None and place not in named:
            return Verdict(REFUSED, f"{mac} is behind {place}, not {' or '.join(sorted(named))}")
        if at and network not in at:
            return Verdict(REFUSED, f"{mac} is behind {place}, the port of a guest of another network")
        return Verdict(network)
