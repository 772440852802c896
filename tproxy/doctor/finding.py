"""The finding: what one check says of the host or of a bridge, in one line. Pure.

``good`` needs nobody. ``warning`` works, and may stop to, or works with less than it could have. ``bad`` does
not do what it should. ``repair`` is a command that an operator can run; where people have to decide, it is
the command that shows what there is to decide.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from tproxy.errors import to_ascii
from tproxy.model import Network, ServiceMap
from tproxy.typed import NamedTuple

GOOD, WARNING, BAD = "good", "warning", "bad"
LEVELS = (GOOD, WARNING, BAD)

# Every check, in the order in which a report has them. docs/doctor.md explains each.
HOST_FIRST = (
    "mounts",
    "nftables",
    "kernel",
    "run-directory",
    "configuration",
    "names",
    "maps",
    "daemon",
    "workers",
    "watcher",
)
BRIDGE = (
    "bridge",
    "strangers",
    "map",
    "namespace",
    "veth",
    "port",
    "mtu",
    "address",
    "route",
    "sysctls",
    "stp",
    "vlan",
    "isolation",
    "flooding",
    "forwarding",
    "off-loading",
    "uplinks",
    "guards",
    "host-firewall",
    "agents",
    "relay",
    "listening",
    "wall",
    "networks",
    "file",
    "endpoint",
    "limits",
)
HOST_LAST = ("descriptors", "neighbours", "locks", "logs", "leftovers", "egress")
CHECKS = (*HOST_FIRST, *BRIDGE, *HOST_LAST)


class Finding(NamedTuple):
    """What a check found. ``bridge`` is "" for what concerns the whole host."""

    check: str
    level: str
    text: str
    repair: str = ""
    bridge: str = ""

    def __str__(self) -> str:
        where = f"{self.bridge} {self.check}" if self.bridge else self.check
        repair = f"; repair: {self.repair}" if self.repair else ""
        return to_ascii(f"{self.level:8} {where}: {self.text}{repair}")


def good(check: str, text: str) -> Finding:
    return Finding(check, GOOD, text)


def warning(check: str, text: str, repair: str = "") -> Finding:
    return Finding(check, WARNING, text, repair)


def bad(check: str, text: str, repair: str = "") -> Finding:
    return Finding(check, BAD, text, repair)


def worst(findings: Iterable[Finding]) -> str:
    """The worst level among the findings; good for none."""
    return max((each.level for each in findings), key=LEVELS.index, default=GOOD)


# What the operator fills in where nothing on the host tells it.
UNKNOWN = Network("NETWORK")


def hook_up(
    bridge: str,
    found: ServiceMap | None,
    network: Network = UNKNOWN,
    uplinks: Iterable[str] = (),
    config: str | None = None,
) -> str:
    """The command that repairs everything about a bridge, and changes none of its networks.

    ``found`` is its service map, which names network and guest; without one ``network`` is the bridge's.
    """
    words = ["tproxy", "hook", "up", "--bridge", bridge]
    if found is not None:
        network = found.networks[0]
    if network.name:
        words += ["--network", network.name]
    if network.id:
        words += ["--network-id", network.id]
    # Without an address, `up` would note a guest of which nobody tells when it goes.
    members = (found.members if found is not None else None) or {}
    mac = next((mac for mac, each in sorted(members.items()) if each.network == network), None)
    if found is not None and mac is not None:
        words += ["--mac", mac]
        words += [word for port, at in sorted(found.cards) if at == mac for word in ("--port", port)]
    for each in sorted(uplinks):
        words += ["--uplink", each]
    if config is not None:
        words += ["--config", config]
    return shlex.join(words)
