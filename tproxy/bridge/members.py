"""Which guest of a bridge belongs to which network, as guests come and go. Pure.

A guest is a NIC, and its MAC stands for it: a VM with two NICs on two networks of one bridge counts for both.
The set ``gu_<bridge>`` (docs/contract.md, nftables is the database) holds the members, so every hook can tell
which networks have guests, and which network came first.

A hook that names no MAC stands for guests of which nobody tells when they go. Its network gets one member, at
an address derived from the network, which stays until the bridge is taken down. A map without a set was
loaded before there were members, or by another program; its network gets such a member too.

A card is a port of the bridge and the MAC behind it, as a hook named them (the set ``pt_<bridge>``). The MAC
is that of a member, which tells the network. A port that a hook named without a MAC has the address that
stands for the guests of its network.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from tproxy.bridge import comments
from tproxy.model import Member, Network, ServiceMap
from tproxy.typed import NamedTuple

# Locally administered (bit 1 of the first byte), so no manufacturer gives such an address to a NIC.
STAND_IN = "0a:fe"

Members = Mapping[str, Member]


class Nics(NamedTuple):
    """What a hook tells of a guest: the MACs of its NICs, and the ports, each with a MAC, or "" for none."""

    macs: frozenset[str] = frozenset()
    ports: frozenset[tuple[str, str]] = frozenset()


NO_NICS = Nics()


def address_of(network: Network) -> str:
    """Return the address that stands for the guests of a network whose MACs no hook named."""
    name, number = (each.encode(errors="surrogateescape") for each in comments.stored(network))
    digits = f"{zlib.crc32(number + bytes(1) + name):08x}"
    return ":".join([STAND_IN, *(digits[at : at + 2] for at in range(0, 8, 2))])


def is_stand_in(mac: str, network: Network) -> bool:
    """Return whether a member's address stands for guests whose MACs no hook named."""
    return mac.startswith(STAND_IN) and mac == address_of(network)


def unnamed(found: ServiceMap) -> list[Network]:
    """Return the networks with guests that hooks named neither by MAC nor by port."""
    named = {mac for _, mac in found.cards}
    return [
        each.network
        for mac, each in (found.members or {}).items()
        if mac not in named and is_stand_in(mac, each.network)
    ]


def after_join(
    found: ServiceMap | None, wanted: ServiceMap, network: Network, nics: Nics, *, anew: bool = False
) -> ServiceMap:
    """Return ``wanted`` with the members and cards of a bridge after a guest of this network came.

    ``found`` is the bridge's map. What hooks said before of these MACs and ports counts no more.
    """
    named = nics.macs | {mac for _, mac in nics.ports if mac}
    if any(not mac for _, mac in nics.ports):
        named |= {address_of(comments.stored(network))}
    members = join(found, network, named, anew=anew)
    new = {(port, mac or address_of(comments.stored(network))) for port, mac in nics.ports}
    ports = {port for port, _ in new}
    kept = {
        (port, mac)
        for port, mac in (found.cards if found is not None else ())
        if port not in ports and (mac not in nics.macs) and mac in members
    }
    return wanted._replace(members=members, cards=frozenset(kept | new))


def after_leave(found: ServiceMap, nics: Nics) -> ServiceMap:
    """Return the map with the members and cards of a bridge after a guest has gone. Its services stay."""
    ports = {port for port, _ in nics.ports}
    gone = nics.macs | {mac for _, mac in nics.ports}
    for port, mac in found.cards:
        member = (found.members or {}).get(mac)
        if port in ports and member is not None and not is_stand_in(mac, member.network):
            gone |= {mac}
    members = leave(found, gone)
    kept = {(port, mac) for port, mac in found.cards if port not in ports and mac in members}
    return found._replace(members=members, cards=frozenset(kept))


def join(
    found: ServiceMap | None, network: Network, macs: Iterable[str], *, anew: bool = False
) -> dict[str, Member]:
    """Return the members of a bridge after a guest of this network came, with NICs of these addresses.

    ``found`` is the bridge's map. A guest that was a member of another network is of this one now. With
    ``anew``, so are all guests whose addresses no hook named.
    """
    network = comments.stored(network)
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
