"""Name resolution of the mirror: upstream names must not lead to inner machines.

A name is judged after it was resolved, and the connection goes to the addresses that were judged: so a name
whose answer changes in between gains nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from tproxy.egress.own_addresses import own_addresses
from tproxy.egress.policy.addresses import refused
from tproxy.egress.policy.rules import IPNetwork


class Resolver(AbstractResolver):
    """Resolves names, and leaves out refused addresses. Raises OSError when none is left."""

    def __init__(self, allowed: Collection[IPNetwork]) -> None:
        self._allowed = allowed
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        own = own_addresses()
        kept = [each for each in found if not refused(each["host"].partition("%")[0], self._allowed, own)]
        if not kept:
            raise OSError(f"{host} has an inner address ({found[0]['host']}), which the policy does not name")
        return kept

    async def close(self) -> None:
        await self._inner.close()
