"""Brings a bridge to the state it should have, repairs it, or removes it.

Each function holds the host's lock until the daemon answers that the ports listen. So a hook never sees a
bridge that another hook has half built. A hook that is killed half-way leaves a half-built bridge; the next
one completes it, because every run compares everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from tproxy.bridge import guards, members, nftables, plan, plumbing, port_state, service_map
from tproxy.config.union import Offer, Union, in_words
from tproxy.daemon import client
from tproxy.errors import KernelError, NftError, ProcessError, TproxyError
from tproxy.kernel import links
from tproxy.log.lazy import logger
from tproxy.model import BridgeNames, Network, Service, ServiceMap, Settings, check_interface_name
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.bridge.actions import Action

log = logger(__name__)


def check(bridge: str, uplinks: frozenset[str]) -> None:
    """Raise BadName for a name that no link can have, KernelError when the bridge cannot be served."""
    check_interface_name(bridge)
    for uplink in uplinks:
        check_interface_name(uplink, "uplink")
    plumbing.require_bridge(bridge)


def up(
    bridge: str,
    network: Network,
    macs: frozenset[str],
    offer: Offer,
    uplinks: frozenset[str],
    settings: Settings,
    *,
    anew: bool = False,
) -> None:
    """Have the services of this network on the bridge, and those of the networks of its other guests.

    Their ports listen when this returns. For ``macs`` and ``anew`` see ``members.join``. A running daemon
    keeps its ``watch_file``. Raises TproxyError; then the bridge is as it was before.
    """
    looked_up = False
    while not looked_up:
        with run_directory.lock() as lock:
            check(bridge, uplinks)  # again: the holder of the lock before us may have changed it
            before = _found(bridge, plumbing.usable)
            wanted = joined(bridge, before.map, network, macs, anew=anew)
            looked_up = offer.is_known(wanted.networks)
            if looked_up:
                warn_of_uplinks(bridge, before, uplinks)
                union = offer.union(wanted.networks, before.map)
                for problem in union.problems:
                    log.warning("%s", problem.at(offer.config.path))
                warn_of_union(before.map, wanted.networks, union)
                first = run_directory.last_use(bridge) is None
                run_directory.note_use(bridge)
                try:
                    _reconcile(wanted._replace(services=union.services), before, uplinks, settings, lock)
                except TproxyError:
                    if first:  # then what the bridge has is still another program's
                        run_directory.forget_use(bridge)
                    raise
        if not looked_up:  # only here: a silent name server must not make other hooks wait for the lock
            offer.look_up(wanted.networks)


def joined(
    bridge: str, found: ServiceMap | None, network: Network, macs: frozenset[str], *, anew: bool = False
) -> ServiceMap:
    """The map of a bridge, without services, after a guest of this network came."""
    wanted = ServiceMap(bridge, {}, members=members.join(found, network, macs, anew=anew))
    return wanted._replace(network=wanted.networks[0])


def note_guest(bridge: str, network: Network, macs: frozenset[str]) -> None:
    """Note a guest of a network without services, if the bridge is up for guests of other networks."""
    found = nftables.read_map(bridge)
    if found is None or found.members is None:
        return
    with run_directory.lock():
        found = nftables.read_map(bridge)
        if found is not None and found.members is not None:
            wanted = joined(bridge, found, network, macs)._replace(services=found.services)
            nftables.transaction(service_map.change_map(found, wanted))
            warn_of_union(found, wanted.networks, Union(dict(found.services), [], [], mixed=True))


def warn_of_union(found: ServiceMap | None, networks: tuple[Network, ...], union: Union) -> None:
    """Log what it means that a bridge has several networks, when that differs from what was ``found``."""
    if found is None or not union.mixed:
        return
    if (
        found.networks == networks
        and found.services == service_map.storable(found._replace(services=union.services)).services
    ):
        return
    names = ", ".join(map(in_words, networks))
    log.warning("bridge %s: all its guests reach the services of all its networks: %s", found.bridge, names)
    warn_of_contradictions(found.bridge, union)


def warn_of_contradictions(bridge: str, union: Union) -> None:
    for each in union.contradictions:
        log.warning("bridge %s: %s", bridge, each)


def refresh(found: ServiceMap, union: Union, settings: Settings) -> bool:
    """As ``up``, for a bridge that hooks brought up for these networks, and with the uplinks that they named.

    ``found`` is the map that it had. Returns whether anything changed. A bridge that a hook has meanwhile
    taken down, or brought up for another network, is left alone. Raises TproxyError; then the bridge is as it
    was before.
    """
    return _change(found, lambda _: union.services, settings)


def move(found: ServiceMap, moves: Mapping[int, tuple[Service, Service]], settings: Settings) -> bool:
    """As ``refresh``, but change only these services. ``moves`` has the old and the new service of each port.

    A service that is not the old one any more is left alone.
    """

    def moved(services: Mapping[int, Service]) -> dict[int, Service]:
        new = {port: after for port, (old, after) in moves.items() if services.get(port) == old}
        return {**services, **new}

    return _change(found, moved, settings)


def _change(
    found: ServiceMap, wanted: Callable[[Mapping[int, Service]], dict[int, Service]], settings: Settings
) -> bool:
    """Give a bridge that still has the networks of ``found`` the services that are ``wanted``."""
    bridge = found.bridge
    with run_directory.lock() as lock:
        plumbing.require_bridge(bridge)
        before = plumbing.usable(bridge)
        if before.map is None or before.map.networks != found.networks:
            return False
        uplinks = before.guard.named_uplinks if before.guard else frozenset()
        services = wanted(before.map.services)
        return _reconcile(before.map._replace(services=services), before, uplinks, settings, lock)


def restore(lost: Iterable[ServiceMap]) -> list[str]:
    """Load service maps again that somebody deleted together with all others; return their bridges.

    All are loaded in one transaction: while one is missing, ``tproxy start`` would end that bridge's relay.
    A map that exists again is left as it is. Raises NftError.
    """
    with run_directory.lock():
        missing = [
            each for each in lost if nftables.read_map(each.bridge) is None and not _taken_down(each.bridge)
        ]
        nftables.transaction(
            line for each in missing for line in service_map.add_map(service_map.storable(each))
        )
    return [each.bridge for each in missing]


def repair(
    bridge: str,
    uplinks: frozenset[str],
    settings: Settings,
    *,
    restored: bool,
    foreign_mac: str | None = None,
) -> list[str]:
    """Repair what somebody broke on a bridge that is up; return what was done, in words.

    ``uplinks`` are the named uplinks that the bridge had, in case the guards that hold them are lost.
    ``restored`` says that ``restore`` loaded the map, of which the daemon may not know. ``foreign_mac`` is
    the MAC of a bridge that another program built (``plan.up_foreign``); None for one that a hook built.
    Raises TproxyError.
    """
    with run_directory.lock() as lock:
        plumbing.require_bridge(bridge)
        found = plumbing.usable(bridge)
        if found.map is None:
            return []  # somebody has taken it down
        named = found.guard.named_uplinks_or(uplinks) if found.guard else uplinks
        if foreign_mac is not None:
            actions = plan.up_foreign(bridge, found, foreign_mac)
        else:
            actions = plan.up(found.map, found, named)
        require_host_mounts(actions)
        plumbing.carry_out(actions, quiet=True)  # the caller logs all of them in one line
        if actions or restored:
            client.ensure_daemon(settings, lock)
            _apply(bridge, settings)
            _warn_of_obstacles(bridge)
    return list(map(str, actions))


def down(
    bridge: str,
    uplinks: frozenset[str],
    offer: Callable[[], Offer | None],
    *,
    force: bool,
    macs: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """Remove everything of ours from the bridge, which may be gone already.

    Returns the guests because of which that was not done: none if it was done. ``force`` ignores guests. With
    guests, those with these ``macs`` are members no more, and services that no network of the others offers
    are removed. ``offer`` returns the configuration for that; without one, services stay. Raises TproxyError.
    """
    check_interface_name(bridge)
    made: Offer | None = None
    while True:
        with run_directory.lock():
            observed = _found(bridge, plumbing.observe)
            guests = plan.guests(bridge, observed, uplinks)
            if not guests or force:
                left = kept(bridge, observed)
                _remove(bridge, observed)
                break
            wanted = remaining(observed.map, macs)
            if observed.map is None or wanted is None:
                return guests
            made = (made or offer()) if loses_network(observed.map, wanted) else None
            if made is None or made.is_known(wanted.networks):
                _let_go(observed.map, wanted, made)
                return guests
        made.look_up(wanted.networks)
    if left:
        log.warning("%s", left)
    return frozenset()


def remaining(found: ServiceMap | None, macs: frozenset[str]) -> ServiceMap | None:
    """The map after the guests with these MACs have gone, with its services; None when nothing changes."""
    if found is None or found.members is None or macs.isdisjoint(found.members):
        return None
    wanted = found._replace(members=members.leave(found, macs))
    return wanted._replace(network=wanted.networks[0])


def loses_network(found: ServiceMap, wanted: ServiceMap) -> bool:
    """Whether the last guest of a network has gone, and a network is left."""
    return bool(wanted.members) and found.networks != wanted.networks


def served(found: ServiceMap, wanted: ServiceMap, offer: Offer) -> ServiceMap:
    """``wanted``, with the services that its networks have after others of ``found`` have gone."""
    union = offer.union(wanted.networks, found)
    return service_map.storable(wanted._replace(services=union.services))


def _let_go(found: ServiceMap, wanted: ServiceMap, offer: Offer | None) -> None:
    """Load the map of a bridge on which guests are left. The caller holds the lock. Raises TproxyError."""
    bridge = found.bridge
    if offer is not None:
        wanted = served(found, wanted, offer)
        gone = ", ".join(in_words(each) for each in found.networks if each not in wanted.networks)
        log.info("bridge %s: the last guest of %s has gone", bridge, gone)
    nftables.transaction(service_map.change_map(found, wanted))
    if client.daemon_answers():
        _apply(bridge, Settings())
    else:
        client.queue_apply(bridge)


def collect(bridge: str, uplinks: frozenset[str], unused_for: float) -> bool:
    """Remove everything of ours from a bridge that nobody needs; return whether that was so.

    ``unused_for`` is in seconds. A bridge that a hook wanted since is left alone, because the guest for which
    the hook was called may not have started yet. Raises TproxyError.
    """
    with run_directory.lock():
        observed = plumbing.observe(bridge)
        if not left_behind(bridge, observed, uplinks, unused_for):
            return False
        _remove(bridge, observed)
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
    """What was observed, without a service map that no hook made or used: it is another program's."""
    return observed if _hooked(bridge, observed) else observed._replace(map=None)


