"""Finds service addresses of a bridge that the host itself has there, or reaches there.

A hypervisor that is a virtual machine in a cloud has its own 169.254.169.254, or a route to it. tproxy takes
neither from it. But guests of the bridge reach the service at that address and no longer the host. And where
the host reaches the address through a port that counts as a guest's, the guards drop the answers as forged
(docs/contract.md, Further service addresses). That needs an operator's eye.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from tproxy.kernel import rtnetlink


def conflicts(bridge: str, addresses: Collection[str], *, uplinks: bool) -> list[str]:
    """Return, in words, what is wrong with each of these service addresses on this bridge; none as a rule.

    ``uplinks``: whether the bridge has one. Looks only at the bridge's own addresses and routes, not at those
    of VLANs above it. Returns nothing where the kernel does not tell.
    """
    try:
        index = socket.if_nametoindex(bridge)
        own = {each.partition("/")[0] for each in rtnetlink.addresses(index)}
        return [text for each in sorted(addresses) if (text := _conflict(bridge, index, each, own, uplinks))]
    except OSError:
        return []


def _conflict(bridge: str, index: int, address: str, own: Collection[str], uplinks: bool) -> str:
    if address in own:
        return f"the host itself has {address} at {bridge}: guests there reach the service and not the host"
    if ":" in address or uplinks:
        return ""
    found = rtnetlink.route(address)
    if found is None or found.local or found.length == 0 or found.link != index:
        return ""
    return (
        f"the host itself reaches {address} through {bridge}, which has no uplink: the guards drop answers "
        "from a port that counts as a guest's; name it as an uplink"
    )
