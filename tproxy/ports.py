"""Keeps the guards' sets of ports current while the daemon runs, as ports come and go.

The kernel tells of every link that changes (rtnetlink(7), RTMGRP_LINK). What a message says is not
looked at: it only means that the bridges should be looked at, which makes up for lost messages too.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from tproxy import links, nft, plan, ruleset
from tproxy.errors import NftError
from tproxy.loop import READ, Loop

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
        for bridge in self._bridges():
            ports = links.ports(bridge)
            if self._kept.get(bridge) != ports:
                try:
                    self._keep(bridge, ports)
                except NftError as error:
                    log.warning("bridge %s: guards could not be kept current: %s", bridge, error)
                    self.look(RETRY)
                else:
                    self._kept[bridge] = ports

    def _keep(self, bridge: str, ports: frozenset[str]) -> None:
        found = nft.read_guard(bridge)
        if found.uplinks is None:
            return  # loaded by a program that wants no guards of ours
        observed = plan.Observed(
            ports=ports, recognised_uplinks=frozenset(filter(links.leads_off_host, ports))
        )
        named = frozenset(port for port, by_operator in found.uplinks.items() if by_operator)
        by_kernel, by_port = plan.guards(bridge, observed, named)
        changes = ruleset.change_sets(found, by_kernel if found.ports is None else by_port)
        if changes:
            nft.transaction(changes)
            log.info("bridge %s: guards follow its ports: %s", bridge, ", ".join(sorted(ports)))
