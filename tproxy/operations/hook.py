"""The hook that network drivers call: reads the configuration, then builds up a bridge or takes it down.

Nearly every VM start runs a hook that finds everything in order. So this module imports nothing that only
other runs need; those imports are inside the functions.
"""

from __future__ import annotations

import os
from functools import partial

from tproxy.config import cache
from tproxy.config.file import required
from tproxy.config.resolver import services_for
from tproxy.config.services import Config
from tproxy.log.lazy import DEFAULT_LEVEL, logger, when_needed
from tproxy.model import Network
from tproxy.operations import reconcile
from tproxy.typed import NamedTuple

log = logger(__name__)


class Call(NamedTuple):
    """The arguments of one hook call. ``config`` is a path; None searches the usual places."""

    bridge: str
    network: Network = Network()
    uplinks: frozenset[str] = frozenset()
    config: str | None = None
    dry_run: bool = False
    force: bool = False
    debug: bool = False


def up(call: Call) -> list[str]:
    """Have the configured services on the bridge. Their ports listen when this returns.

    Returns the lines of a dry run. Raises TproxyError; then the bridge is as it was before.
    """
    read = cache.load(required(call.config, os.environ), remember=not call.dry_run)
    _log_as(call, read.log_level)
    bridge, network = call.bridge, call.network
    last_known = partial(reconcile.last_known, bridge, network)
    services, warnings = services_for(read, network, last_known=last_known)
    reconcile.check(bridge, call.uplinks)
    for warning in [*read.warnings, *warnings]:
        log.warning("%s", warning.at(read.path))
    if not services:  # not an error: the configuration may serve other networks only
        _log_nothing(call, read)
    elif call.dry_run:
        from tproxy.operations import preview

        return preview.up(bridge, network, services, call.uplinks, read.settings)
    else:
        reconcile.up(bridge, network, services, call.uplinks, read.settings)
    return []


def down(call: Call) -> tuple[list[str], frozenset[str]]:
    """Remove what ``up`` built, also when the bridge itself is gone.

    Returns the lines of a dry run, and the guests because of which nothing was done, or would be done.
    Raises TproxyError.
    """
    _log_as(call, DEFAULT_LEVEL)
    if call.dry_run:
        from tproxy.operations import preview

        return preview.down(call.bridge, call.uplinks, force=call.force)
    guests = reconcile.down(call.bridge, call.uplinks, force=call.force)
    if guests:
        log.info("%s", left_alone(call.bridge, guests))
    return [], guests


def left_alone(bridge: str, guests: frozenset[str]) -> str:
    """The message that a ``down`` did nothing because of these guests."""
    return f"bridge {bridge} is in use by {', '.join(sorted(guests))}: left alone"


def _log_as(call: Call, level: int) -> None:
    """Say where lines of the log go. ``logging`` is loaded only when there is one."""

    def set_up() -> None:
        from tproxy.log import output

        if call.dry_run:
            output.for_preview(debug=call.debug)
        else:
            output.for_command(level, debug=call.debug)

    when_needed(set_up)


def _log_nothing(call: Call, read: Config) -> None:
    """Tell the operator why the bridge gets no service."""
    where = call.bridge, str(read.path), call.network.name, call.network.id
    log.info("bridge %s: no entry of %a applies to network %a, id %a", *where)