def kept(bridge: str, observed: plan.Observed) -> str:
    """The line that says what ``down`` leaves, because another program made it; "" when it leaves nothing."""
    words = plan.kept(bridge, observed)
    if observed.map is not None and not _hooked(bridge, observed):
        words.append(f"map {BridgeNames(bridge).map}")
    return f"bridge {bridge}: tproxy did not make {', '.join(words)}: left alone" if words else ""


def require_host_mounts(planned: list[Action]) -> None:
    """Raise KernelError when namespaces or links are to change, and the host would not see the change."""
    if not planned:
        return
    from tproxy.bridge import actions

    if actions.need_host_mounts(planned):
        from tproxy.daemon import host_mounts

        host_mounts.require_reach()


def warn_of_uplinks(bridge: str, observed: plan.Observed, uplinks: frozenset[str]) -> None:
    """Log a warning for each named uplink that is no port of the bridge. It may become one later."""
    for name in sorted(uplinks - observed.ports):
        state = "is not a port of the bridge" if links.exists(name) else "does not exist"
        log.warning("bridge %s: the uplink %s %s", bridge, name, state)


def _found(bridge: str, look: Callable[[str], plan.Observed]) -> plan.Observed:
    """What a ``look`` finds of the bridge, once maps are restored that somebody deleted with all others."""
    try:
        found = look(bridge)
    except KernelError:
        from tproxy.daemon import host_mounts

        host_mounts.require_reach()  # that is the reason then
        raise
    if found.map is None:
        from tproxy.operations import lost_table

        if lost_table.restore():
            found = look(bridge)
    return found


