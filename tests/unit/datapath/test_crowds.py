"""Which UDP session ends to make room for another."""

from __future__ import annotations

from typing import Any, cast

from tproxy.datapath.counts import PER_BRIDGE, PER_GUEST, TOTAL_LIMIT
from tproxy.datapath.crowds import Crowds
from tproxy.model import Endpoint, Service, ServiceKey

DNS, NTP = ServiceKey(53, "udp"), ServiceKey(123, "udp")


def service(key: ServiceKey, per_guest: int = 1024, per_bridge: int = 0) -> Service:
    limits = {"max_connections_per_guest": per_guest, "max_connections_per_bridge": per_bridge}
    return Service(key, Endpoint("10.0.0.53", 53), **cast("Any", limits))


class Session:
    """As much of a session as counts here."""

    def __init__(self, name: str, key: ServiceKey) -> None:
        self.name = name
        self.key = key


class Players:
    """Sessions by name, of services with limits."""

    def __init__(self, *services: Service, room: int = 1000) -> None:
        self.crowds = Crowds(room)
        self.services = {each.key: each for each in services}
        self.guests: dict[Any, tuple[str, str]] = {}
        for bridge in ("br0", "br1"):
            self.crowds.serve(bridge, services)

    def come(
        self, name: str, guest: str, key: ServiceKey = DNS, bridge: str = "br0"
    ) -> tuple[str, int] | None:
        """Add a session; return the name of the one that ended for it, and the cause."""
        found = self.crowds.in_the_way(bridge, self.services[key], guest)
        if found is not None:
            ended = cast("Any", found[0])
            where, of = self.guests.pop(ended)
            self.crowds.remove(where, ended.key, of, ended)
        session = cast("Any", Session(name, key))
        self.guests[session] = bridge, guest
        self.crowds.add(bridge, key, guest, session)
        return (cast("Any", found[0]).name, found[1]) if found is not None else None

    def use(self, name: str) -> None:
        session, (bridge, guest) = next(each for each in self.guests.items() if each[0].name == name)
        self.crowds.used(bridge, guest, session)


def test_a_guest_at_its_limit_loses_what_it_used_least_recently() -> None:
    players = Players(service(DNS, per_guest=2))
    assert players.come("a", "one") is players.come("b", "one") is players.come("c", "two") is None
    players.use("a")
    assert players.come("d", "one") == ("b", PER_GUEST)


def test_the_limit_of_a_service_ends_sessions_of_that_service_only() -> None:
    players = Players(service(DNS, per_guest=2), service(NTP, per_guest=100))
    players.come("time", "one", NTP)
    players.come("a", "one")
    players.come("b", "one")
    assert players.come("c", "one") == ("a", PER_GUEST)


def test_all_services_together_are_bound_by_the_largest_limit() -> None:
    players = Players(service(DNS, per_guest=2), service(NTP, per_guest=3))
    for name, key in (("a", DNS), ("b", DNS), ("c", NTP)):
        assert players.come(name, "one", key) is None
    assert players.come("d", "one", NTP) == ("a", PER_GUEST)


def test_on_a_full_bridge_the_guest_with_the_most_loses_one() -> None:
    players = Players(service(DNS, per_bridge=3))
    for name, guest in (("a", "modest"), ("b", "greedy"), ("c", "greedy")):
        players.come(name, guest)
    assert players.come("d", "new") == ("b", PER_BRIDGE)
    assert players.crowds.total == 3


def test_on_a_full_host_the_bridge_with_the_most_loses_one() -> None:
    players = Players(service(DNS, per_bridge=100), room=3)
    players.come("a", "one")
    players.come("b", "two", bridge="br1")
    players.come("c", "two", bridge="br1")
    assert players.come("d", "one") == ("b", TOTAL_LIMIT)


def test_sessions_of_all_workers_take_half_of_the_local_ports() -> None:
    players = Players(service(DNS), room=1 << 20)
    players.crowds.set(4, (32768, 60999))
    assert players.crowds.most == 28232 // 2 // 4
