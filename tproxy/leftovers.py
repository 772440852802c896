"""What hooks left behind: of bridges that are gone, or whose guests are, or never came.

A hook can be missed: a guest shuts down from inside, a migration fails behind the target's hook, a
host is not asked to clean up. Only what hooks made is looked for, see ``hook.left_behind``.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy import hook, instance, netns, nft, plumbing, preview
from tproxy.attend import watched
from tproxy.config import WatchedBridge
from tproxy.errors import BadName, TproxyError
from tproxy.model import BridgeNames, check_interface_name


class Leftover(NamedTuple):
    bridge: str
    uplinks: frozenset[str]
    removal: list[str]  # what there is to do, in words
    problem: str = ""  # why that cannot be told


def find(bridges: tuple[WatchedBridge, ...], unused_for: float) -> list[Leftover]:
    """All that can be removed now; ``bridges`` name uplinks, which are not guests.

    A bridge that cannot be looked at does not stop the others.
    """
    found = []
    for bridge in sorted(_candidates()):
        entry = watched(bridge, bridges)
        uplinks = entry.uplinks if entry else frozenset()
        try:
            observed = plumbing.observe(bridge)
        except TproxyError as error:
            found.append(Leftover(bridge, uplinks, [], str(error)))
            continue
        if hook.left_behind(bridge, observed, uplinks, unused_for):
            found.append(Leftover(bridge, uplinks, preview.removal(bridge, observed)))
    return found


def remove(leftover: Leftover, unused_for: float) -> bool:
    """Returns whether it was there still, and is gone now."""
    return hook.collect(leftover.bridge, leftover.uplinks, unused_for)


def _candidates() -> set[str]:
    prefix = BridgeNames("x").namespace.removesuffix("x")
    names = {name.removeprefix(prefix) for name in netns.names() if name.startswith(prefix)}
    names |= {each.bridge for each in nft.read_maps()} | nft.read_guards().keys() | set(instance.used())
    return set(filter(_is_bridge_name, names))


def _is_bridge_name(name: str) -> bool:
    try:
        check_interface_name(name)
    except BadName:
        return False
    return True
