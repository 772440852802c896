"""Brings a bridge to the state it should have, repairs it, or removes it.

Each function holds the host's lock until the daemon answers that the ports listen. So a hook never sees a
bridge that another hook has half built. A hook that is killed half-way leaves a half-built bridge; the next
one completes it, because every run compares everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from tproxy.bridge import guards, nftables, plan, plumbing, service_map
from tproxy.daemon import client
from tproxy.errors import NftError, ProcessError, TproxyError
from tproxy.log.lazy import logger
from tproxy.model import SERVICE_MAC, Network, Service, ServiceMap, Settings, check_interface_name
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock

log = logger(__name__)


def check(bridge: str, uplinks: frozenset[str]) -> None:
    """Raise BadName for a name that no link can have, KernelError when the bridge cannot be served."""
    check_interface_name(bridge)
    for uplink in uplinks:
        check_interface_name(uplink, "uplink")
    plumbing.require_bridge(bridge)


def last_known(bridge: str, network: Network, port: int) -> Service | None:
    """The service of that port in the bridge's map; None without one, or when another network has the map."""
    return known_for(network, nftables.read_map(bridge)).get(port)


def known_for(network: Network, found: ServiceMap | None) -> Mapping[int, Service]:
    """The services of the map, if it is this network's. Another network's are not for its guests."""
    wanted = service_map.storable(ServiceMap("", {}, network))
    return found.services if found is not None and found.network == wanted.network else {}


def up(
    bridge: str,
    network: Network,
    services: dict[int, Service],
    uplinks: frozenset[str],
    settings: Settings,
) -> None:
    """Have the services on the bridge. Their ports listen when this returns.

    A running daemon keeps its ``watch_file``. Raises TproxyError; then the bridge is as it was before.
    """
    with run_directory.lock() as lock:
        check(bridge, uplinks)  # again: the holder of the lock before us may have changed it
        before = plumbing.observe(bridge)
        run_directory.note_use(bridge)
        _reconcile(ServiceMap(bridge, services, network), before, uplinks, settings, lock)


def refresh(bridge: str, network: Network, services: dict[int, Service], settings: Settings) -> bool:
    """As ``up``, for a bridge that a hook brought up for this network, and with that hook's uplinks.

    Returns whether anything changed. A bridge that a hook has meanwhile taken down, or brought up for
    another network, is left alone. Raises TproxyError; then the bridge is as it was before.
    """
    with run_directory.lock() as lock:
        plumbing.require_bridge(bridge)
        before = plumbing.observe(bridge)
        if before.map is None or before.map.network != network:
            return False
        uplinks = before.guard.named_uplinks if before.guard else frozenset()
        return _reconcile(ServiceMap(bridge, services, network), before, uplinks, settings, lock)


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
        found = plumbing.observe(bridge)
        if found.map is None:
            return []  # somebody has taken it down
        named = found.guard.named_uplinks_or(uplinks) if found.guard else uplinks
        if foreign_mac is not None:
            actions = plan.up_foreign(bridge, found, foreign_mac)
        else:
            actions = plan.up(found.map, found, named)
        plumbing.carry_out(actions, quiet=True)  # the caller logs all of them in one line
        if actions or restored:
            client.ensure_daemon(settings, lock)
            _apply(bridge, settings)
    return list(map(str, actions))


def down(bridge: str, uplinks: frozenset[str], *, force: bool) -> frozenset[str]:
    """Remove everything of ours from the bridge, which may be gone already.

    Returns the guests because of which nothing was done: none if it was done. ``force`` ignores guests.
    Raises TproxyError.
    """
    check_interface_name(bridge)
    with run_directory.lock():
        observed = plumbing.observe(bridge)
        guests = plan.guests(bridge, observed, uplinks)
        if guests and not force:
            return guests
        _remove(bridge, observed)
    return frozenset()


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
    ours = used is not None or (guard is not None and bool(guard.own(guards.VETHS)))
    if observed.inner is not None:
        ours |= observed.inner.mac == SERVICE_MAC
    named = guard.named_uplinks if guard else frozenset()
    guests = plan.guests(bridge, observed, uplinks | named | observed.recognised_uplinks)
    # A time in the future was noted before the last boot, or by an older version.
    return ours and not guests and (used is None or not 0 <= used < unused_for)


def _remove(bridge: str, observed: plan.Observed) -> None:
    """Remove everything of ours from the bridge. The caller holds the lock. Raises TproxyError."""

    def unload(now: plan.Observed) -> list[plan.Action]:
        there = observed._replace(map=observed.map and now.map, guard=observed.guard and now.guard)
        return plan.unload(bridge, there)

    _carry_out(bridge, observed, unload)
    nftables.delete_empty_tables()
    if client.daemon_answers():
        _apply(bridge, Settings())
    else:
        client.queue_apply(bridge)
    from tproxy.process import table  # not above: `up` does not need it, nor what it imports

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
        if actions:
            plumbing.warn_of_host_firewall(bridge)
        client.ensure_daemon(settings, lock)
        _apply(bridge, settings)
    except TproxyError as error:
        log.error("bridge %s cannot be brought up, the changes are undone: %s", bridge, error)
        _undo(bridge, before)
        raise
    return bool(actions)


def _carry_out(
    bridge: str, observed: plan.Observed, planned: Callable[[plan.Observed], list[plan.Action]]
) -> list[plan.Action]:
    """Carry out what is ``planned`` for what was ``observed``; return the actions."""
    actions = planned(observed)
    try:
        plumbing.carry_out(actions)
    except NftError:  # other programs do not take our lock: one may have flushed nftables since the look
        actions = planned(plumbing.observe(bridge))
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