def _hooked(bridge: str, observed: plan.Observed) -> bool:
    """Whether a hook made or used what the bridge has, and no hook took it down since."""
    guard = observed.guard
    return run_directory.last_use(bridge) is not None or (guard is not None and bool(guard.own(guards.VETHS)))


def _remove(bridge: str, observed: plan.Observed) -> None:
    """Remove everything of ours from the bridge. The caller holds the lock. Raises TproxyError."""
    # Not above: a warm `up` needs neither these, nor what they import.
    from tproxy.daemon import host_mounts
    from tproxy.operations import lost_table
    from tproxy.process import table

    host_mounts.require_reach()
    hooked, serving = _hooked(bridge, observed), observed.map is not None
    observed = removable(bridge, observed)
    serving &= observed.map is None  # another program's map goes on

    def unload(now: plan.Observed) -> list[Action]:
        there = observed._replace(map=observed.map and now.map, guard=observed.guard and now.guard)
        return plan.unload(bridge, there)

    _carry_out(bridge, observed, unload)
    # A table that is gone would mean that somebody flushed all of nftables (lost_table).
    if hooked and set(lost_table.served()) <= {bridge}:
        nftables.delete_empty_tables()
    if client.daemon_answers():
        _apply(bridge, Settings())
    else:
        client.queue_apply(bridge)
    if not serving:
        table.end_relay(bridge)  # a crashed daemon may have left one that the new daemon does not know
    plumbing.carry_out(plan.dismantle(bridge, observed))
    run_directory.forget_use(bridge)


