"""Says what a hook would do, in order and in words, and does none of it.

A dry run makes no files, so it does not take the host's lock: it may see the half-finished work of a hook
that is running.
"""

from __future__ import annotations

from collections.abc import Callable

from tproxy.bridge import comments, nftables, plan, plumbing
from tproxy.bridge.actions import CreateNamespace
from tproxy.bridge.members import NO_NICS, Nics
from tproxy.config.union import Offer
from tproxy.daemon import client, host_mounts
from tproxy.daemon.catalog import Catalog
from tproxy.log.lazy import logger
from tproxy.model import Network, ServiceMap, Settings
from tproxy.names import DAEMON_TITLE, TABLE, BridgeNames
from tproxy.operations import lost_table, reconcile, removal, steps
from tproxy.process import table

log = logger(__name__)


def up(
    bridge: str,
    network: Network,
    nics: Nics,
    offer: Offer,
    uplinks: frozenset[str],
    settings: Settings,
) -> list[str]:
    """What ``reconcile.up`` would do, a line each; no lines for a bridge that is in order."""
    observed = plumbing.usable(bridge)
    reconcile.warn_of_uplinks(bridge, observed, uplinks)
    wanted = reconcile.joined(bridge, observed.map, network, nics)
    offer.look_up(wanted.networks)
    union = offer.union(wanted.orders, observed.map)
    for problem in union.problems:
        log.warning("%s", problem.at(offer.config.path))
    wanted = comments.storable(union.applied(wanted))
    reconcile.warn_of_unnamed(observed.map, wanted, union)
    actions = plan.up(wanted, observed, uplinks)
    steps.require_host_mounts(actions)
    lines = [*_others_restored(observed, bridge), *map(str, actions)]
    found = table.find()
    if not client.daemon_answers():
        lines.append(f"start the daemon {DAEMON_TITLE}")
        if settings.watch_file and not found.watchers:
            lines.append(f"start the watcher {table.WATCHER_TITLE}")
    rebuilt = any(isinstance(each, CreateNamespace) for each in actions)
    if rebuilt or bridge not in dict(found.relays):
        lines.append(f"start relay {BridgeNames(bridge).relay_title}")
    known = Catalog()
    if observed.map is not None:
        known.apply(observed.map)
    return lines + known.apply(wanted)


def down(
    bridge: str,
    uplinks: frozenset[str],
    offer: Callable[[], Offer | None],
    *,
    force: bool,
    nics: Nics = NO_NICS,
) -> tuple[list[str], frozenset[str]]:
    """What ``removal.down`` would do, a line each, and the guests that would keep the bridge up."""
    names = BridgeNames(bridge)  # raises BadName
    observed = plumbing.observe(bridge)
    guests = plan.guests(bridge, observed, uplinks)
    if guests and not force:
        return _guest_gone(observed.map, nics, offer), guests
    if left := removal.kept(bridge, observed):
        log.warning("%s", left)
    lines = removal_lines(bridge, observed)
    if lines and not any(each.bridge != names.bridge for each in nftables.read_maps()):
        lines.append(f"delete those of the tables {TABLE} that are empty then")
        if client.daemon_answers():
            lines.append(f"end the daemon {DAEMON_TITLE}, unless it is a service or keeps a watcher")
    return lines, frozenset()


def _guest_gone(found: ServiceMap | None, nics: Nics, offer: Callable[[], Offer | None]) -> list[str]:
    wanted = removal.remaining(found, nics)
    if found is None or wanted is None:
        return []
    made = offer() if removal.loses_network(found, wanted) else None
    if made is not None:
        made.look_up(wanted.networks)
        wanted = removal.served(found, wanted, made)
    known = Catalog()
    known.apply(found)
    return [f"load service map of {found.bridge}", *known.apply(wanted)]


def _others_restored(observed: plan.Observed, bridge: str) -> list[str]:
    if observed.map is not None or nftables.table_exists("ip"):
        return []
    others = [each.map.bridge for each in lost_table.remembered() if each.map.bridge != bridge]
    return [f"restore service map and guards of {each}, as the daemon remembers them" for each in others]


def removal_lines(bridge: str, observed: plan.Observed) -> list[str]:
    """The actions that remove everything that the host has of a bridge, a line each. Raises KernelError."""
    host_mounts.require_reach()
    serving, observed = observed.map is not None, removal.removable(bridge, observed)
    relays = [
        f"end relay {BridgeNames(bridge).relay_title}, process {relay.pid}"
        for name, relay in table.find().relays
        if name == bridge and not (serving and observed.map is None)  # another program's map goes on
    ]
    return [
        *map(str, plan.unload(bridge, observed)),
        *relays,
        *map(str, plan.dismantle(bridge, observed)),
    ]
