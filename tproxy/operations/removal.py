"""Takes a bridge down: all of it, or the services of a network whose last guest has gone.

A hook that brings a bridge up does not load this module. As in ``reconcile``, each operation holds the locks
of bridge and host, and may be killed at any point: the next run completes it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tproxy.bridge import comments, guards, map_commands, members, nftables, plan, plumbing, wall
from tproxy.bridge.members import NO_NICS, Nics
from tproxy.config.union import Offer, in_words, view
from tproxy.daemon import host_mounts
from tproxy.errors import ProcessError
from tproxy.log.lazy import logger
from tproxy.model import Network, ServiceMap
from tproxy.names import BridgeNames, check_interface_name
from tproxy.operations import lost_table, steps
from tproxy.process import run_directory, table
from tproxy.process.run_directory import Lock
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.bridge.actions import Action

log = logger(__name__)


def down(
    bridge: str,
    uplinks: frozenset[str],
    offer: Callable[[], Offer | None],
    *,
    force: bool,
    nics: Nics = NO_NICS,
) -> frozenset[str]:
    """Remove everything of ours from the bridge, which may be gone already.

    Returns the guests because of which that was not done: none if it was done. ``force`` ignores guests. With
    guests, those with these ``nics`` are members no more, and services that no network of the others offers
    are removed. ``offer`` returns the configuration for that; without one, services stay. Raises TproxyError.
    """
    check_interface_name(bridge)
    made: Offer | None = None
    while True:
        with run_directory.lock(run_directory.of_bridge(bridge)) as lock:
            observed = steps.found(bridge, plumbing.observe)
            guests = plan.guests(bridge, observed, uplinks)
            if not guests or force:
                left = kept(bridge, observed)
                remove(bridge, observed, lock)
                break
            wanted = remaining(observed.map, nics)
            if observed.map is None or wanted is None:
                return guests
            made = (made or offer()) if loses_network(observed.map, wanted) else None
            if made is None or made.is_known(wanted.networks):
                _let_go(observed.map, wanted, made, lock)
                return guests
        made.look_up(wanted.networks)
    if left:
        log.warning("%s", left)
    return frozenset()


def remaining(found: ServiceMap | None, nics: Nics) -> ServiceMap | None:
    """The map after guests with these NICs have gone, with its services; None when nothing changes."""
    if found is None or found.members is None:
        return None
    wanted = members.after_leave(found, nics)
    if wanted == found:
        return None
    if not wanted.members:
        # The ports that are still attached may be guests of the first network.
        wanted = wanted._replace(services=view(found.services, next(iter(found.orders.values()))))
    return wanted._replace(network=wanted.networks[0])


def loses_network(found: ServiceMap, wanted: ServiceMap) -> bool:
    """Whether the last guest of a network has gone, and a network is left."""
    return bool(wanted.members) and found.orders != wanted.orders


def served(found: ServiceMap, wanted: ServiceMap, offer: Offer) -> ServiceMap:
    """``wanted``, with the services that its networks have after others of ``found`` have gone."""
    union = offer.union(wanted.orders, found)
    return comments.storable(union.applied(wanted))


def _let_go(found: ServiceMap, wanted: ServiceMap, offer: Offer | None, lock: Lock) -> None:
    """Load the map of a bridge on which guests are left. Raises TproxyError."""
    bridge = found.bridge
    if offer is not None:
        wanted = served(found, wanted, offer)
        gone = ", ".join(in_words(each) for each in found.networks if each not in wanted.networks)
        log.info("bridge %s: the last guest of %s has gone", bridge, gone)
    nftables.transaction(map_commands.change_map(found, wanted))
    steps.apply_or_queue(bridge, lock)


def collect(bridge: str, uplinks: frozenset[str], unused_for: float) -> bool:
    """Remove everything of ours from a bridge that nobody needs; return whether that was so.

    ``unused_for`` is in seconds. A bridge that a hook wanted since is left alone, because the guest for which
    the hook was called may not have started yet. Raises TproxyError.
    """
    with run_directory.lock(run_directory.of_bridge(bridge)) as lock:
        observed = plumbing.observe(bridge)
        if not left_behind(bridge, observed, uplinks, unused_for):
            return False
        remove(bridge, observed, lock)
    return True


def left_behind(bridge: str, observed: plan.Observed, uplinks: frozenset[str], unused_for: float) -> bool:
    """Whether a hook built what the bridge has, no guest is attached, and no hook wanted it recently."""
    used = run_directory.last_use(bridge)
    guard = observed.guard
    ours = _hooked(bridge, observed) or (observed.namespace and observed.name_ours)
    named = guard.named_uplinks if guard else frozenset()
    guests = plan.guests(bridge, observed, uplinks | named | observed.recognised_uplinks)
    # A time in the future was noted before the last boot, or by an older version.
    return ours and not guests and (used is None or not 0 <= used < unused_for)


def removable(bridge: str, observed: plan.Observed) -> plan.Observed:
    """What was observed, without a service map that no hook made: it is another program's."""
    if _made_map(bridge, observed):
        return observed
    return observed._replace(map=None, map_stays=observed.map is not None)


