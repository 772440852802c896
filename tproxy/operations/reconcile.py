"""What a network driver's call does: bring a bridge to the state it should have, or undo it.

All of it happens under the host's lock, up to the answer of the daemon that the ports listen; so a
hook never meets a half-built bridge of another one, and whoever is killed half-way is repaired by
the next, since every run compares everything.
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
    """Raise BadName for names no link can have, KernelError when there is no such bridge."""
    check_interface_name(bridge)
    for uplink in uplinks:
        check_interface_name(uplink, "uplink")
    plumbing.require_bridge(bridge)


def last_known(bridge: str, network: Network, port: int) -> Service | None:
    """What the port of the bridge leads to now, if anything, and if the bridge is up for that network."""
    return known_for(network, nftables.read_map(bridge)).get(port)


def known_for(network: Network, found: ServiceMap | None) -> Mapping[int, Service]:
    """The services of a map for the network: what another one had is not for its guests."""
    wanted = service_map.storable(ServiceMap("", {}, network))
    return found.services if found is not None and found.network == wanted.network else {}


def up(
    bridge: str,
    network: Network,
    services: dict[int, Service],
    uplinks: frozenset[str],
    settings: Settings,
) -> None:
    """Have the services on the bridge; returns when their ports listen.

    Raises TproxyError when that cannot be; the bridge then is as it was before. A daemon that runs keeps
    its ``watch_file``.
    """
    with run_directory.lock() as lock:
        check(bridge, uplinks)  # again: whoever had the lock may have changed what is there
        before = plumbing.observe(bridge)
        run_directory.note_use(bridge)
        _reconcile(ServiceMap(bridge, services, network), before, uplinks, settings, lock)


def refresh(bridge: str, network: Network, services: dict[int, Service], settings: Settings) -> bool:
    """As ``up``, with the uplinks that it was given, on a bridge that is up for that network.

    Returns whether anything had to be changed. A bridge that a hook has taken down meanwhile, or up for
    another network, is left alone.
    """
    with run_directory.lock() as lock:
        plumbing.require_bridge(bridge)
        before = plumbing.observe(bridge)
        if before.map is None or before.map.network != network:
            return False
        uplinks = before.guard.named_uplinks if before.guard else frozenset()
        return _reconcile(ServiceMap(bridge, services, network), before, uplinks, settings, lock)


def restore(lost: Iterable[ServiceMap]) -> list[str]:
    """Load maps that went along with all others; returns of which bridges.

    All at once: as long as one is missing, a `tproxy start` would end what serves that bridge.
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
    """Mend what somebody broke on a bridge that is up; returns what was done, in words.

    ``uplinks`` are those that it had, lest they are lost. ``restored``: its map was, which the daemon
    may not know. ``foreign_mac``: see plan.up_foreign; None for a bridge that a hook brought up.
    """
    with run_directory.lock() as lock:
        plumbing.require_bridge(bridge)
        found = plumbing.observe(bridge)
        if found.map is None:
            return []  # taken down meanwhile
        named = found.guard.named_or(uplinks) if found.guard else uplinks
        if foreign_mac is not None:
            actions = plan.up_foreign(bridge, found, foreign_mac)
        else:
            actions = plan.up(found.map, found, named)
        plumbing.carry_out(actions, quiet=True)  # the caller tells, in one line
        if actions or restored:
            client.ensure_daemon(settings, lock)
            _apply(bridge, settings)
    return list(map(str, actions))


def down(bridge: str, uplinks: frozenset[str], *, force: bool) -> frozenset[str]:
    """Remove all of ours from the bridge, which may be gone already.

    Returns the guests because of which nothing was done; none when it was done, or ``force``.
    """
    check_interface_name(bridge)
    with run_directory.lock():
        observed = plumbing.observe(bridge)
        guests = plan.guests(bridge, observed, uplinks)
        if guests and not force:
            log.info("bridge %s is in use by %s: left alone", bridge, ", ".join(sorted(guests)))
            return guests
        remove(bridge, observed)
    return frozenset()


