"""The hook that network drivers call: reads the configuration, then builds up a bridge or takes it down.

Nearly every VM start runs a hook that finds everything in order. So this module imports nothing that only
other runs need; those imports are inside the functions.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from tproxy.bridge import comments, nftables
from tproxy.bridge.members import NO_NICS, Nics
from tproxy.config import cache
from tproxy.config.file import required
from tproxy.config.services import Config
from tproxy.config.union import Offer
from tproxy.errors import ConfigError, NftError
from tproxy.kernel import links
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
    nics: Nics = NO_NICS  # of the guest, as far as the caller knows them


def up(call: Call) -> list[str]:
    """Have the configured services on the bridge. Their ports listen when this returns.

    Returns the lines of a dry run. Raises TproxyError; then the bridge is as it was before.
    """
    read = cache.load(required(call.config, os.environ), remember=not call.dry_run)
    _log_as(call, read.log_style)
    bridge, network = links.real_name(call.bridge), call.network
    uplinks = links.real_names(call.uplinks)
    offer = Offer(read)
    offer.look_up([network])
    reconcile.check(bridge, uplinks)
    for warning in read.warnings:
        log.warning("%s", warning.at(read.path))
    own = offer.union({network: 1})
    if own.problems and not (own.services or own.routes):  # the map may tell what no name server does
        stored = comments.stored(network)
        found = nftables.read_map(bridge)
        own = offer.union({stored: found.orders.get(stored, 1) if found is not None else 1}, found)
    if not (own.services or own.routes):  # not an error: the configuration may serve other networks only
        for warning in own.problems:
            log.warning("%s", warning.at(read.path))
        _log_nothing(call, read)
        if not call.dry_run:
            with suppress(NftError):  # the hook has nothing else to do
                reconcile.note_guest(bridge, network, call.nics, offer)
    elif call.dry_run:
        from tproxy.operations import preview

        return preview.up(bridge, network, call.nics, offer, uplinks, read.settings)
    else:
        reconcile.up(bridge, network, call.nics, offer, uplinks, read.settings)
    return []


def down(call: Call) -> tuple[list[str], frozenset[str]]:
    """Remove what ``up`` built, also when the bridge itself is gone.

    Returns the lines of a dry run, and the guests because of which nothing was done, or would be done.
    Raises TproxyError.
    """
    _log_as(call, DEFAULT_LEVEL)
    # When the bridge is gone, its name may be an alternative name of something else by now.
    bridge = real if links.is_bridge(real := links.real_name(call.bridge)) else call.bridge
    uplinks = call.uplinks | links.real_names(call.uplinks)
    if call.dry_run:
        from tproxy.operations import preview

        return preview.down(bridge, uplinks, partial(_offer, call), force=call.force, nics=call.nics)
    from tproxy.operations import removal  # `up` does not need it

    guests = removal.down(bridge, uplinks, partial(_offer, call), force=call.force, nics=call.nics)
    if guests:
        log.info("%s", left_alone(bridge, guests))
    return [], guests


def _offer(call: Call) -> Offer | None:
    """The configuration for the guests that a ``down`` leaves; None when it cannot be used."""
    try:
        return Offer(cache.load(required(call.config, os.environ), remember=False))
    except ConfigError as error:
        log.warning("%s; no service of guests that are left is changed", error)
        return None


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
