"""The bridges that the watcher brings up, and the time for which they stay up without guests. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tproxy.config.services import Config, WatchedBridge
from tproxy.errors import BadName
from tproxy.names import check_interface_name

# Seconds for which a bridge that only hooks bring up may wait for its guest. Longer than a driver takes from
# its first call to the guest's port, because nobody would bring the bridge up again.
HOOKED_GRACE = 600.0


def watched(bridge: str, bridges: Iterable[WatchedBridge]) -> WatchedBridge | None:
    """Return the first entry of tproxy_bridges whose pattern matches the bridge; None without one."""
    try:
        check_interface_name(bridge)
    except BadName:
        return None
    return next((each for each in bridges if fnmatchcase(bridge, each.pattern)), None)


def grace(entry: WatchedBridge | None, config: Config, *, exists: bool) -> float:
    """Return for how many seconds a bridge without guests keeps its services.

    ``entry`` is the bridge's entry of tproxy_bridges. ``exists`` is false when the bridge itself is gone.
    """
    hooked = exists and entry is None
    return max(config.watch_grace, HOOKED_GRACE) if hooked else config.watch_grace
