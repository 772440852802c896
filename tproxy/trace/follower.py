"""Follows a guest until it is told to stop: brings together frames, drops and what workers tell, in order.

News comes from several sources, each a little late. So it waits for SETTLE, and is handled in the order in
which things happened.
"""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.bridge import nftables
from tproxy.datapath.tracing import Told
from tproxy.errors import NftError
from tproxy.kernel import links, rtnetlink
from tproxy.kernel.limits import raise_descriptor_limit
from tproxy.kernel.loop import READ, Loop
from tproxy.kernel.netlink import LinkEvents, Ruleset, RulesetEvents
from tproxy.model import ServiceKey
from tproxy.names import BridgeNames
from tproxy.trace import filters, frames, reasons
from tproxy.trace.attempt import FROM_GUEST, FROM_US, PATIENCE, TO_GUEST, TO_US, Link, Missing
from tproxy.trace.attempts import Attempts, Place
from tproxy.trace.line import Line
from tproxy.trace.reports import Reports
from tproxy.trace.rule_events import Drop
from tproxy.trace.rule_tracing import RuleTracing
from tproxy.trace.taps import Tap
from tproxy.trace.wish import Served, Wish, describe, served

# Seconds that news waits for news of before, and between two looks at what has ended.
SETTLE, TICK = 0.05, 0.2
# Seconds between two lines that say what was not shown.
_SUMMARY = 5.0


