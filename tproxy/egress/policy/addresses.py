"""Which addresses of upstream hosts are refused: nobody outside gets the proxy to ask inside.

Names are judged before they are resolved, and addresses after: a name of the policy may point to an address
of this site, by accident or because its owner wants that.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv6Address, ip_address, ip_network

from tproxy.egress.policy.rules import IPNetwork

# Addresses that are no host of the internet (RFC 6890 and its successors; 169.254/16 holds the service
# address).
INNER: tuple[IPNetwork, ...] = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            # 2000::/3 is all that is given out of IPv6; 2002::/16 and 64:ff9b::/96 hold an IPv4 address.
            *("::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)


def refused(address: str, allowed: Collection[IPNetwork], own: Collection[str] = ()) -> str:
    """Return why no connection may be made to this address; "" when it may.

    ``own`` are this node's addresses.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return "is not an address"
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if any(found in network for network in allowed):
        return ""
    if str(found) in own:
        return "is an address of this node"
    if any(found in network for network in INNER):
        return "is a loopback, link-local, private or reserved address"
    return ""
