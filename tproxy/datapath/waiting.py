"""Callers of services that differ between the networks of a bridge: each gets that of its own network.

Theory of operation. ``membership`` decides by the MAC of the caller's own SYN (``introduction``) and
by what the daemon has said. Where that is not known yet, the guest's socket waits here, and is looked at
again whenever the daemon says something new of the bridge. A caller that is not known within the service's
``connect_timeout`` is reset, and so is one whose MAC cannot be looked up. Services that all networks of a
bridge have alike never come here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable, Mapping

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.datapath.counts import CAUSES, LIMITED, NETWORK, TOTAL
from tproxy.datapath.introduction import Introductions
from tproxy.datapath.membership import EVERYBODY, REFUSED, WAIT, Verdict
from tproxy.datapath.target import Target, reached_at
from tproxy.datapath.tracing import Tracing, Trail
from tproxy.kernel import tcp
from tproxy.kernel.loop import Loop, Timer
from tproxy.model import ServiceKey
from tproxy.typed import Protocol

# Sockets of one guest's address that wait at once, on one bridge; arbitrary. A guest's place is known some
# milliseconds after its first packet.
MOST_OF_A_GUEST = 64


class Divided:
    """The services of one service port that differ between networks. ``targets``: by the network's order.

    There is at least one target; under EVERYBODY can be one for all other guests.
    """

    __slots__ = ("targets",)

    def __init__(self, targets: dict[int, Target]) -> None:
        self.targets = targets

    def of(self, network: int) -> Target | None:
        """Return what guests of this network get."""
        return self.targets.get(network) or self.targets.get(EVERYBODY)

    def answer(self, verdict: Verdict, mac: str) -> tuple[Target | None, str]:
        """Return what a caller gets by this verdict, or None and why. It must not be WAIT."""
        if verdict.network == REFUSED:
            return None, verdict.why
        target = self.of(verdict.network)
        if target is not None:
            return target, ""
        if verdict.network == EVERYBODY:
            return None, f"no hook named {mac}, and the networks have different services"
        return None, f"the network of {mac} has no such service"

    @property
    def any(self) -> Target:
        """One of the targets, always the same, which counts those that get none."""
        return next(iter(self.targets.values()))

    @property
    def patience(self) -> float:
        """Seconds that a caller may take to become known."""
        return max(each.service.connect_timeout for each in self.targets.values())


# What guests find at a service port.
Door = Target | Divided


def targets_of(door: Door) -> tuple[Target, ...]:
    """Return all targets behind a door."""
    return tuple(door.targets.values()) if isinstance(door, Divided) else (door,)


def doors(targets: Mapping[ServiceKey, Target], before: Mapping[ServiceKey, Door]) -> dict[ServiceKey, Door]:
    """Return what guests find at each service port, by keys without a network.

    Guests who wait at one that is ``before`` find there what it has now.
    """
    by_network: dict[ServiceKey, dict[int, Target]] = {}
    for key, target in targets.items():
        by_network.setdefault(key.listener, {})[key.network] = target
    found: dict[ServiceKey, Door] = {}
    for key, each in by_network.items():
        former = before.get(key)
        if isinstance(former, Divided):
            former.targets = each
        if len(each) == 1 and EVERYBODY in each:
            found[key] = each[EVERYBODY]
        else:
            found[key] = former if isinstance(former, Divided) else Divided(each)
    return found


def door_at(found: Mapping[ServiceKey, Door], key: ServiceKey) -> Door | None:
    """Return what guests find at a service port; None for nothing.

    At the IPv6 address that is what they find at 169.254.16.9, or else at the first address with that port.
    """
    if ":" not in key.address:
        return found.get(key)
    if (main := found.get(key._replace(address=SERVICE_ADDRESS))) is not None:
        return main
    same = [each for each in found if (each.port, each.protocol) == (key.port, key.protocol)]
    return found[min(same)] if same else None


class Keeper(Protocol):
    """Takes the callers that are known (``connections.Connections``)."""

    tracing: Tracing

    def accept(
        self, target: Target, guest: socket.SocketType, peer: tuple[str, int], mac: str | None, since: float
    ) -> None:
        """Take over a guest's socket; ``mac`` was looked up, and the caller has waited since this time."""

    def limited(self, target: Target, cause: int, why: str = "") -> None:
        """Count a connection that was refused, and log it now and then."""


