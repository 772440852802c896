"""How many connections may be open: of one guest, of one bridge, to one endpoint, and in all. No I/O.

A guest is an address on a bridge. It always has the same worker (``relay.passing``), so what is counted for
it is exact. All other limits are those of the whole host, and each of the ``sharers`` workers has its share.

Each service has limits of its own. They bound the connections to that service. All services of a bridge
together are bound by the largest of their limits, so a guest does not get more by using more services.

**Fairness.** Whoever comes first could take all that there is. So the last quarter is shared out: when a
bridge has three quarters of its connections, a guest that has more than its part, which is the limit divided
by the number of guests that have connections, gets no more. So it is with the bridges of a worker whose
descriptors are used up to three quarters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tproxy.addresses import UNIX
from tproxy.datapath.counts import PER_BRIDGE, PER_GUEST, TO_ENDPOINT_LIMIT, TOTAL_LIMIT
from tproxy.datapath.target import Target
from tproxy.model import Endpoint, Service
from tproxy.typed import Any

NO_LIMIT = 1 << 31

# The part of the local ports that `auto` gives to one endpoint; the rest is for the host's own programs.
_PORTS_PART = 3, 4

# Seconds between two looks for connections that were silent for too long: a quarter of the shortest time-out,
# within these bounds. So a time-out is noticed at most half of itself late, or two seconds.
SWEEP_LEAST, SWEEP_MOST = 1.0, 60.0


class _Tally(dict[Any, int]):
    """How many there are of each key; a key of which there are none is missing."""

    def more(self, key: Any) -> None:
        self[key] = self.get(key, 0) + 1

    def less(self, key: Any) -> None:
        left = self[key] - 1
        if left:
            self[key] = left
        else:
            del self[key]


_NONE = _Tally()


class Limits:
    """The limits of one worker. ``room`` is how many connections its descriptors allow."""

    def __init__(self, room: int = NO_LIMIT) -> None:
        self._room = room
        self._sharers = 1
        self._total_most = NO_LIMIT
        self._auto_to_endpoint = NO_LIMIT
        self._services: dict[str, Sequence[Service]] = {}
        self._most: dict[str, tuple[int, int]] = {}  # of a guest and in all, by bridge
        self._guests: dict[str, _Tally] = {}  # open connections by bridge and address
        self._bridges = _Tally()
        self._visits = _Tally()  # by service and address
        self._endpoints = _Tally()
        self.total = 0
        self.sweep = SWEEP_MOST  # seconds, see SWEEP_LEAST

    def set(self, sharers: int, max_connections: int, ports: tuple[int, int]) -> None:
        """Take over what counts for the host. ``ports`` are as ``this_host.chosen_ports`` returns them."""
        self._sharers = sharers
        self._total_most = self._share(max_connections) if max_connections else NO_LIMIT
        part, whole = _PORTS_PART
        self._auto_to_endpoint = self._share(max((ports[1] - ports[0] + 1) * part // whole, 1))
        for bridge, services in self._services.items():
            self._measure(bridge, services)

    def serve(self, bridge: str, services: Sequence[Service]) -> None:
        """Take over the services of a bridge as they are now."""
        self._services[bridge] = services
        self._measure(bridge, services)
        times = [
            each
            for services in self._services.values()
            for service in services
            for each in (service.idle_timeout, service.half_closed_timeout, service.drain_timeout)
            if each
        ]
        self.sweep = max(SWEEP_LEAST, min(SWEEP_MOST, min(times, default=SWEEP_MOST) / 4))

    def forget(self, bridge: str) -> None:
        """Forget the limits of a bridge that has no services any more."""
        self._services.pop(bridge, None)
        self._most.pop(bridge, None)

    def refusal(self, target: Target, address: str) -> tuple[int, int] | None:
        """Return why a guest may not have one more connection: the cause, and the number that it is at.

        None when it may.
        """
        bridge, service = target.bridge, target.service
        of_guest, of_bridge = self._most.get(bridge) or (NO_LIMIT, NO_LIMIT)
        guests = self._guests.get(bridge, _NONE)
        has = guests.get(address, 0)
        if has >= of_guest:
            return PER_GUEST, has
        visits = self._visits.get((target, address), 0)
        if visits >= (service.max_connections_per_guest or NO_LIMIT):
            return PER_GUEST, visits
        on_bridge = self._bridges.get(bridge, 0)
        if on_bridge >= of_bridge:
            return PER_BRIDGE, on_bridge
        if target.open >= self._per_bridge(service):
            return PER_BRIDGE, target.open
        if on_bridge * 4 >= of_bridge * 3 and has * len(guests) > of_bridge:
            return PER_GUEST, has
        if self.total * 4 >= self._room * 3 and on_bridge * len(self._bridges) > self._room:
            return PER_BRIDGE, on_bridge
        if not service.endpoints:
            to_endpoint = self._endpoints.get(service.endpoint, 0)
        else:
            port = service.endpoint.port
            to_endpoint = min(
                self._endpoints.get((each, 0 if each.startswith(UNIX) else port), 0)
                for each in service.endpoints
            )
        if to_endpoint >= self.most_to_endpoint(service):
            return TO_ENDPOINT_LIMIT, to_endpoint
        if self.total >= self._total_most:
            return TOTAL_LIMIT, self.total
        return None

    def add(self, target: Target, address: str, endpoint: Endpoint) -> None:
        """Count a connection that was accepted."""
        self.total += 1
        bridge = target.bridge
        guests = self._guests.get(bridge)
        if guests is None:
            guests = self._guests[bridge] = _Tally()
        guests.more(address)
        self._bridges.more(bridge)
        self._visits.more((target, address))
        self._endpoints.more(endpoint)

    def remove(self, target: Target, address: str, endpoint: Endpoint) -> None:
        """Count a connection no more, which has ended."""
        self.total -= 1
        bridge = target.bridge
        guests = self._guests[bridge]
        guests.less(address)
        if not guests:
            del self._guests[bridge]
        self._bridges.less(bridge)
        self._visits.less((target, address))
        self._endpoints.less(endpoint)

    def move(self, before: Endpoint, after: Endpoint) -> None:
        """Count an open connection for another endpoint."""
        if before != after:
            self._endpoints.less(before)
            self._endpoints.more(after)

    def most_to_endpoint(self, service: Service) -> int:
        """Return how many connections may lead to one endpoint of the service."""
        most = service.max_connections_to_endpoint
        return self._share(most) if most else self._auto_to_endpoint

    @property
    def to_endpoints(self) -> Mapping[Any, int]:
        """The open connections by endpoint; one without any is missing."""
        return self._endpoints

    def _measure(self, bridge: str, services: Sequence[Service]) -> None:
        of_guest = [each.max_connections_per_guest or NO_LIMIT for each in services]
        of_bridge = [self._per_bridge(each) for each in services]
        self._most[bridge] = max(of_guest, default=NO_LIMIT), max(of_bridge, default=NO_LIMIT)

    def _per_bridge(self, service: Service) -> int:
        # Each worker has descriptors of its own, so half of them is half of those of all workers.
        most = service.max_connections_per_bridge
        return self._share(most) if most else self._room // 2

    def _share(self, number: int) -> int:
        return -(-number // self._sharers)