def collect(bridge: str, uplinks: frozenset[str], unused_for: float) -> bool:
    """``down`` for a bridge that no hook wanted for some seconds; returns whether there was anything left.

    A hook may have been called for a guest that is still to come.
    """
    with run_directory.lock():
        observed = plumbing.observe(bridge)
        if not left_behind(bridge, observed, uplinks, unused_for):
            return False
        remove(bridge, observed)
    return True


def left_behind(bridge: str, observed: plan.Observed, uplinks: frozenset[str], unused_for: float) -> bool:
    """Whether what is there is ours, and nobody needs it."""
    used = run_directory.last_use(bridge)
    guard = observed.guard
    ours = used is not None or (guard is not None and bool(guard.own(guards.VETHS)))
    if observed.inner is not None:
        ours |= observed.inner.mac == SERVICE_MAC
    named = guard.named_uplinks if guard else frozenset()
    guests = plan.guests(bridge, observed, uplinks | named | observed.recognised_uplinks)
    # A time to come is of a boot before, or of an older version.
    return ours and not guests and (used is None or not 0 <= used < unused_for)


def remove(bridge: str, observed: plan.Observed) -> None:
    """Remove all of ours from the bridge. The caller holds the lock."""

    def unload(now: plan.Observed) -> list[plan.Action]:
        there = observed._replace(map=observed.map and now.map, guard=observed.guard and now.guard)
        return plan.unload(bridge, there)

    _carry_out(bridge, observed, unload)
    plumbing.delete_empty_tables()
    if client.daemon_answers():
        _apply(bridge, Settings())
    else:
        client.leave_word(bridge)
    from tproxy.process import table  # and what it takes to end a process: `up` needs none of it

    table.end_relay(bridge)  # one that a crashed daemon left, and which the new one does not know
    plumbing.carry_out(plan.dismantle(bridge, observed))
    run_directory.forget_use(bridge)


def _reconcile(
    wanted: ServiceMap,
    before: plan.Observed,
    uplinks: frozenset[str],
    settings: Settings,
    lock: Lock,
) -> bool:
    """Make it so, and undo it if that cannot be; returns whether anything had to be done."""
    bridge = wanted.bridge
    try:
        storable = service_map.storable(wanted)
        actions = _carry_out(bridge, before, lambda now: plan.up(storable, now, uplinks))
        if actions:
            plumbing.warn_of_host_firewall(bridge)
        client.ensure_daemon(settings, lock)
        _apply(bridge, settings)
    except TproxyError as error:
        log.error("bridge %s cannot be brought up, undoing: %s", bridge, error)
        _restore(bridge, before)
        raise
    return bool(actions)


def _carry_out(
    bridge: str, observed: plan.Observed, planned: Callable[[plan.Observed], list[plan.Action]]
) -> list[plan.Action]:
    """Do what is planned for what was observed; returns it."""
    actions = planned(observed)
    try:
        plumbing.carry_out(actions)
    except NftError:  # strangers do not take our lock: all may have been flushed since it was looked at
        actions = planned(plumbing.observe(bridge))
        plumbing.carry_out(actions)
    return actions


def _taken_down(bridge: str) -> bool:
    """Whether somebody did so on purpose, be it a hook, or a program that built it in its own way."""
    return run_directory.last_use(bridge) is None and not plumbing.has_links(bridge)


def _apply(bridge: str, settings: Settings) -> None:
    # The file of this bridge's hook says nothing about the watcher that another file may want.
    problems = client.apply([bridge], settings._replace(watch_file=None))
    if problems:
        raise ProcessError("; ".join(problems))


def _restore(bridge: str, before: plan.Observed) -> None:
    """Undo a failed ``up``: a new bridge gets nothing, one that was in use its map of before."""
    with suppress(TproxyError):  # the error that is on its way says what is wrong
        now = plumbing.observe(bridge)
        if before.map is None:
            remove(bridge, now.added_since(before))
        elif now.map is not None and before.map != now.map:
            nftables.transaction(service_map.change_map(now.map, before.map))
            client.apply([bridge], Settings())
