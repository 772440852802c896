"""Repair of bridges that are up, after somebody else changed what belongs to them.

Theory of operation. The kernel announces changes to links and to nftables. For what it does not announce,
such as a changed sysctl, ``probe`` makes a comparison every few seconds. Each of these hints only makes a
bridge doubtful. A little later, when whoever changes something had time to finish, one look
compares all doubtful bridges with what is remembered of them, and reports events to the state machine in
``states``. That decides what is broken. ``reconcile.repair`` then decides again, under the host's lock,
what there is to do.

The maps are the database (docs/contract.md, nftables is the database): a map that somebody deletes or
changes is meant to be so. But somebody who flushes all of nftables thinks of his own rules. Then, and only
then, maps are restored from memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from tproxy.bridge import guards, nftables, plan, plumbing
from tproxy.bridge.guards import ObservedGuard
from tproxy.daemon import client
from tproxy.errors import KernelError, TproxyError
from tproxy.kernel import kinds, links
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import Ruleset
from tproxy.model import ServiceMap, Settings
from tproxy.names import BridgeNames
from tproxy.operations import reconcile
from tproxy.process import run_directory
from tproxy.watch.probe import Probe
from tproxy.watch.record import Bridge, Doubts, Memory, bridges_in
from tproxy.watch.states import EXAMINED, Event, Step, step

log = logging.getLogger(__name__)

SETTLE = 0.5  # seconds: longer than a hook, or another program's, takes between its steps
TICK = 2.0  # seconds between two comparisons of what the kernel does not announce
RETRY = 3.0  # seconds after which a repair that failed is tried again

# Other programs do not take our lock: a link can go, or come, while it is looked at.
UNSTEADY = (TproxyError, OSError)


class Repairer:
    """Watches all bridges that are up, and repairs them.

    ``settings`` are for a daemon that has to be started.
    """

    def __init__(self, loop: Loop, settings: Callable[[], Settings]) -> None:
        self._loop = loop
        self._settings = settings
        self._bridges: dict[str, Bridge] = {}
        self._owners: dict[str, str] = {}  # bridges, by the name of our port of each
        self._doubts = Doubts()
        self._look_is_due = False
        self._repairs: deque[str] = deque()  # exactly the BROKEN ones; the first is next
        self._problem = ""  # why the last look failed

    def uplinks(self, bridge: str) -> frozenset[str]:
        """Return the uplinks that a hook named when it brought the bridge up."""
        record = self._bridges.get(bridge)
        if record is None:  # not examined yet
            return nftables.read_guard(bridge).named_uplinks
        return record.memory.uplinks

    def is_missing_maps(self) -> bool:
        """Whether some map that is only in this memory was neither restored nor forgotten yet."""
        try:
            return not self._bridges.keys() <= {each.bridge for each in nftables.read_maps()}
        except TproxyError:
            return True  # unknown is not empty

    # Hints

    def links_changed(self, names: Iterable[str]) -> None:
        """Take a hint from the kernel: these links came, went or changed."""
        bridges = {self._owners.get(name, name) for name in names}
        self._doubt(links=bridges & self._bridges.keys())

    def ruleset_changed(self, change: Ruleset) -> None:
        """Take a hint from the kernel: somebody changed our tables in nftables."""
        bridges, everything = bridges_in(change)
        self._doubts.maps_deleted |= change.maps_deleted
        self._doubts.all_rules |= everything
        self._doubt(rules=bridges)

    def doubt_all(self) -> None:
        """Examine all bridges: at start, and when the kernel says that hints were lost."""
        self._doubts.all_rules = True
        self._doubt(links=self._bridges)

    def check_namespaces(self) -> None:
        """Compare what the kernel does not announce: namespaces, sysctls, and entries for our MAC."""
        self._doubt(links=[each.name for each in self._bridges.values() if each.probe and each.probe.changed])

    def _doubt(self, *, links: Iterable[str] = (), rules: Iterable[str] = (), after: float = SETTLE) -> None:
        self._doubts.links.update(links)
        self._doubts.rules.update(rules)
        if self._doubts and not self._look_is_due:
            self._look_is_due = True
            self._loop.call_later(after, self._look)

    # Looks

    def _look(self) -> None:
        self._look_is_due = False
        if self._doubts.rules or self._doubts.all_rules:
            try:
                self._examine_rules()
            except UNSTEADY as error:
                problem = f"nftables cannot be compared with what bridges had: {error}"
                if problem != self._problem:
                    log.warning("%s", problem)
                self._problem = problem
                self._doubts.all_rules = True  # that is, what was not examined before the error
                self._doubt(after=RETRY)
                return
            self._problem = ""
        doubtful, self._doubts.links = self._doubts.links, set()
        for name in filter(links.is_bridge, doubtful):
            record = self._bridges.get(name)
            if record is None or record.state not in EXAMINED:
                continue
            try:
                self._examine_links(record)
            except UNSTEADY:
                self._doubt(links={name})

    def _examine_links(self, record: Bridge) -> None:
        if _links_broken(record):
            self._report(record, Event.LINKS_WRONG)
        else:
            self._remember_links(record)

    def _examine_rules(self) -> None:
        maps = {each.bridge: each for each in nftables.read_maps()}
        # The kernel's message about the table may have been lost, so look whether it is there, too.
        if self._doubts.maps_deleted or not nftables.table_exists("ip"):
            lost = [record.memory.map for name, record in self._bridges.items() if name not in maps]
            for name in reconcile.restore(lost):
                self._bridges[name].done.append(f"load service map of {name}")
                self._report(self._bridges[name], Event.MAP_RESTORED)
        found = nftables.read_guards()
        doubtful = self._bridges.keys() | maps.keys() if self._doubts.all_rules else self._doubts.rules
        self._doubts = Doubts(links=self._doubts.links)
        for name in sorted(doubtful):
            record = self._bridges.get(name)
            if record is not None and record.state not in EXAMINED:
                continue
            now = maps.get(name)
            if now is None:
                if record is not None:
                    self._report(record, Event.MAP_GONE)
            elif links.is_bridge(name):
                self._examine_guards(now, found.get(name) or found[""]._replace(bridge=name))

    def _examine_guards(self, now: ServiceMap, guard: ObservedGuard) -> None:
        ours = bool(guard.own(guards.VETHS)) or run_directory.last_use(now.bridge) is not None
        seen = Memory(now, guard.named_uplinks, ours)
        record = self._bridges.get(now.bridge) or Bridge(now.bridge, seen)
        wrong = record.memory.ours and _guards_broken(now, guard, record.memory.uplinks)
        self._report(record, Event.GUARDS_WRONG if wrong else Event.GUARDS_RIGHT, seen)

    # States

    def _report(self, record: Bridge, event: Event, seen: Memory | None = None) -> None:
        """Move the bridge to its next state, and do what belongs to that. REMEMBER needs ``seen``."""
        record.state, steps = step(record.state, event)
        for each in steps:
            match each:
                case Step.REMEMBER:
                    assert seen is not None
                    self._remember(record, seen)
                case Step.EXAMINE_LINKS:
                    self._doubts.links.add(record.name)
                case Step.LOOK_AGAIN:
                    self._doubt(rules={record.name})
                case Step.QUEUE_REPAIR:
                    self._queue_repair(record.name)
                case Step.RETRY_LATER:
                    self._loop.call_later(RETRY, partial(self._retry, record.name))
                case Step.FORGET:
                    self._forget(record)

    def _remember(self, record: Bridge, seen: Memory) -> None:
        record.memory = seen
        self._bridges[record.name] = record
        self._owners[BridgeNames(record.name).veth_bridge] = record.name

    def _remember_links(self, record: Bridge) -> None:
        if record.probe is not None and not record.probe.changed:
            return
        if record.probe is not None:
            record.probe.close()
        record.probe, record.mac = self._probe(record)

    def _forget(self, record: Bridge) -> None:
        del self._bridges[record.name]
        del self._owners[BridgeNames(record.name).veth_bridge]
        if record.probe is not None:
            record.probe.close()

    def _probe(self, record: Bridge) -> tuple[Probe | None, str]:
        """Return a probe of the bridge's namespace and the MAC in it; None and "" while it is incomplete."""
        names = BridgeNames(record.name)
        observed = plumbing.observe_links(record.name)
        if observed.inner is None or plan.links_broken(record.memory.map, observed, foreign=True):
            return None, ""
        try:
            sysctls = plan.namespace_sysctls(names, ipv6=record.memory.map.ipv6)
            return Probe(names, list(sysctls)), observed.inner.mac
        except (KernelError, OSError) as error:
            self._say(record, f"bridge {record.name}: its namespace cannot be watched: {error}")
            return None, ""

    # Repair

    def _queue_repair(self, bridge: str) -> None:
        self._repairs.append(bridge)
        if len(self._repairs) == 1:
            self._loop.call_later(0, self._repair_next)

    def _retry(self, bridge: str) -> None:
        record = self._bridges.get(bridge)
        if record is not None:
            self._report(record, Event.RETRY_DUE)

    def _repair_next(self) -> None:
        """Repair one bridge in each turn of the loop, because a repair takes a while."""
        record = self._bridges[self._repairs.popleft()]
        if self._repairs:
            self._loop.call_later(0, self._repair_next)
        try:
            record.done += self._repair(record)
        except UNSTEADY as error:
            self._say(record, f"bridge {record.name} is broken and cannot be repaired: {error}")
            client.count_repair(record.name, failed=True)
            self._report(record, Event.REPAIR_FAILED)
            return
        if record.done:
            client.count_repair(record.name, failed=False)
            self._say(record, f"bridge {record.name} was broken; repaired: {'; '.join(record.done)}")
        record.said = ""
        record.done = []
        self._report(record, Event.REPAIRED)

    def _repair(self, record: Bridge) -> list[str]:
        if not links.is_bridge(record.name):
            return []
        return reconcile.repair(
            record.name,
            record.memory.uplinks,
            self._settings(),
            restored=bool(record.done),
            foreign_mac=None if record.memory.ours else record.mac,
        )

    def _say(self, record: Bridge, line: str) -> None:
        if record.said != line:
            log.warning("%s", line)
        record.said = line


def _guards_broken(found: ServiceMap, guard: ObservedGuard, uplinks: frozenset[str]) -> bool:
    ports = links.ports(guard.bridge)
    observed = plan.Observed(ports=ports, recognised_uplinks=kinds.uplinks(guard.bridge, ports), guard=guard)
    return plan.guards_broken(found, observed, guard.named_uplinks_or(uplinks))


def _links_broken(record: Bridge) -> bool:
    foreign = not record.memory.ours
    if foreign and record.probe is None:
        return False
    return plan.links_broken(record.memory.map, plumbing.observe_links(record.name), foreign=foreign)
