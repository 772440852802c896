"""What hooks left behind: of bridges that are gone, or whose guests are, or never came.

A hook can be missed: a guest shuts down from inside, a migration fails behind the target's hook, a
host is not asked to clean up. Only what hooks made is looked for, see ``hook.left_behind``.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.bridge import nftables, plumbing
from tproxy.config.services import WatchedBridge
from tproxy.config.watching import watched
from tproxy.errors import BadName
from tproxy.kernel import netns
from tproxy.model import BridgeNames, check_interface_name
from tproxy.operations import preview, reconcile
from tproxy.process import run_directory


class Leftover(NamedTuple):
    bridge: str
    uplinks: frozenset[str]
    removal: list[str]  # what there is to do, in words


def look(bridge: str, bridges: tuple[WatchedBridge, ...], unused_for: float) -> Leftover | None:
    """What can be removed now of a bridge; ``bridges`` name uplinks, which are not guests."""
    entry = watched(bridge, bridges)
    uplinks = entry.uplinks if entry else frozenset()
    observed = plumbing.observe(bridge)
    if not reconcile.left_behind(bridge, observed, uplinks, unused_for):
        return None
    return Leftover(bridge, uplinks, preview.removal(bridge, observed))


def remove(leftover: Leftover, unused_for: float) -> bool:
    """Returns whether it was there still, and is gone now."""
    return reconcile.collect(leftover.bridge, leftover.uplinks, unused_for)


def candidates() -> list[str]:
    """Bridges of which there is anything at all."""
    prefix = BridgeNames("x").namespace.removesuffix("x")
    names = {name.removeprefix(prefix) for name in netns.names() if name.startswith(prefix)}
    names |= (
        {each.bridge for each in nftables.read_maps()}
        | nftables.read_guards().keys()
        | set(run_directory.used())
    )
    return sorted(filter(_is_bridge_name, names))


def _is_bridge_name(name: str) -> bool:
    try:
        check_interface_name(name)
    except BadName:
        return False
    return True
