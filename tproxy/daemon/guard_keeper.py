"""Keeps the guards of bridges current while the daemon runs, as interfaces join and leave the bridges.

The kernel tells of every link that changes (``kernel.netlink``). The message itself does not matter: it only
means that the bridges are to be looked at. So lost messages do no harm either.

A bridge's *ports* here are the interfaces that are attached to it (links.ports), as ``ip link`` and
``bridge`` call them, and not TCP ports.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tproxy.bridge import guards, nftables, plan
from tproxy.errors import NftError
from tproxy.kernel import kinds, links
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import LinkEvents
from tproxy.log import limit
from tproxy.log.limit import LineLimit

log = logging.getLogger(__name__)

# Seconds. A new link causes a handful of messages, the start of a VM some more: one look serves for all.
SETTLE = 0.02

# Seconds until another look after one that failed: a hook may have changed the same set at the same moment.
RETRY = 1.0

# Log lines of ports that join and leave: so many at once, then one in so many seconds. A guest may be able to
# restart as often as it likes. That is at most 10 MB a day.
LINES_AT_ONCE = 200
LINE_INTERVAL = 1.0


class GuardKeeper:
    """``bridges`` returns the bridges whose guards are to be kept."""

    def __init__(self, loop: Loop, bridges: Callable[[], set[str]]) -> None:
        self._loop = loop
        self._bridges = bridges
        self._members: dict[str, frozenset[str]] = {}  # ports of each bridge, as its guards have them
        self._named: dict[str, frozenset[str]] = {}  # named uplinks of each bridge that has guards of ours
        self._due = False
        self._lines = LineLimit(LINES_AT_ONCE, LINE_INTERVAL)
        self._warnings = limit.warnings()
        self._events = LinkEvents(loop, lambda *_: self.look(), self.look)

    def look(self, after: float = SETTLE) -> None:
        """Look at the bridges in so many seconds, once for all who ask until then."""
        if not self._due:
            self._due = True
            self._loop.call_later(after, self._look)

    def forget(self, bridge: str) -> None:
        """Compare the bridge's guards even if its ports are the same: they may have been loaded anew."""
        self._members.pop(bridge, None)
        self.look()

    def named_uplinks(self, bridge: str) -> frozenset[str] | None:
        """The uplinks that the operator named, as the bridge's guards said last; None if it has had none."""
        return self._named.get(bridge)

    def close(self) -> None:
        self._events.close()

    def _look(self) -> None:
        self._due = False
        bridges = self._bridges()
        try:
            members = {bridge: links.ports(bridge) for bridge in bridges}
            changed = {bridge: now for bridge, now in members.items() if self._members.get(bridge) != now}
            if changed:
                bridges = set(changed)
                self._update(changed)
        except (NftError, OSError) as error:  # OSError: no descriptor to look with
            if self._warnings.allows(time.monotonic()):
                names, more = ", ".join(sorted(bridges)), self._warnings.suffix()
                log.warning("guards of %s could not be kept current: %s%s", names, error, more)
            self.look(RETRY)
        else:
            self._members = members
            self._named = {bridge: named for bridge, named in self._named.items() if bridge in members}

    def _update(self, changed: dict[str, frozenset[str]]) -> None:
        found = nftables.read_guards()
        for bridge, members in changed.items():
            guard = found.get(bridge)
            if guard is None or not guard.own(guards.VETHS):
                continue  # made by a program that wants no guards of ours, or somebody has deleted them
            self._named[bridge] = guard.named_uplinks
            uplinks = kinds.uplinks(bridge, members)
            observed = plan.Observed(ports=members, recognised_uplinks=uplinks, guard=guard)
            for wanted in plan.wanted_guards(bridge, observed, guard.named_uplinks, guard.addresses):
                changes = guards.change_elements(wanted, guard) if wanted.rules_are_in(guard) else []
                if changes:
                    nftables.transaction(changes)
                    self._tell(bridge, members)

    def _tell(self, bridge: str, members: frozenset[str]) -> None:
        """Log which ports have changed. All of a large bridge's ports would be a line of many kilobytes."""
        before = self._members.get(bridge, frozenset())
        if self._lines.allows(time.monotonic()):
            changed = [f"{port} joined" for port in sorted(members - before)]
            changed += [f"{port} left" for port in sorted(before - members)]
            what, more = ", ".join(changed) or "as they are", self._lines.suffix()
            log.info("bridge %s: guards follow its ports: %s%s", bridge, what, more)