class Caller:
    """A guest's socket whose network is looked for."""

    __slots__ = ("divided", "guest", "mac", "peer", "since", "timer", "trail")

    def __init__(
        self, divided: Divided, guest: socket.SocketType, peer: tuple[str, int], mac: str, since: float
    ) -> None:
        self.divided = divided
        self.guest = guest
        self.peer = peer
        self.mac = mac
        self.since = since
        self.timer: Timer | None = None
        self.trail: Trail | None = None


class Waiting:
    """The callers of all bridges that wait."""

    def __init__(self, loop: Loop, introductions: Introductions, keeper: Keeper) -> None:
        self._loop = loop
        self._introductions = introductions
        self._keeper = keeper
        self._callers: dict[str, dict[Caller, None]] = {}  # by bridge, in the order in which they came
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def admit(self, divided: Divided, guest: socket.SocketType, peer: tuple[str, int]) -> None:
        """Take over a guest's socket: pass it on to its service, reset it, or let it wait."""
        bridge = divided.any.bridge
        mac = self._introductions.caller_mac(bridge, guest, peer[0])
        caller = Caller(divided, guest, peer, mac, time.monotonic())
        if self._keeper.tracing.active:
            caller.trail = self._keeper.tracing.trail(divided.any, peer, guest)
        if self._settle(bridge, caller):
            return
        waiting = self._callers.setdefault(bridge, {})
        if sum(each.peer[0] == peer[0] for each in waiting) >= MOST_OF_A_GUEST:
            self._refuse(caller, "too many of its connections wait")
            return
        waiting[caller] = None
        if caller.trail is not None:
            caller.trail.tell("waits")
        self._count += 1
        caller.timer = self._loop.call_later(divided.patience, lambda: self._expire(bridge, caller))

    def look(self, bridge: str, macs: Iterable[str] | None = None) -> None:
        """Look again at those that wait: something new is known of the bridge, or of these MACs there."""
        waiting = self._callers.get(bridge)
        if not waiting:
            return
        some = None if macs is None else frozenset(macs)
        for caller in list(waiting):
            if (some is None or caller.mac in some) and self._settle(bridge, caller):
                self._forget(bridge, caller)

    def withdraw(self, bridge: str, addresses: Collection[str]) -> None:
        """Reset those that came to another service address: the bridge has these alone."""
        for caller in list(self._callers.get(bridge, ())):
            if reached_at(caller.divided.any, caller.peer) not in addresses:
                self._forget(bridge, caller)
                _reset(caller.guest)

    def reset(self, bridge: str) -> None:
        """Reset all that wait on a bridge."""
        for caller in list(self._callers.get(bridge, ())):
            self._forget(bridge, caller)
            _reset(caller.guest)

    def reset_all(self) -> None:
        """Reset all that wait."""
        for bridge in list(self._callers):
            self.reset(bridge)

    def _settle(self, bridge: str, caller: Caller) -> bool:
        """Pass a caller on or reset it; return whether it was one of the two."""
        verdict = self._introductions.judge(bridge, caller.mac)
        if verdict.network == WAIT:
            return False
        target, why = caller.divided.answer(verdict, caller.mac)
        if target is not None:
            self._keeper.accept(target, caller.guest, caller.peer, caller.mac, caller.since)
        else:
            self._refuse(caller, why)
        return True

    def _expire(self, bridge: str, caller: Caller) -> None:
        self._forget(bridge, caller)
        self._refuse(caller, f"it is not known behind which port {caller.mac} is")

    def _forget(self, bridge: str, caller: Caller) -> None:
        if caller.timer is not None:
            caller.timer.cancel()
        waiting = self._callers[bridge]
        del waiting[caller]
        self._count -= 1
        if not waiting:
            del self._callers[bridge]

    def _refuse(self, caller: Caller, why: str) -> None:
        target = caller.divided.any
        target.counts[TOTAL] += 1
        target.record.never_began(LIMITED)
        self._keeper.limited(target, NETWORK, f": guest={caller.peer[0]}, {why}")
        if caller.trail is not None:
            caller.trail.tell("limited", cause=CAUSES[NETWORK], why=f": {why}")
        _reset(caller.guest)


def _reset(guest: socket.SocketType) -> None:
    tcp.reset_on_close(guest)
    guest.close()
