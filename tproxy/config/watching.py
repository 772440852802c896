"""Which bridges the watcher brings up, and how long they stay without guests. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tproxy.config.services import Config, WatchedBridge
from tproxy.errors import BadName
from tproxy.model import check_interface_name

# Seconds for which a bridge that only hooks bring up may wait for its guest: longer than a driver takes
# from its first call to the guest's port, since nobody would bring it up again.
HOOKED_GRACE = 600.0


def watched(bridge: str, bridges: Iterable[WatchedBridge]) -> WatchedBridge | None:
    """What the configuration says of a bridge: the first entry that names it."""
    try:
        check_interface_name(bridge)
    except BadName:
        return None
    return next((each for each in bridges if fnmatchcase(bridge, each.pattern)), None)


def grace(entry: WatchedBridge | None, config: Config, *, exists: bool) -> float:
    """How long a bridge without guests keeps its services, in seconds."""
    hooked = exists and entry is None
    return max(config.watch_grace, HOOKED_GRACE) if hooked else config.watch_grace