class Follower:
    """``show`` gets each line. It stops after ``count`` attempts, or so many ``seconds``; 0: never."""

    def __init__(self, wish: Wish, show: Callable[[Line], None], count: int, seconds: float) -> None:
        self._wish = wish
        self._show = show
        self._count = count
        self._seconds = seconds
        self._end = 0.0  # when the time is over, from when it follows
        self._loop = Loop()
        self._bridges = {each.bridge: each for each in served(wish)}
        self._attempts = Attempts(show, self._has)
        self._texts = reasons.our_texts(
            frozenset().union(*(each.addresses for each in self._bridges.values()))
        )
        self._news: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._taps: dict[
            int, tuple[Tap, str, bool]
        ] = {}  # by descriptor: with the bridge, and whether it is ours
        self._tracings: dict[str, RuleTracing] = {}  # by bridge, "" for the host
        self._by_fd: dict[int, tuple[RuleTracing, str]] = {}
        self._lost = ""
        self._lost_until = 0.0
        self._said = time.monotonic()
        self._started = False
        words = [f"bridge={each}" for each in self._bridges]
        self._reports = Reports(self._loop, [*words, *wish.words], self._hear, self._note_lost)

    @property
    def failed(self) -> int:
        """How many attempts have failed."""
        return self._attempts.failed

    def run(self) -> None:
        """Follow until a signal, or until there is enough. Raises TproxyError, OSError."""
        raise_descriptor_limit()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.on_signal(number, self._loop.stop)
        events = LinkEvents(self._loop, lambda names, masters: self._look_at_ports(), self._look_at_ports)
        RulesetEvents(self._loop, self._rules_changed, self._read_maps)
        self._trace_rules()
        self._look_at_ports()
        self._loop.call_later(0, self._tick)  # not at once: a loop that does not run yet cannot be stopped
        self._loop.run()
        events.close()
        self._deliver(time.monotonic() + SETTLE)
        self._finish()

    # What is followed

    def _look_at_ports(self) -> None:
        """Have a tap at each port that may be the guest's, and at ours."""
        wanted = {}
        for each in self._bridges.values():
            ports = links.ports(each.bridge)
            guests = ports - {each.ours} if not self._wish.port else ports & {self._wish.port}
            wanted.update(dict.fromkeys(guests, (each, False)))
            if each.ours in ports:
                wanted[each.ours] = each, True
        there = {tap.link: fd for fd, (tap, _, _) in self._taps.items()}
        for link in there.keys() - wanted.keys():
            self._remove(there[link])
        for link in wanted.keys() - there.keys():
            each, ours = wanted[link]
            with suppress(OSError):  # it has gone meanwhile
                tap = Tap(link, self._program(each))
                self._taps[tap.fileno()] = tap, each.bridge, ours
                self._loop.add(tap.fileno(), READ, self)

    def _program(self, bridge: Served) -> bytes:
        some = [[each] if each else [] for each in (self._wish.address, self._wish.mac)]
        return filters.program(bridge.addresses, *some)

    def _remove(self, fd: int) -> None:
        tap, bridge, ours = self._taps.pop(fd)
        self._loop.close_later(tap)
        if not ours:
            now = time.monotonic()
            self._later(now, lambda: self._attempts.gone(bridge, tap.link, now))

    def _trace_rules(self) -> None:
        """Have the rules traced on the host, and in the namespace of each bridge."""
        services = frozenset().union(*(each.addresses for each in self._bridges.values()))
        ours = [each.ours for each in self._bridges.values()]
        followed = {
            each.bridge: (each.bridge, self._wish.followed(each.addresses)) for each in self._bridges.values()
        }
        for name, (bridge, whom) in {"": ("", self._wish.followed(services)), **followed}.items():
            tracing = self._tracings.get(name)
            if tracing is None:
                tracing = self._tracings[name] = RuleTracing(BridgeNames(bridge).namespace if bridge else "")
            before = tracing.fileno()
            tracing.follow(ours, whom)
            fd = tracing.fileno()
            if fd not in (before, -1):
                self._by_fd[fd] = tracing, name
                self._loop.add(fd, READ, self)

    def _link(self, bridge: str) -> Link:
        tracings = (each for name, each in self._tracings.items() if name in ("", bridge))
        missing = next((each.missing for each in tracings if each.missing), "")
        return Link(bridge, BridgeNames(bridge).veth_bridge, missing and f"rules cannot be traced: {missing}")

    def _rules_changed(self, changed: Ruleset) -> None:
        maps = (name for each in map(BridgeNames, self._bridges) for name in (each.map, each.typed_map))
        if not changed.names.isdisjoint(maps):
            self._read_maps()

    def _read_maps(self) -> None:
        """Look again at which services there are."""
        with suppress(NftError):
            found = {each.bridge: describe(each) for each in nftables.read_maps(list(self._bridges))}
            before = self._bridges
            self._bridges = {**self._bridges, **found}
            for tap, bridge, _ in self._taps.values():
                if before[bridge].addresses != self._bridges[bridge].addresses:
                    tap.use(self._program(self._bridges[bridge]))
            if any(before[each].addresses != self._bridges[each].addresses for each in before):
                self._trace_rules()

    def _has(self, bridge: str, key: ServiceKey) -> bool | None:
        return self._bridges[bridge].has(key)

    # News

    def on_event(self, fd: int, mask: int) -> None:
        """Read what a tap has seen, or what the kernel tells of rules."""
        if fd in self._taps:
            self._read_tap(*self._taps[fd])
        elif fd in self._by_fd:
            tracing, bridge = self._by_fd[fd]
            now = time.monotonic()
            for drop in tracing.read():
                self._drop(tracing, bridge, drop, now)

    def _read_tap(self, tap: Tap, bridge: str, ours: bool) -> None:
        try:
            for sight in tap.read():
                frame = frames.decode(sight.data, sight.vlan)
                where = (
                    (TO_US if sight.leaving else FROM_US)
                    if ours
                    else TO_GUEST
                    if sight.leaving
                    else FROM_GUEST
                )
                if frame is not None and self._wish.wants(frame, where):
                    place = Place(self._link(bridge), tap.link, where)
                    self._see(place, frame, sight.at)
        except OSError:  # the link is gone, or down
            if tap.fileno() in self._taps and tap.link not in links.ports(bridge):
                self._remove(tap.fileno())
        if lost := tap.lost():
            self._note_lost(lost)

    def _see(self, place: Place, frame: frames.Frame, at: float) -> None:
        addresses = self._bridges[place.link.bridge].addresses
        self._later(at, lambda: self._attempts.see(place, frame, at, addresses))

    def _drop(self, tracing: RuleTracing, bridge: str, drop: Drop, at: float) -> None:
        """Note a drop, unless it is of the copy for another port: only ours may have one."""
        bridge = bridge or self._bridge_of(rtnetlink.name(drop.came))
        if not bridge:
            return
        each = self._bridges[bridge]
        if drop.leaves and drop.frame.to_group and rtnetlink.name(drop.leaves) != each.ours:
            return
        reason = reasons.why(drop, tracing.rules(drop), self._texts)
        self._later(at, lambda: self._attempts.drop(bridge, drop.frame, reason, at, each.addresses))

    def _bridge_of(self, link: str) -> str:
        """The bridge that a link is a port of, as far as it is followed; else ""."""
        return next((bridge for tap, bridge, _ in self._taps.values() if tap.link == link), "")

    def _hear(self, told: Told) -> None:
        self._later(told.at, lambda: self._attempts.hear(told))

    def _later(self, at: float, call: Callable[[], None]) -> None:
        if not self._news:
            self._loop.call_later(SETTLE, self._settle)
        heapq.heappush(self._news, (at, next(self._sequence), call))

    def _settle(self) -> None:
        self._deliver(time.monotonic() - SETTLE)
        if self._news:
            self._loop.call_later(SETTLE, self._settle)

    def _deliver(self, until: float) -> None:
        while self._news and self._news[0][0] <= until:
            heapq.heappop(self._news)[2]()
        self._attempts.look(until, self._missing())

    # Time

    def _tick(self) -> None:
        now = time.monotonic()
        self._reports.tick()
        if not self._started and (self._reports.settled or self._reports.problem):
            self._started = True
            self._end = now + self._seconds if self._seconds else 0.0
            self._say(
                "tracing",
                f"following {self._wish.text} on {', '.join(sorted(self._bridges))}{self._without()}",
            )
        self._deliver(now - SETTLE)
        if now - self._said >= _SUMMARY:
            self._summarize()
        if (self._end and now >= self._end) or (self._count and self._attempts.ended >= self._count):
            self._loop.stop()
        else:
            self._loop.call_later(TICK, self._tick)

    def _summarize(self) -> None:
        self._said = time.monotonic()
        if hidden := self._attempts.take_hidden():
            self._say("hidden", f"{hidden} more attempts are not shown: the guest makes too many")

    def _without(self) -> str:
        """What this trace cannot see."""
        missing = [each.missing for each in self._tracings.values() if each.missing]
        problems = [*(f"rules cannot be traced: {each}" for each in missing[:1]), self._reports.problem]
        words = "; ".join(each for each in problems if each)
        return f" ({words})" if words else ""

    def _note_lost(self, count: int) -> None:
        self._lost = f"{count} frames or reports were left out, since there were too many"
        self._lost_until = time.monotonic() + 2 * PATIENCE

    def _missing(self) -> Missing:
        return Missing(self._lost if time.monotonic() < self._lost_until else "", self._reports.problem)

    def _say(self, event: str, text: str) -> None:
        self._show(Line(0, 0.0, event, text))

    def _finish(self) -> None:
        """Say how it went, and give everything back."""
        self._attempts.look(time.monotonic(), self._missing())
        self._attempts.cut()
        self._summarize()
        if not self._attempts.begun:
            self._say("nothing", f"nothing was seen of {self._wish.text} that is for a service")
        self._reports.close()
        for tap, _, _ in self._taps.values():
            tap.close()
        for tracing in self._tracings.values():
            tracing.close()
