"""Tells by its kind whether a port of a bridge leads off this host.

The kind is IFLA_INFO_KIND, which rtnetlink reports for each link (``ip -d link`` shows it). Hardware has
none, and is known by its device in sysfs. drivers/opennebula/tproxy_hook.py has the same tables, because it
runs without this package.
"""

import os
import socket

from tproxy.kernel import rtnetlink

_SYS = "/sys/class/net"

# Links on hardware or on other links, tunnels, and links that join others. A guest is behind none of them.
# Behind dummy and ifb is nobody: they are here so that they do not keep a bridge up.
UPLINK_KINDS = frozenset(
    {
        *("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", "bond", "team", "hsr", "dsa", "batadv"),
        *("vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp", "dummy", "ifb"),
    }
)
# Links of guests. They are the many, so nothing more is looked up for them.
GUEST_KINDS = frozenset({"veth", "tun"})

# DEVTYPE, in the file uevent in sysfs, of links that have no kind.
UPLINK_TYPES = frozenset({"l2tpeth", "wlan"})


# `tproxy probe` attaches a port for some seconds, which is neither guest nor uplink. Its name begins so, and
# its description (IFLA_IFALIAS) tells it from another program's link of such a name.
PROBE_PREFIX = "tpprobe"
PROBE_ALIAS = "probe of tproxy"


def probes(ports: frozenset[str]) -> frozenset[str]:
    """Those of the ``ports`` that `tproxy probe` attached. Raises OSError."""
    return frozenset(
        port
        for port in ports
        if port.startswith(PROBE_PREFIX)
        and (found := rtnetlink.link(port)) is not None
        and found.alias == PROBE_ALIAS
    )


def uplinks(bridge: str, ports: frozenset[str]) -> frozenset[str]:
    """Those of the bridge's ``ports`` that lead off this host, by their kind. Raises OSError."""
    try:
        kinds = (
            {each.name: each.kind for each in rtnetlink.links(socket.if_nametoindex(bridge))} if ports else {}
        )
    except OSError:
        if os.path.exists(f"{_SYS}/{bridge}"):
            raise
        return frozenset()  # the bridge is gone by now
    return frozenset(port for port in ports if _leads_off_host(port, kinds.get(port, "")))


def _leads_off_host(port: str, kind: str) -> bool:
    if kind in GUEST_KINDS:
        return False
    if kind in UPLINK_KINDS or os.path.exists(f"{_SYS}/{port}/device"):
        return True
    try:
        with open(f"{_SYS}/{port}/uevent") as file:
            words = dict(line.strip().partition("=")[::2] for line in file)
    except FileNotFoundError:
        return False  # the port is gone by now
    return words.get("DEVTYPE") in UPLINK_TYPES
