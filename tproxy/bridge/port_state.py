"""Reads whether guests get through to our port of a bridge, from a few small files in sysfs.

Every hook does this. So this module has no class and few imports, and ``obstacles``, which names what it is,
is imported only when something may keep guests out.
"""

import os

from tproxy.bridge import nftables
from tproxy.kernel import links
from tproxy.names import BridgeNames

_SYS = "/sys/class/net"
_BRIDGED_TO_IPTABLES = "bridge/bridge-nf-call-iptables"  # a sysctl, also a setting of each bridge
_LEGACY_TABLES = "/proc/net/ip_tables_names"

FORWARDING = 3  # BR_STATE_FORWARDING, <linux/if_bridge.h>


def nothing_in_the_way(bridge: str) -> bool:
    """Whether our port forwards, and the host has nothing by which guests could be kept out.

    Raises NftError.
    """
    ours = BridgeNames(bridge).veth_bridge
    return (
        master(ours) == bridge
        and state(ours) == FORWARDING
        and not links.filters_vlans(bridge)
        and not (shown_to_iptables(bridge) and (uses_legacy_filter() or nftables.forward_chains()))
    )


def master(port: str) -> str:
    """The bridge of which the link is a port; "" when it is none, or does not exist."""
    try:
        return os.path.basename(os.readlink(f"{_SYS}/{port}/brport/bridge"))
    except OSError:
        return ""


def state(port: str) -> int:
    """BR_STATE_..., <linux/if_bridge.h>. Only a port that is up, on a bridge that is up, is forwarding."""
    return int(read(f"{port}/brport/state") or FORWARDING)


def shown_to_iptables(bridge: str) -> bool:
    """Whether the host's firewall sees what the bridge forwards."""
    settings = links.sysctls([_BRIDGED_TO_IPTABLES]).get(_BRIDGED_TO_IPTABLES)
    return "1" in (settings, read(f"{bridge}/bridge/nf_call_iptables"))


def uses_legacy_filter() -> bool:
    """Whether this network namespace uses the table filter of iptables-legacy."""
    try:
        with open(_LEGACY_TABLES) as file:
            return "filter" in file.read().split()
    except OSError:
        return False


def read(path: str) -> str:
    """A file below /sys/class/net, "" when it cannot be read."""
    try:
        with open(f"{_SYS}/{path}") as file:
            return file.read().strip()
    except OSError:
        return ""
