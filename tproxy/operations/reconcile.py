"""Brings a bridge to the state it should have, and repairs it. ``removal`` takes it down.

Each function holds the bridge's lock until the daemon answers that the ports listen. So a hook never sees a
bridge that another hook has half built. It holds the host's lock only until the daemon has been told, so it
does not keep the hooks of other bridges waiting (``process.run_directory``). A hook that is killed half-way
leaves a half-built bridge; the next one completes it, because every run compares everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from tproxy.bridge import comments, guards, map_commands, members, nftables, plan, plumbing, port_state
from tproxy.bridge.members import Nics
from tproxy.config.union import Offer, Services, Union, in_words
from tproxy.daemon import client
from tproxy.errors import TproxyError
from tproxy.kernel import links
from tproxy.log.lazy import logger
from tproxy.model import Network, Service, ServiceKey, ServiceMap, Settings
from tproxy.names import check_interface_name
from tproxy.operations import steps
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock

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
    nics: Nics,
    offer: Offer,
    uplinks: frozenset[str],
    settings: Settings,
    *,
    anew: bool = False,
) -> None:
    """Have the services of this network on the bridge, and those of the networks of its other guests.

    Their ports listen when this returns. For ``nics`` and ``anew`` see ``members.join``. A running daemon
    keeps its ``watch_file``. Raises TproxyError; then the bridge is as it was before.
    """
    looked_up = False
    while not looked_up:
        with run_directory.lock(run_directory.of_bridge(bridge)) as lock:
            check(bridge, uplinks)  # again: the holder of the lock before us may have changed it
            before = steps.found(bridge, plumbing.usable)
            wanted = joined(bridge, before.map, network, nics, anew=anew)
            looked_up = offer.is_known(wanted.networks)
            if looked_up:
                warn_of_uplinks(bridge, before, uplinks)
                union = offer.union(wanted.orders, before.map)
                for problem in union.problems:
                    log.warning("%s", problem.at(offer.config.path))
                wanted = union.applied(wanted)
                warn_of_unnamed(before.map, wanted, union)
                first = run_directory.last_use(bridge) is None
                run_directory.note_use(bridge, map_stays=_map_stays(before, first=first))
                try:
                    _reconcile(wanted, before, uplinks, settings, lock)
                except TproxyError:
                    if first:  # then what the bridge has is still another program's
                        run_directory.forget_use(bridge)
                    raise
        if not looked_up:  # only here: a silent name server must not make other hooks wait for the lock
            offer.look_up(wanted.networks)


def _map_stays(before: plan.Observed, *, first: bool) -> bool | None:
    """Whether another program made the map that this hook found; None if an earlier hook noted that."""
    if before.map is None:
        return False
    return not (before.guard and before.guard.own(guards.VETHS)) if first else None


def joined(
    bridge: str, found: ServiceMap | None, network: Network, nics: Nics, *, anew: bool = False
) -> ServiceMap:
    """The map of a bridge, without services, after a guest of this network came."""
    wanted = members.after_join(found, ServiceMap(bridge, {}), network, nics, anew=anew)
    return wanted._replace(network=wanted.networks[0])


def note_guest(bridge: str, network: Network, nics: Nics, offer: Offer) -> None:
    """Note a guest of a network without services, if the bridge is up for guests of other networks."""
    while True:
        found = nftables.read_map(bridge)
        if found is None or found.members is None:
            return
        offer.look_up(joined(bridge, found, network, nics).orders)
        with run_directory.lock(run_directory.of_bridge(bridge)) as lock:
            found = nftables.read_map(bridge)
            if found is None or found.members is None:
                return
            wanted = joined(bridge, found, network, nics)
            if not offer.is_known(wanted.orders):
                continue
            union = offer.union(wanted.orders, found)
            wanted = comments.storable(union.applied(wanted))
            if commands := map_commands.change_map(found, wanted):
                nftables.transaction(commands)
                steps.apply_or_queue(bridge, lock)
            warn_of_unnamed(found, wanted, union)
            return


def warn_of_unnamed(found: ServiceMap | None, wanted: ServiceMap, union: Union) -> None:
    """Warn if networks have different services, and hooks do not tell which guests are of which.

    Not if that was so in the map that was ``found``.
    """
    if not union.divided:
        return
    if found is not None and (found.orders, found.services) == (
        wanted.orders,
        comments.storable(wanted).services,
    ):
        return
    if unnamed := members.unnamed(wanted):
        log.warning(
            "bridge %s: its networks have different services (%s), and no hook named MAC or port of guests "
            "of %s: they get only the services that all networks have",
            wanted.bridge,
            ", ".join(map(in_words, wanted.networks)),
            ", ".join(map(in_words, unnamed)),
        )


def refresh(found: ServiceMap, union: Union, settings: Settings) -> bool:
    """As ``up``, for a bridge that hooks brought up for these networks, and with the uplinks that they named.

    ``found`` is the map that it had. Returns whether anything changed. A bridge that a hook has meanwhile
    taken down, or brought up for another network, is left alone. Raises TproxyError; then the bridge is as it
    was before.
    """
    return _change(found, union.applied, settings)


def move(
    found: ServiceMap, moved: Callable[[Services], dict[ServiceKey, Service]], settings: Settings
) -> bool:
    """As ``refresh``, with the services that ``moved`` makes of those that the bridge has."""
    return _change(found, lambda now: now._replace(services=moved(now.services)), settings)


def _change(found: ServiceMap, wanted: Callable[[ServiceMap], ServiceMap], settings: Settings) -> bool:
    """Give a bridge that still has the networks of ``found`` the map that is ``wanted``."""
    bridge = found.bridge
    with run_directory.lock(run_directory.of_bridge(bridge)) as lock:
        plumbing.require_bridge(bridge)
        before = plumbing.usable(bridge)
        if before.map is None or before.map.orders != found.orders:
            return False
        uplinks = before.guard.named_uplinks if before.guard else frozenset()
        return _reconcile(wanted(before.map), before, uplinks, settings, lock)


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
            line for each in missing for line in map_commands.add_map(comments.storable(each))
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
    with run_directory.lock(run_directory.of_bridge(bridge)) as lock:
        plumbing.require_bridge(bridge)
        found = plumbing.usable(bridge)
        if found.map is None:
            return []  # somebody has taken it down
        named = found.guard.named_uplinks_or(uplinks) if found.guard else uplinks
        if foreign_mac is not None:
            actions = plan.up_foreign(found.map, found, foreign_mac)
        else:
            actions = plan.up(found.map, found, named)
        steps.require_host_mounts(actions)
        plumbing.carry_out(actions, quiet=True)  # the caller logs all of them in one line
        if actions or restored:
            steps.apply(bridge, settings, lock)
            _warn_of_obstacles(bridge)
    return list(map(str, actions))


def warn_of_uplinks(bridge: str, observed: plan.Observed, uplinks: frozenset[str]) -> None:
    """Log a warning for each named uplink that is no port of the bridge. It may become one later."""
    for name in sorted(uplinks - observed.ports):
        state = "is not a port of the bridge" if links.exists(name) else "does not exist"
        log.warning("bridge %s: the uplink %s %s", bridge, name, state)


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
        storable = comments.storable(wanted)
        actions = steps.carry_out(bridge, before, lambda now: plan.up(storable, now, uplinks))
        steps.apply(bridge, settings, lock)
        steps.finish(actions)
    except TproxyError as error:
        log.error("bridge %s cannot be brought up, and stays as it was: %s", bridge, error)
        lock.take()
        _undo(bridge, before, lock)
        raise
    _warn_of_obstacles(bridge)
    if actions and wanted.addresses:
        from tproxy.bridge import own_addresses  # not above: most hosts have no such address

        has_uplink = bool(before.recognised_uplinks | (uplinks & before.ports))
        for each in own_addresses.conflicts(bridge, wanted.addresses, uplinks=has_uplink):
            log.warning("bridge %s: %s", bridge, each)
    return bool(actions)


def _warn_of_obstacles(bridge: str) -> None:
    """Log a warning for each thing that keeps guests from services that are in order."""
    with suppress(TproxyError):  # what cannot be read is not worth failing for
        if port_state.nothing_in_the_way(bridge):
            return
        from tproxy.bridge import obstacles  # not above: most runs do not need it

        for each in obstacles.after_up(bridge):
            log.warning("bridge %s: %s", bridge, each.text)


def _taken_down(bridge: str) -> bool:
    """Whether somebody took the bridge down on purpose, whether a hook or the program that built it."""
    return run_directory.last_use(bridge) is None and not plumbing.has_links(bridge)


def _undo(bridge: str, before: plan.Observed, lock: Lock) -> None:
    """Undo a failed ``up``: remove what it added to a bridge that had no map, otherwise load the old map."""
    with suppress(TproxyError):  # the caller raises the first error, which says what is wrong
        now = plumbing.observe(bridge)
        if before.map is None:
            from tproxy.operations import removal  # a hook that succeeds does not need it

            removal.remove(bridge, now.added_since(before), lock)
        elif now.map is not None and before.map != now.map:
            nftables.transaction(map_commands.change_map(now.map, before.map))
            client.apply([bridge], Settings(), lock=lock)