def _reconcile(
    wanted: ServiceMap,
    before: plan.Observed,
    uplinks: frozenset[str],
    settings: Settings,
    lock: Lock,
) -> bool:
    """Have the wanted services on the bridge, or undo it all and raise; return whether anything changed."""
    bridge = wanted.bridge
    try:
        storable = service_map.storable(wanted)
        actions = _carry_out(bridge, before, lambda now: plan.up(storable, now, uplinks))
        client.ensure_daemon(settings, lock)
        _apply(bridge, settings)
    except TproxyError as error:
        log.error("bridge %s cannot be brought up, the changes are undone: %s", bridge, error)
        _undo(bridge, before)
        raise
    _warn_of_obstacles(bridge)
    return bool(actions)


def _warn_of_obstacles(bridge: str) -> None:
    """Log a warning for each thing that keeps guests from services that are in order."""
    with suppress(TproxyError):  # what cannot be read is not worth failing for
        if port_state.nothing_in_the_way(bridge):
            return
        from tproxy.bridge import obstacles  # not above: most runs do not need it

        for each in obstacles.after_up(bridge):
            log.warning("bridge %s: %s", bridge, each.text)


def _carry_out(
    bridge: str, observed: plan.Observed, planned: Callable[[plan.Observed], list[Action]]
) -> list[Action]:
    """Carry out what is ``planned`` for what was ``observed``; return the actions."""
    actions = planned(observed)
    require_host_mounts(actions)
    try:
        plumbing.carry_out(actions)
    except NftError:  # other programs do not take our lock: one may have flushed nftables since the look
        actions = planned(_found(bridge, plumbing.observe))
        plumbing.carry_out(actions)
    return actions


def _taken_down(bridge: str) -> bool:
    """Whether somebody took the bridge down on purpose, whether a hook or the program that built it."""
    return run_directory.last_use(bridge) is None and not plumbing.has_links(bridge)


def _apply(bridge: str, settings: Settings) -> None:
    """Make the bridge's map take effect; raise ProcessError when a port cannot listen."""
    # The configuration file of this hook does not decide about a watcher: another file may want it.
    problems = client.apply([bridge], settings._replace(watch_file=None))
    if problems:
        raise ProcessError("; ".join(problems))


def _undo(bridge: str, before: plan.Observed) -> None:
    """Undo a failed ``up``: remove what it added to a bridge that had no map, otherwise load the old map."""
    with suppress(TproxyError):  # the caller raises the first error, which says what is wrong
        now = plumbing.observe(bridge)
        if before.map is None:
            _remove(bridge, now.added_since(before))
        elif now.map is not None and before.map != now.map:
            nftables.transaction(service_map.change_map(now.map, before.map))
            client.apply([bridge], Settings())
