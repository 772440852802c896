"""Whom a trace follows, and on which bridges: what the operator asked for, and what the host has for it."""

from __future__ import annotations

import os
from typing import NamedTuple

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6
from tproxy.bridge import nftables
from tproxy.bridge.plumbing import require_bridge
from tproxy.errors import KernelError, TproxyError
from tproxy.kernel import links
from tproxy.model import ServiceKey, ServiceMap
from tproxy.names import BridgeNames
from tproxy.trace.attempt import FROM_GUEST, FROM_US, TO_GUEST, TO_US
from tproxy.trace.frames import Frame
from tproxy.trace.marking import Followed

# Each takes a descriptor, and some memory of the kernel.
MOST_PORTS = 1000


class Wish(NamedTuple):
    """One of ``address``, ``mac`` and ``port`` is set; ``bridge`` may be empty."""

    address: str = ""
    mac: str = ""
    port: str = ""
    bridge: str = ""

    @property
    def words(self) -> list[str]:
        """Whom workers are asked about (``datapath.choice``)."""
        if self.address:
            return [f"guest={self.address}/{128 if ':' in self.address else 32}"]
        return [f"mac={self.mac}"] if self.mac else []

    @property
    def text(self) -> str:
        """Who is followed, in words."""
        return self.address or self.mac or f"port {self.port}"

    def followed(self, services: frozenset[str]) -> Followed:
        """Whose frames nftables marks."""
        port, mac, address = ([each] if each else [] for each in (self.port, self.mac, self.address))
        return Followed(port, mac, address, services)

    def wants(self, frame: Frame, where: str) -> bool:
        """Whether a frame at one of the four places is of the guest, as far as it can tell."""
        if self.mac:
            return self.mac == (frame.source_mac if where in (FROM_GUEST, TO_US) else frame.target_mac) or (
                where in (TO_GUEST, FROM_US) and frame.to_group
            )
        return not self.address or self.address in (frame.source, frame.target)


class Served(NamedTuple):
    """A bridge that is followed: its service addresses, and the keys of its services."""

    bridge: str
    addresses: frozenset[str]
    keys: frozenset[ServiceKey]

    @property
    def ours(self) -> str:
        return BridgeNames(self.bridge).veth_bridge

    def has(self, key: ServiceKey) -> bool:
        """Whether the bridge has this service, for some network; at its IPv6 address are all services."""
        if ":" in key.address:
            return any((each.port, each.protocol) == (key.port, key.protocol) for each in self.keys)
        return key in self.keys


def served(wish: Wish) -> list[Served]:
    """The bridges to look at. Raises TproxyError when there is none, or not what was asked for."""
    bridge = wish.bridge
    if bridge:
        require_bridge(bridge)
    if wish.port:
        bridge = _bridge_of(wish)
    maps = nftables.read_maps([bridge] if bridge else None)
    if not maps:
        raise TproxyError(f"bridge {bridge} has no service map" if bridge else "no bridge has a service map")
    found = [describe(each) for each in maps]
    if sum(len(links.ports(each.bridge)) for each in found) > MOST_PORTS:
        raise TproxyError(f"more than {MOST_PORTS} ports could be the guest's: name its bridge or port")
    return found


def describe(map_: ServiceMap) -> Served:
    """What a trace has to know of a bridge's map."""
    keys = frozenset(each.listener for each in map_.services)
    addresses = {SERVICE_ADDRESS, *(each.address for each in keys)}
    if map_.ipv6:
        addresses.add(SERVICE_ADDRESS_IPV6)
    return Served(map_.bridge, frozenset(addresses), keys)


def _bridge_of(wish: Wish) -> str:
    """The bridge of the port. Raises KernelError."""
    if not links.exists(wish.port):
        raise KernelError(f"link {wish.port} does not exist")
    try:
        bridge = os.path.basename(os.readlink(f"/sys/class/net/{wish.port}/master"))
    except OSError:
        bridge = ""
    if not bridge or not links.is_bridge(bridge):
        raise KernelError(f"{wish.port} is no port of a bridge")
    if wish.bridge not in ("", bridge):
        raise KernelError(f"{wish.port} is a port of {bridge}, not of {wish.bridge}")
    if wish.port == BridgeNames(bridge).veth_bridge:
        raise KernelError(f"{wish.port} is our own port of {bridge}, not a guest's")
    return bridge
