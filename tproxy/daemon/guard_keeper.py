"""Keeps the guards' sets current while the daemon runs, as ports come and go.

The kernel tells of every link that changes (rtnetlink(7), RTMGRP_LINK). What a message says is not
looked at: it only means that the bridges should be looked at, which makes up for lost messages too.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from tproxy.bridge import guards, nftables, plan
from tproxy.errors import NftError
from tproxy.kernel import links
from tproxy.kernel.loop import READ, Loop

log = logging.getLogger(__name__)

_RTMGRP_LINK = 1  # <linux/rtnetlink.h>
_MESSAGE = 64 * 1024

# A link that comes is a handful of messages, a VM start some more: one look for all, in seconds.
SETTLE = 0.02
# A hook may have changed the same set at the same moment.
RETRY = 1.0


class PortKeeper:
    """``bridges`` tells for which bridges to do so."""

    def __init__(self, loop: Loop, bridges: Callable[[], set[str]]) -> None:
        self._loop = loop
        self._bridges = bridges
        self._kept: dict[str, frozenset[str]] = {}
        self._due = False
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._netlink.bind((0, _RTMGRP_LINK))
        loop.add(self._netlink.fileno(), READ, self)

    def look(self, after: float = SETTLE) -> None:
        """Look at the bridges soon, once for all who ask until then."""
        if not self._due:
            self._due = True
            self._loop.call_later(after, self._look)

    def forget(self, bridge: str) -> None:
        """Its guards may have been loaded anew: compare them again, not only its ports."""
        self._kept.pop(bridge, None)
        self.look()

    def on_event(self, fd: int, mask: int) -> None:
        while True:
            try:
                self._netlink.recv(_MESSAGE)
            except BlockingIOError:
                break
            except OSError:
                continue  # ENOBUFS: messages were lost; to look serves for them as well
        self.look()

    def close(self) -> None:
        self._loop.close_later(self._netlink)

    def _look(self) -> None:
        self._due = False
        bridges = self._bridges()
        try:
            ports = {bridge: links.ports(bridge) for bridge in bridges}
            changed = {bridge: now for bridge, now in ports.items() if self._kept.get(bridge) != now}
            if changed:
                bridges = set(changed)
                self._keep(changed)
        except (NftError, OSError) as error:  # OSError: no descriptor to look with
            log.warning("guards of %s could not be kept current: %s", ", ".join(sorted(bridges)), error)
            self.look(RETRY)
        else:
            self._kept = ports

    def _keep(self, changed: dict[str, frozenset[str]]) -> None:
        found = nftables.read_guards()
        for bridge, ports in changed.items():
            guard = found.get(bridge)
            if guard is None or not guard.own(guards.VETHS):
                continue  # made by a program that wants no guards of ours
            observed = plan.Observed(
                ports=ports, recognised_uplinks=frozenset(filter(links.leads_off_host, ports))
            )
            for wanted in plan.wanted_guards(bridge, observed, guard.named_uplinks):
                changes = guards.change_elements(wanted, guard) if wanted.rules_are_in(guard) else []
                if changes:
                    nftables.transaction(changes)
                    log.info("bridge %s: guards follow its ports: %s", bridge, ", ".join(sorted(ports)))
