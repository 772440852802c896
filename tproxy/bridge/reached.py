"""What guests of a bridge reach, by its service map. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.addresses import SERVICE_ADDRESS_IPV6
from tproxy.model import ServiceKey, ServiceMap


def keys(found: ServiceMap) -> tuple[ServiceKey, ...]:
    """Return address, protocol and port of all that guests reach: each once for all networks, sorted.

    On a bridge with IPv6 each port is at that address too.
    """
    listeners = [key.listener for key in sorted(found.services)]
    return tuple(dict.fromkeys((*listeners, *(_at_ipv6(listeners) if found.ipv6 else ()))))


def _at_ipv6(listeners: Iterable[ServiceKey]) -> Iterable[ServiceKey]:
    return (key._replace(address=SERVICE_ADDRESS_IPV6) for key in listeners)
