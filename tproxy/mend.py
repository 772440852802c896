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
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tproxy import guards, hook, instance, links, nft, plan, plumbing, ruleset
from tproxy.config import Config
from tproxy.errors import KernelError, NftError, TproxyError
from tproxy.guards import ObservedGuard
from tproxy.loop import Loop
from tproxy.model import BridgeNames, ServiceMap
from tproxy.netlink import Ruleset
from tproxy.probe import Probe

log = logging.getLogger(__name__)

SETTLE = 0.5  # seconds: longer than a hook, or another program's, takes between its steps
TICK = 2.0  # seconds
RETRY = 10.0  # seconds, for what cannot be repaired


class Kept(NamedTuple):
    """A bridge that is up, as it was last seen in good order."""

    map: ServiceMap
    guard: ObservedGuard
    ours: bool  # built by a hook, and not by another program in its own way
    probe: Probe | None  # None: whoever builds it is not done yet
    mac: str  # of the veth in the namespace


class Mender:
    """``config`` tells what is configured now; ``watch`` is what a daemon is to be started with."""

    def __init__(self, loop: Loop, config: Callable[[], Config], watch: str | None) -> None:
        self._loop = loop
        self._config = config
        self._watch = watch
        self._kept: dict[str, Kept] = {}
        self._owners: dict[str, str] = {}  # bridges by the name of our veth
        self._doubtful: set[str] = set()
        self._all_doubtful = self._maps_lost = False
        self._due = False
        self._broken: dict[str, ServiceMap | None] = {}  # with the map that it lost
        self._said: dict[str, str] = {}

    def uplinks(self, bridge: str) -> frozenset[str]:
        """Those that a hook named when it brought the bridge up."""
        kept = self._kept.get(bridge)
        return kept.guard.named_uplinks if kept else frozenset()

    # Doubts

    def links_touched(self, names: Iterable[str]) -> None:
        for name in names:
            bridge = self._owners.get(name, name)
            if bridge in self._kept:
                self._doubt({bridge})

    def ruleset_touched(self, told: Ruleset) -> None:
        self._maps_lost |= told.maps_deleted
        bridges, everything = _bridges_in(told)
        if everything:
            self.doubt_all()
        self._doubt(bridges)

    def doubt_all(self) -> None:
        self._all_doubtful = True
        self._doubt(set())

    def look(self) -> None:
        """What nothing tells of."""
        self._doubt({bridge for bridge, kept in self._kept.items() if kept.probe and kept.probe.changed})

    def _doubt(self, bridges: set[str], after: float = SETTLE) -> None:
        self._doubtful |= bridges
        if (self._doubtful or self._all_doubtful) and not self._due:
            self._due = True
            self._loop.call_later(after, self._examine)

    # Certainty

    def _examine(self) -> None:
        self._due = False
        try:
            maps = {each.bridge: each for each in nft.read_maps()}
            found = nft.read_guards()
            # Messages may have been lost, so it is not enough that none told of the table's end.
            lost = self._maps_lost or not nft.table_exists("ip")
        except NftError as error:
            self._say("", f"nftables cannot be read: {error}")
            self._doubt(set(), RETRY)
            return
        doubtful = self._doubtful | (self._kept.keys() | maps.keys() if self._all_doubtful else set())
        self._doubtful, self._all_doubtful, self._maps_lost = set(), False, False
        for bridge in filter(links.is_bridge, sorted(doubtful)):
            self._judge(bridge, maps.get(bridge), found.get(bridge) or ObservedGuard(bridge), lost)
        self._loop.call_later(0, self._repair_one)

    def _judge(self, bridge: str, now: ServiceMap | None, guard: ObservedGuard, lost: bool) -> None:
        kept = self._kept.get(bridge)
        if now is not None:
            kept = kept or self._remember(now, guard)
            if _guard_broken(kept, guard) or _links_broken(kept):
                self._broken[bridge] = None
            else:
                self._remember(now, guard)
        elif kept is not None and lost:
            self._broken[bridge] = kept.map
        else:
            self._forget(bridge)

    def _repair_one(self) -> None:
        """One in each of the loop's turns: a repair takes a while."""
        for bridge in list(self._broken)[:1]:
            self._repair(bridge, self._broken.pop(bridge))
            self._loop.call_later(0, self._repair_one)

    def _repair(self, bridge: str, lost: ServiceMap | None) -> None:
        kept, config = self._kept[bridge], self._config()
        uplinks, mac = kept.guard.named_uplinks, "" if kept.ours else kept.mac
        try:
            done = hook.repair(bridge, lost, uplinks, config.log_level, foreign_mac=mac, watch=self._watch)
            now, guard = nft.read_map(bridge), nft.read_guard(bridge)
        except TproxyError as error:
            self._say(bridge, f"bridge {bridge} is broken and cannot be repaired: {error}")
            self._doubt({bridge}, RETRY)
            return
        if done:
            self._say(bridge, f"bridge {bridge} was broken; repaired: {'; '.join(done)}")
        self._said.pop(bridge, None)
        if now is None:
            self._forget(bridge)
        else:
            self._remember(now, guard)

    def _say(self, bridge: str, line: str) -> None:
        if self._said.get(bridge) != line:
            log.warning("%s", line)
        self._said[bridge] = line

    # Memory

    def _remember(self, now: ServiceMap, guard: ObservedGuard) -> Kept:
        bridge = now.bridge
        kept = self._kept.get(bridge)
        guard = guard._replace(sets={name: guard.own(name) for name in guards.SETS})
        probe, mac = (kept.probe, kept.mac) if kept else (None, "")
        if probe is None or probe.changed:
            if probe is not None:
                probe.close()
            probe, mac = self._probe(bridge)
        ours = bool(guard.own(guards.VETHS)) or instance.last_use(bridge) is not None
        self._kept[bridge] = kept = Kept(now, guard, ours, probe, mac)
        self._owners[BridgeNames(bridge).veth_bridge] = bridge
        return kept

    def _forget(self, bridge: str) -> None:
        kept = self._kept.pop(bridge, None)
        if kept is not None:
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
    bridges = {words["bridge"] for words in map(ruleset.decode_words, told.comments) if "bridge" in words}
    others = set(told.names)
    for prefix in (ruleset.MAP_PREFIX, guards.ARP_GUARD_PREFIX):
        mine = {name for name in others if name.startswith(prefix)}
        bridges |= {name.removeprefix(prefix) for name in mine}
        others -= mine
    if bridges:
        others -= set(guards.SETS)  # their elements say which
    return bridges, bool(others)


def _guard_broken(kept: Kept, now: ObservedGuard) -> bool:
    if not kept.ours:
        return False
    if not now.own(guards.VETHS) or (now.shared, now.arp_guard) != (kept.guard.shared, kept.guard.arp_guard):
        return True
    # The daemon follows the ports; what is gone though it should not be is somebody else's doing.
    bridge = kept.map.bridge
    gone = {name for each in guards.SETS for name in kept.guard.own(each).keys() - now.own(each).keys()}
    return bool(gone) and not gone.isdisjoint({bridge} | links.ports(bridge))


def _links_broken(kept: Kept) -> bool:
    bridge = kept.map.bridge
    if not kept.ours and kept.probe is None:
        return False
    return plan.links_broken(bridge, plumbing.observe_links(bridge), foreign=not kept.ours)
