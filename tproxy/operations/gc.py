"""Finds and removes what hooks built for bridges that are gone, or have no guests.

A platform does not always call ``hook down``: a guest shuts down from inside, a migration fails after the
target's hook ran, a host is not asked to clean up. Only what hooks made is looked for, see
``removal.left_behind``.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.bridge import nftables, plumbing
from tproxy.config.services import WatchedBridge
from tproxy.config.watching import watched
from tproxy.errors import BadName
from tproxy.kernel import links, netns
from tproxy.names import BridgeNames, check_interface_name
from tproxy.operations import preview, removal
from tproxy.process import run_directory


class Leftover(NamedTuple):
    """A bridge that nobody needs any more."""

    bridge: str
    uplinks: frozenset[str]
    removal: list[str]  # the actions that remove it, in words


def look(bridge: str, bridges: tuple[WatchedBridge, ...], unused_for: float) -> Leftover | None:
    """What can be removed of a bridge now; None when it is in use, or not ours.

    ``bridges`` is the configuration's list: it names uplinks, which are not guests. ``unused_for`` is the
    time in seconds for which no hook must have wanted the bridge. Raises NftError and KernelError.
    """
    entry = watched(bridge, bridges)
    uplinks = links.real_names(entry.uplinks) if entry else frozenset()
    observed = plumbing.observe(bridge)
    if not removal.left_behind(bridge, observed, uplinks, unused_for):
        return None
    return Leftover(bridge, uplinks, preview.removal_lines(bridge, observed))


def remove(leftover: Leftover, unused_for: float) -> bool:
    """Remove it, if nobody needs it still; return whether it was removed."""
    return removal.collect(leftover.bridge, leftover.uplinks, unused_for)


def candidates() -> list[str]:
    """The names of all bridges for which the host has anything, sorted."""
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