def kept(bridge: str, observed: plan.Observed) -> str:
    """The line that says what ``down`` leaves, because another program made it; "" when it leaves nothing."""
    words = plan.kept(bridge, observed)
    if observed.map is not None and not _made_map(bridge, observed):
        words.append(f"map {BridgeNames(bridge).map}")
    return f"bridge {bridge}: tproxy did not make {', '.join(words)}: left alone" if words else ""


def remove(bridge: str, observed: plan.Observed, lock: Lock) -> None:
    """Remove everything of ours from the bridge. Raises TproxyError.

    ``lock`` must hold the bridge's lock too. While the daemon ends the bridge's relay, the host's lock is
    free: one that hangs delays no other bridge.
    """
    host_mounts.require_reach()
    hooked, found = _hooked(bridge, observed), observed.map
    observed = removable(bridge, observed)
    stays = found if observed.map is None else None  # another program's map

    def unload(now: plan.Observed) -> list[Action]:
        there = observed._replace(map=observed.map and now.map, guard=observed.guard and now.guard)
        return plan.unload(bridge, there)

    if stays is not None and hooked:  # it goes on with the services that it has, and no word of ours
        own = stays._replace(network=Network(), members=None, cards=frozenset())
        nftables.transaction(map_commands.change_map(stays, own))
    steps.carry_out(bridge, observed, unload)
    if stays is None:
        steps.apply_or_queue(bridge, lock)
        lock.take()
        table.end_relay(bridge)  # a crashed daemon may have left one that the new daemon does not know
        if observed.namespace and not observed.name_ours:
            wall.remove(bridge)
        if not table.find().daemons and not nftables.read_maps():
            table.end_serving()  # nobody else tells workers that the last bridge is gone
    # Not earlier: other hooks come in while the lock is free, and to them a table that is gone means that
    # somebody flushed all of nftables (lost_table).
    if hooked and set(lost_table.served()) <= {bridge}:
        nftables.delete_empty_tables()
    plumbing.carry_out(plan.dismantle(bridge, observed))
    if stays is not None:
        with suppress(ProcessError):  # its namespace may have been ours
            steps.apply_or_queue(bridge, lock)
        lock.take()
        if observed.name_taken and observed.name_ours:
            table.end_relay(bridge)
    run_directory.forget_use(bridge)


def _made_map(bridge: str, observed: plan.Observed) -> bool:
    """Whether a hook made the service map."""
    return _hooked(bridge, observed) and not run_directory.map_stays(bridge)


def _hooked(bridge: str, observed: plan.Observed) -> bool:
    """Whether a hook made or used what the bridge has, and no hook took it down since."""
    guard = observed.guard
    return run_directory.last_use(bridge) is not None or (guard is not None and bool(guard.own(guards.VETHS)))
