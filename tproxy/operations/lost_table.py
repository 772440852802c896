"""The nftables table of all maps is gone as a whole: what must not happen then, and how it is restored.

A map that is missing means that its bridge is not served (docs/contract.md, nftables is the database). But
somebody who flushes all of nftables thinks of his own rules. Relays and daemon go on, so that guests notice
nothing. So a command that applies the maps changes nothing in this state. A hook, or the watcher, restores
maps and guards: a hook from the memory of the daemon, the watcher from its own.
"""

from __future__ import annotations

from contextlib import suppress

from tproxy.bridge import map_commands, nftables, plan, plumbing
from tproxy.daemon import host_mounts, memory
from tproxy.daemon.memory import Remembered
from tproxy.errors import NftError, ProcessError, TproxyError
from tproxy.kernel import netns
from tproxy.log.lazy import logger
from tproxy.names import TABLE, BridgeNames
from tproxy.process import run_directory, table

log = logger(__name__)


def served() -> list[str]:
    """The bridges that are still served, sorted: they have a namespace, and a relay or the note of a hook."""
    prefix = BridgeNames("x").namespace.removesuffix("x")
    names = {name.removeprefix(prefix) for name in netns.names() if name.startswith(prefix)}
    noted = names.intersection(run_directory.used())
    if names - noted:
        noted |= names.intersection(bridge for bridge, _ in table.find().relays)
    return sorted(filter(_has_namespace, noted))


def bereft() -> list[str]:
    """The bridges that are still served although the table of all maps is gone, sorted. Raises NftError."""
    return [] if nftables.table_exists("ip") else served()


def require_table() -> None:
    """Raise NftError when the table of all maps is gone although bridges are still served."""
    if bridges := bereft():
        raise NftError(
            f"the nftables table ip {TABLE} is gone, but {_are(bridges)} still served: "
            "nothing was changed; the next hook or `tproxy watch` restores it"
        )


def restore() -> list[str]:
    """Load maps and guards of all bridges that are still served, as the daemon remembers them.

    Returns the bridges. Does nothing when the table is there, or no daemon answers. The caller holds the
    host's lock. Raises NftError and KernelError; then maps of no bridge were loaded.
    """
    if nftables.table_exists("ip"):
        return []
    host_mounts.require_sight()  # a namespace that cannot be seen here would count as gone
    lost = remembered()
    # The guards come first: a run that is killed in between is done again by the next one.
    for each in lost:
        if each.guarded or run_directory.last_use(each.map.bridge) is not None:
            _load_guards(each)
    # In one transaction: while one is missing, `tproxy start` would end that bridge's relay.
    nftables.transaction(line for each in lost for line in map_commands.add_map(each.map))
    if lost:
        names = ", ".join(each.map.bridge for each in lost)
        log.warning("the nftables table ip %s was gone: maps and guards of %s are restored", TABLE, names)
    return [each.map.bridge for each in lost]


def remembered() -> list[Remembered]:
    """What the daemon remembers of the bridges that are still there; nothing when no daemon answers."""
    with suppress(ProcessError):
        return [each for each in memory.remembered() if _has_namespace(each.map.bridge)]
    return []


def _load_guards(lost: Remembered) -> None:
    """Have the guards of a bridge. A failure concerns this bridge only; its map is restored all the same."""
    bridge = lost.map.bridge
    try:
        found = plumbing.observe(bridge)
        actions = plan.guard_actions(bridge, found, lost.uplinks, lost.map.addresses)
        plumbing.carry_out(actions, quiet=True)
    except TproxyError as error:
        log.warning("guards of %s cannot be restored: %s", bridge, error)


def _are(bridges: list[str]) -> str:
    return f"bridge {bridges[0]} is" if len(bridges) == 1 else f"bridges {', '.join(bridges)} are"


def _has_namespace(bridge: str) -> bool:
    return netns.identify(BridgeNames(bridge).namespace) is not None
