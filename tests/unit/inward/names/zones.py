"""Zones and routes for tests."""

from __future__ import annotations

from tproxy.config.routes import RouteEntry
from tproxy.inward.names.model import POWERDNS, Gateway, Server, Zone

SERVER = Server(POWERDNS, "http://127.0.0.1:8081", "/key")
GW1 = Gateway("gw1", ("192.0.2.1", "2001:db8::1"), ("ns1.example.net",))
GW2 = Gateway("gw2", ("192.0.2.2",))


def zone(domain: str, owner: str = "", *gateways: Gateway) -> Zone:
    return Zone(1, domain, gateways or (GW1,), SERVER, owner)


def route(id_: str, domain: str, owner: str = "", expires: int = 0) -> RouteEntry:
    return RouteEntry(
        1, id=id_, network="n", port=80, guest_addr="10.0.0.5", domain=domain, owner=owner, expires=expires
    )
