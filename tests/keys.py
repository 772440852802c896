"""Keys of plain services, for tests."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.model import ServiceKey


def keys(*ports: int) -> tuple[ServiceKey, ...]:
    """Return the keys of plain services at these ports, in their order."""
    return keys_of(ports)


def keys_of(ports: Iterable[int]) -> tuple[ServiceKey, ...]:
    return tuple(map(ServiceKey, ports))
