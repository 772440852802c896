"""The guest of a probe: a network namespace without a name, and a port of the bridge that leads to it.

The kernel removes both when the process ends, however it ends. So a probe that is killed leaves nothing, and
two at once have nothing in common: the port's name and the addresses are random. The port's description tells
it from other links (``kernel.kinds.probes``); it counts neither as guest nor as uplink. It has the bridge's
MTU and a high MAC, so that the bridge keeps its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.kernel import links, nameless
from tproxy.kernel.kinds import PROBE_ALIAS, PROBE_PREFIX

LINK = "eth0"

# Above addresses.PORT_MAC: a bridge takes the lowest MAC of its ports for its own.
_PORT_MAC_PREFIX = "fe:ff:ff"
_GUEST_MAC_PREFIX = "02:74:70"  # locally administered


class Guest(NamedTuple):
    """A guest without a port of the bridge, see ``made``. ``fd`` is the descriptor of its namespace."""

    port: str
    fd: int
    mac: str
    address: str


@contextmanager
def made(bridge: str, address: str | None) -> Iterator[Guest]:
    """Make a guest for the bridge, with this address or a random one. Raises KernelError."""
    with nameless.namespace() as fd:
        # 8 hexadecimal digits: an interface name has no room for more.
        guest = Guest(PROBE_PREFIX + secrets.token_hex(4), fd, _mac(_GUEST_MAC_PREFIX), address or _address())
        macs = _mac(_PORT_MAC_PREFIX), guest.mac
        try:
            nameless.create_veth(guest.port, LINK, fd, PROBE_ALIAS, macs, links.mtu(bridge))
            with nameless.inside(fd):
                nameless.add_address(LINK, guest.address)
            yield guest
        finally:
            links.delete(guest.port)  # the kernel would do it too, some time later


def _mac(prefix: str) -> str:
    return f"{prefix}:{secrets.token_bytes(3).hex(':')}"


def _address() -> str:
    """A link-local address (RFC 3927, 2.1) that is not the service's. Guests' own are elsewhere."""
    while (found := f"169.254.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}") == SERVICE_ADDRESS:
        pass
    return found
