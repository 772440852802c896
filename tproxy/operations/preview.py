"""Says what a hook would do, in order and in words, and does none of it.

A dry run makes no files, so it does not take the host's lock: it may see the half-finished work of a hook
that is running.
"""

from __future__ import annotations

from tproxy.bridge import nftables, plan, plumbing, service_map
from tproxy.daemon import client
from tproxy.daemon.catalog import Catalog
from tproxy.model import DAEMON_TITLE, TABLE, BridgeNames, Network, Service, ServiceMap, Settings
from tproxy.process import table


def up(
    bridge: str, network: Network, services: dict[int, Service], uplinks: frozenset[str], settings: Settings
) -> list[str]:
    """What ``reconcile.up`` would do, a line each; no lines for a bridge that is in order."""
    observed = plumbing.observe(bridge)
    wanted = service_map.storable(ServiceMap(bridge, services, network))
    actions = plan.up(wanted, observed, uplinks)
    lines = list(map(str, actions))
    found = table.find()
    if not client.daemon_answers():
        lines.append(f"start the daemon {DAEMON_TITLE}")
        if settings.watch_file and not found.watchers:
            lines.append(f"start the watcher {table.WATCHER_TITLE}")
    rebuilt = any(isinstance(each, plan.CreateNamespace) for each in actions)
    if rebuilt or bridge not in dict(found.relays):
        lines.append(f"start relay {BridgeNames(bridge).relay_title}")
    known = Catalog()
    if observed.map is not None:
        known.apply(observed.map)
    return lines + known.apply(wanted)


def down(bridge: str, uplinks: frozenset[str], *, force: bool) -> tuple[list[str], frozenset[str]]:
    """What ``reconcile.down`` would do, a line each, and the guests because of which it would do nothing."""
    names = BridgeNames(bridge)  # raises BadName
    observed = plumbing.observe(bridge)
    guests = plan.guests(bridge, observed, uplinks)
    if guests and not force:
        return [], guests
    lines = removal(bridge, observed)
    if lines and not any(each.bridge != names.bridge for each in nftables.read_maps()):
        lines.append(f"delete those of the tables {TABLE} that are empty then")
        if client.daemon_answers():
            lines.append(f"end the daemon {DAEMON_TITLE}, unless it is a service or keeps a watcher")
    return lines, frozenset()


def removal(bridge: str, observed: plan.Observed) -> list[str]:
    """The actions that remove everything that the host has of a bridge, a line each."""
    relays = [
        f"end relay {BridgeNames(bridge).relay_title}, process {relay.pid}"
        for name, relay in table.find().relays
        if name == bridge
    ]
    return [
        *map(str, plan.unload(bridge, observed)),
        *relays,
        *map(str, plan.dismantle(bridge, observed)),
    ]
