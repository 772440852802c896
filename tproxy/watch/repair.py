"""Notices what strangers break on bridges that are up, and has it repaired; also the daemon.

Theory of operation. The kernel tells of changes to links and to nftables, and a look every few seconds
at each namespace (``probe``) tells of the rest. All of that only raises doubts about bridges. A little
later, when whoever is at it had time to finish, doubtful bridges are compared with what is remembered
of them. ``hook.repair`` then has the last word: it looks again, under the host's lock.

The maps are the database: a map that is deleted or changed by somebody is meant to be. But whoever
flushes all of nftables means his own rules; then, and only then, maps are restored from memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from tproxy.bridge import guards, nftables, plan, plumbing, service_map
from tproxy.bridge.guards import ObservedGuard
from tproxy.errors import KernelError, TproxyError
from tproxy.kernel import links
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import Ruleset
from tproxy.model import BridgeNames, ServiceMap, Settings
from tproxy.operations import reconcile
from tproxy.process import run_directory
from tproxy.watch.probe import Probe

log = logging.getLogger(__name__)

SETTLE = 0.5  # seconds: longer than a hook, or another program's, takes between its steps
TICK = 2.0  # seconds
RETRY = 3.0  # seconds, for what cannot be repaired

# Strangers do not take our lock: a link can go, or come, while it is looked at.
UNSTEADY = (TproxyError, OSError)


class Kept(NamedTuple):
    """A bridge that is up, as it was last seen in good order."""

    map: ServiceMap
    uplinks: frozenset[str]  # those that a hook named
    ours: bool  # built by a hook, and not by another program in its own way
    probe: Probe | None  # None: whoever builds it is not done yet
    mac: str  # of the veth in the namespace


class Mender:
    """``settings`` are for a daemon that has to be started."""

    def __init__(self, loop: Loop, settings: Callable[[], Settings]) -> None:
        self._loop = loop
        self._settings = settings
        self._kept: dict[str, Kept] = {}
        self._owners: dict[str, str] = {}  # bridges by the name of our veth
        self._doubtful_links: set[str] = set()
        self._doubtful_ruleset: set[str] = set()
        self._everything = False  # of the ruleset is doubtful
        self._maps_lost = False
        self._due = False
        self._missed: set[str] = set()  # bridges without their map
        self._suspects: set[str] = set()  # bridges with other guards than they should have
        self._broken: dict[str, list[str]] = {}  # with what was done already
        self._due_repairs: deque[str] = deque()
        self._said: dict[str, str] = {}

    def uplinks(self, bridge: str) -> frozenset[str]:
        """Those that a hook named when it brought the bridge up."""
        kept = self._kept.get(bridge)
        return kept.uplinks if kept else nftables.read_guard(bridge).named_uplinks  # not examined yet

    def is_missing_maps(self) -> bool:
        """Whether a map is gone and not yet restored from memory, which nobody else has, or forgotten."""
        try:
            return not self._kept.keys() <= {each.bridge for each in nftables.read_maps()}
        except TproxyError:
            return True  # unknown is not empty

    # Doubts

    def links_touched(self, names: Iterable[str]) -> None:
        bridges = {self._owners.get(name, name) for name in names}
        self._doubt(links=bridges & self._kept.keys())

    def ruleset_touched(self, told: Ruleset) -> None:
        bridges, everything = _bridges_in(told)
        self._maps_lost |= told.maps_deleted
        self._everything |= everything
        self._doubt(ruleset=bridges)

    def doubt_all(self) -> None:
        self._everything = True
        self._doubt(links=set(self._kept))

    def look(self) -> None:
        """What nothing tells of."""
        self._doubt(links={name for name, kept in self._kept.items() if kept.probe and kept.probe.changed})

    def _doubt(
        self, *, links: Iterable[str] = (), ruleset: Iterable[str] = (), after: float = SETTLE
    ) -> None:
        self._doubtful_links.update(links)
        self._doubtful_ruleset.update(ruleset)
        if (self._doubtful_links or self._doubtful_ruleset or self._everything) and not self._due:
            self._due = True
            self._loop.call_later(after, self._examine)

    # Certainty

    def _examine(self) -> None:
        self._due = False
        if self._doubtful_ruleset or self._everything:
            try:
                self._examine_ruleset()
            except UNSTEADY as error:
                self._say("", f"the ruleset cannot be looked after: {error}")
                self._everything = True  # that is, what was not come to
                self._doubt(after=RETRY)
                return
            self._said.pop("", None)
        doubtful = self._doubtful_links & self._kept.keys() - self._broken.keys()
        self._doubtful_links.clear()
        for bridge in filter(links.is_bridge, doubtful):
            try:
                self._examine_links(bridge)
            except UNSTEADY:
                self._doubt(links={bridge})

    def _examine_links(self, bridge: str) -> None:
        if _links_broken(self._kept[bridge]):
            self._to_repair(bridge)
        else:
            self._remember_links(bridge)

    def _examine_ruleset(self) -> None:
        maps = {each.bridge: each for each in nftables.read_maps()}
        # Messages may have been lost, so it is not enough that none told of the table's end.
        if self._maps_lost or not nftables.table_exists("ip"):
            for bridge in reconcile.restore(
                each.map for name, each in self._kept.items() if name not in maps
            ):
                self._to_repair(bridge, [f"load service map of {bridge}"])
        found = nftables.read_guards()
        doubtful = self._kept.keys() | maps.keys() if self._everything else self._doubtful_ruleset
        doubtful = doubtful - self._broken.keys()  # judged already, and waiting for their repair
        self._doubtful_ruleset, self._everything, self._maps_lost = set(), False, False
        for bridge in sorted(doubtful):
            now = maps.get(bridge)
            if now is None:
                self._miss(bridge)
            elif links.is_bridge(bridge):
                self._examine_guard(now, found.get(bridge) or found[""]._replace(bridge=bridge))

    def _examine_guard(self, now: ServiceMap, guard: ObservedGuard) -> None:
        bridge = now.bridge
        kept = self._kept.get(bridge)
        if kept is None:
            kept = self._remember(now, guard)
            self._doubtful_links.add(bridge)
        if not (kept.ours and _guard_broken(guard, kept.uplinks)):
            self._suspects.discard(bridge)
            self._remember(now, guard)
        elif bridge in self._suspects:
            self._suspects.discard(bridge)
            self._to_repair(bridge)
        else:
            # The daemon makes guards follow the ports: it may be about to.
            self._suspects.add(bridge)
            self._doubt(ruleset={bridge})

    # Repair

    def _to_repair(self, bridge: str, done: Iterable[str] = ()) -> None:
        self._broken.setdefault(bridge, []).extend(done)
        if bridge not in self._due_repairs:
            self._due_repairs.append(bridge)
            if len(self._due_repairs) == 1:
                self._loop.call_later(0, self._repair_next)

    def _repair_next(self) -> None:
        """One in each of the loop's turns: a repair takes a while."""
        bridge = self._due_repairs.popleft()
        if self._due_repairs:
            self._loop.call_later(0, self._repair_next)
        done = self._broken[bridge]
        try:
            done += self._repair(bridge, restored=bool(done))
        except UNSTEADY as error:
            self._say(bridge, f"bridge {bridge} is broken and cannot be repaired: {error}")
            self._loop.call_later(RETRY, partial(self._to_repair, bridge))
            return
        if done:
            self._say(bridge, f"bridge {bridge} was broken; repaired: {'; '.join(done)}")
        self._said.pop(bridge, None)
        del self._broken[bridge]
        self._doubt(ruleset={bridge})  # its map may have gone while it was broken

    def _repair(self, bridge: str, *, restored: bool) -> list[str]:
        kept = self._kept[bridge]
        if not links.is_bridge(bridge):
            return []
        mac = None if kept.ours else kept.mac
        return reconcile.repair(bridge, kept.uplinks, self._settings(), restored=restored, foreign_mac=mac)

    def _say(self, bridge: str, line: str) -> None:
        if self._said.get(bridge) != line:
            log.warning("%s", line)
        self._said[bridge] = line

    # Memory

    def _remember(self, now: ServiceMap, guard: ObservedGuard) -> Kept:
        bridge = now.bridge
        kept = self._kept.get(bridge)
        ours = bool(guard.own(guards.VETHS)) or run_directory.last_use(bridge) is not None
        probe, mac = (kept.probe, kept.mac) if kept else (None, "")
        self._kept[bridge] = kept = Kept(now, guard.named_uplinks, ours, probe, mac)
        self._owners[BridgeNames(bridge).veth_bridge] = bridge
        self._missed.discard(bridge)
        return kept

    def _remember_links(self, bridge: str) -> None:
        kept = self._kept[bridge]
        if kept.probe is not None and not kept.probe.changed:
            return
        if kept.probe is not None:
            kept.probe.close()
        probe, mac = self._probe(bridge)
        self._kept[bridge] = kept._replace(probe=probe, mac=mac)

    def _miss(self, bridge: str) -> None:
        """Its map is gone, which is meant to be unless all were flushed: that may not have been read yet."""
        if bridge in self._missed:
            self._forget(bridge)
        elif bridge in self._kept:
            self._missed.add(bridge)
            self._doubt(ruleset={bridge})

    def _forget(self, bridge: str) -> None:
        self._missed.discard(bridge)
        kept = self._kept.pop(bridge)
        if kept.probe is not None:
            kept.probe.close()
        del self._owners[BridgeNames(bridge).veth_bridge]

    def _probe(self, bridge: str) -> tuple[Probe | None, str]:
        names = BridgeNames(bridge)
        observed = plumbing.observe_links(bridge)
        if observed.inner is None or plan.links_broken(bridge, observed, foreign=True):
            return None, ""
        try:
            return Probe(names.namespace, list(plan.namespace_sysctls(names))), observed.inner.mac
        except (KernelError, OSError) as error:
            self._say(bridge, f"bridge {bridge}: its namespace cannot be looked after: {error}")
            return None, ""


def _bridges_in(told: Ruleset) -> tuple[set[str], bool]:
    """The bridges that a change concerns, and whether it may concern all."""
    bridges = {words["bridge"] for words in map(service_map.decode_words, told.comments) if "bridge" in words}
    others = set(told.names)
    for prefix in (service_map.MAP_PREFIX, guards.ARP_GUARD_PREFIX):
        mine = {name for name in others if name.startswith(prefix)}
        bridges |= {name.removeprefix(prefix) for name in mine}
        others -= mine
    if bridges:
        others -= set(guards.SETS)  # their elements say which
    return bridges, bool(others)


def _guard_broken(guard: ObservedGuard, uplinks: frozenset[str]) -> bool:
    ports = links.ports(guard.bridge)
    recognised = frozenset(filter(links.leads_off_host, ports))
    observed = plan.Observed(ports=ports, recognised_uplinks=recognised, guard=guard)
    return plan.guards_broken(guard.bridge, observed, guard.named_or(uplinks))


def _links_broken(kept: Kept) -> bool:
    bridge = kept.map.bridge
    if not kept.ours and kept.probe is None:
        return False
    return plan.links_broken(bridge, plumbing.observe_links(bridge), foreign=not kept.ours)
