"""Which guest of a bridge belongs to which network, as guests come and go. Pure.

A guest is a NIC, and its MAC stands for it: a VM with two NICs on two networks of one bridge counts for both.
The set ``gu_<bridge>`` (docs/contract.md, nftables is the database) holds the members, so every hook can tell
which networks have guests, and which network came first.

A hook that names no MAC stands for guests of which nobody tells when they go. Its network gets one member, at
an address derived from the network, which stays until the bridge is taken down. A map without a set was
loaded before there were members, or by another program; its network gets such a member too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from tproxy.bridge import service_map
from tproxy.model import Member, Network, ServiceMap

# Locally administered (bit 1 of the first byte), so no manufacturer gives such an address to a NIC.
STAND_IN = "0a:fe"

Members = Mapping[str, Member]


def address_of(network: Network) -> str:
    """Return the address that stands for the guests of a network whose MACs no hook named."""
    name, number = (each.encode(errors="surrogateescape") for each in service_map.stored(network))
    digits = f"{zlib.crc32(number + bytes(1) + name):08x}"
    return ":".join([STAND_IN, *(digits[at : at + 2] for at in range(0, 8, 2))])


def join(
    found: ServiceMap | None, network: Network, macs: Iterable[str], *, anew: bool = False
) -> dict[str, Member]:
    """Return the members of a bridge after a guest of this network came, with NICs of these addresses.

    ``found`` is the bridge's map. A guest that was a member of another network is of this one now. With
    ``anew``, so are all guests whose addresses no hook named.
    """
    network = service_map.stored(network)
    members = _known(found)
    if anew:
        members = {mac: each for mac, each in members.items() if mac != address_of(each.network)}
    named = sorted(macs)
    if network == Network() and not named:
        # Somebody repairs a bridge whose networks are known, and names none.
        return members or {address_of(network): Member(network)}
    # What belongs to no network has the services of every network, and so it has those of this one.
    members.pop(address_of(Network()), None)
    orders = {each.network: each.order for each in members.values()}
    order = orders.get(network) or max(orders.values(), default=0) + 1
    return members | dict.fromkeys(named or [address_of(network)], Member(network, order))


def leave(found: ServiceMap, macs: Iterable[str]) -> dict[str, Member]:
    """Return the members of a bridge after the guests with these addresses have gone."""
    gone = frozenset(macs)
    return {mac: each for mac, each in (found.members or {}).items() if mac not in gone}


def _known(found: ServiceMap | None) -> dict[str, Member]:
    if found is None:
        return {}
    if found.members is None and found.network != Network():
        return {address_of(found.network): Member(found.network)}
    return dict(found.members or {})
