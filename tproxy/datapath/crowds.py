"""Which UDP session ends to make room for another. No I/O.

A guest has at most ``max_connections_per_guest`` sessions with one service, a service at most
``max_connections_per_bridge``, and the worker at most ``most`` in all, since each session takes a descriptor
and a local port of this host. A datagram has nobody who could be told to come later, so the newcomer has
priority: of the guest that has the most, the session that was used least recently ends.

As with connections (``limits``), all services of a bridge together are bound by the largest of their limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tproxy.datapath.counts import PER_BRIDGE, PER_GUEST, TOTAL_LIMIT
from tproxy.datapath.limits import NO_LIMIT
from tproxy.model import Service, ServiceKey
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.datapath.session import Session

# The part of the local ports that sessions may use; the rest is for the host's own programs.
_PORTS_PART = 1, 2


class Crowd:
    """The sessions of one bridge: of each guest, those used last at the end, and how many of each service."""

    def __init__(self) -> None:
        self.count = 0
        self.guests: dict[str, OrderedDict[Session, None]] = {}
        self.of_service: dict[ServiceKey, int] = {}
        self.of_guest: dict[tuple[ServiceKey, str], int] = {}
        self.most_of_guest = self.most_of_all = NO_LIMIT

    def oldest(self, guest: str, key: ServiceKey | None = None) -> Session:
        """Return the guest's session that was used least recently, of this service or of any."""
        return next(each for each in self.guests[guest] if key is None or each.key == key)

    def largest(self, key: ServiceKey | None = None) -> str:
        """Return the guest that has the most sessions, with this service or in all."""
        if key is None:
            return max(self.guests, key=lambda guest: len(self.guests[guest]))
        return max(self.guests, key=lambda guest: self.of_guest.get((key, guest), 0))


class Crowds:
    """The sessions of one worker. ``room`` is how many its descriptors allow."""

    def __init__(self, room: int = NO_LIMIT) -> None:
        self._room = room
        self._sharers = 1
        self.most = room
        self.total = 0
        self._bridges: dict[str, Crowd] = {}
        self._services: dict[str, Sequence[Service]] = {}

    def set(self, sharers: int, ports: tuple[int, int]) -> None:
        """Take over what counts for the host. ``ports`` are as ``this_host.chosen_ports`` returns them."""
        part, whole = _PORTS_PART
        self._sharers = sharers
        self.most = min(self._room, max(-(-(ports[1] - ports[0] + 1) * part // whole // sharers), 1))
        for bridge, services in self._services.items():
            self.serve(bridge, services)

    def serve(self, bridge: str, services: Sequence[Service]) -> None:
        """Take over the limits of a bridge's UDP services as they are now."""
        self._services[bridge] = services
        crowd = self._bridges.setdefault(bridge, Crowd())
        of_guest = [each.max_connections_per_guest or NO_LIMIT for each in services]
        crowd.most_of_guest = max(of_guest, default=NO_LIMIT)
        crowd.most_of_all = max(map(self._per_bridge, services), default=NO_LIMIT)

    def forget(self, bridge: str) -> None:
        """Forget a bridge that has no sessions and no services any more."""
        self._services.pop(bridge, None)
        self._bridges.pop(bridge, None)

    def in_the_way(self, bridge: str, service: Service, guest: str) -> tuple[Session, int] | None:
        """Return the session that has to end before a guest can have one more, and by which limit.

        None when there is room.
        """
        crowd, key = self._bridges[bridge], service.key
        if crowd.of_guest.get((key, guest), 0) >= (service.max_connections_per_guest or NO_LIMIT):
            return crowd.oldest(guest, key), PER_GUEST
        if len(crowd.guests.get(guest, ())) >= crowd.most_of_guest:
            return crowd.oldest(guest), PER_GUEST
        if crowd.of_service.get(key, 0) >= self._per_bridge(service):
            return crowd.oldest(crowd.largest(key), key), PER_BRIDGE
        if crowd.count >= crowd.most_of_all:
            return crowd.oldest(crowd.largest()), PER_BRIDGE
        if self.total >= self.most:
            fullest = max(self._bridges.values(), key=lambda each: each.count)
            return fullest.oldest(fullest.largest()), TOTAL_LIMIT
        return None

    def oldest(self) -> Session | None:
        """Return the session to end when descriptors are short; None without any."""
        fullest = max(self._bridges.values(), key=lambda each: each.count, default=None)
        return fullest.oldest(fullest.largest()) if fullest is not None and fullest.count else None

    def add(self, bridge: str, key: ServiceKey, guest: str, session: Session) -> None:
        crowd = self._bridges[bridge]
        crowd.guests.setdefault(guest, OrderedDict())[session] = None
        crowd.of_service[key] = crowd.of_service.get(key, 0) + 1
        crowd.of_guest[key, guest] = crowd.of_guest.get((key, guest), 0) + 1
        crowd.count += 1
        self.total += 1

    def used(self, bridge: str, guest: str, session: Session) -> None:
        """Note that a session was used now."""
        self._bridges[bridge].guests[guest].move_to_end(session)

    def remove(self, bridge: str, key: ServiceKey, guest: str, session: Session) -> None:
        crowd = self._bridges[bridge]
        del crowd.guests[guest][session]
        if not crowd.guests[guest]:
            del crowd.guests[guest]
        crowd.of_service[key] -= 1
        crowd.of_guest[key, guest] -= 1
        if not crowd.of_guest[key, guest]:
            del crowd.of_guest[key, guest]
        crowd.count -= 1
        self.total -= 1

    def _per_bridge(self, service: Service) -> int:
        # One worker has all UDP services of a bridge, so these limits are not shared.
        return service.max_connections_per_bridge or max(self.most // 2, 1)
