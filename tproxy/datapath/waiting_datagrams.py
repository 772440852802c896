"""Which service a guest's datagram leads to, and datagrams that wait until this is known.

As ``waiting`` does for streams: where the services of a bridge differ between its networks, the MAC of the
guest decides. A datagram whose guest is not known yet waits (``held``), and is looked at again until the
service's ``connect_timeout`` is over.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.datapath.counts import CAUSES, LIMITED, NETWORK, TOTAL
from tproxy.datapath.held import Held
from tproxy.datapath.introduction import Introductions
from tproxy.datapath.membership import WAIT
from tproxy.datapath.session import BUFFER, Gate
from tproxy.datapath.target import Target
from tproxy.datapath.tracing import Tracing
from tproxy.datapath.waiting import Divided, targets_of
from tproxy.kernel.loop import Loop
from tproxy.log.file import Log
from tproxy.log.limit import LineLimit
from tproxy.typed import Any

# Seconds between two looks at datagrams whose guest is not known: the kernel does not tell a worker when it
# has found a guest's MAC address.
LOOK = 0.05

_DISCARD = 9  # RFC 863

_DONT_WAIT = int(socket.MSG_DONTWAIT)


class WaitingDatagrams:
    """``deliver`` gets what waited: gate, target, the guest's address and port, its datagrams in order."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        warnings: LineLimit,
        introductions: Introductions,
        tracing: Tracing,
        deliver: Callable[[Gate, Target, tuple[Any, ...], list[bytes]], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._warnings = warnings
        self._introductions = introductions
        self._tracing = tracing
        self._deliver = deliver
        self._held = Held()
        self._looks = False  # whether a timer looks at what is held

    def target(self, gate: Gate, guest: tuple[Any, ...], count: int) -> Target | None:
        """Return what a guest gets that sent a datagram of ``count`` bytes, which is in BUFFER.

        None if it gets nothing, or not yet: then the datagram waits.
        """
        door = gate.door
        if not isinstance(door, Divided):
            return door
        known, target = self._known(gate, door, guest)
        if not known:
            deadline = time.monotonic() + door.patience
            self._held.add(gate, guest, bytes(BUFFER[:count]), deadline)
            self._look_later()
            return None
        return target

    def look(self) -> None:
        """Look again at what is held: something new is known."""
        now = time.monotonic()
        for gate, guest, deadline in self._held:
            door = gate.door
            known, target = self._known(gate, door, guest) if isinstance(door, Divided) else (True, door)
            if not known:
                if now >= deadline:
                    self._held.take(gate, guest)
                    self._refuse(gate, targets_of(door)[0], guest, "it is not known behind which port it is")
                continue
            datagrams = self._held.take(gate, guest)
            if target is not None:
                self._deliver(gate, target, guest, datagrams)

    def drop(self, gate: Gate) -> None:
        """Forget what waits at a gate."""
        self._held.drop(gate)

    def _known(self, gate: Gate, door: Divided, guest: tuple[Any, ...]) -> tuple[bool, Target | None]:
        """Return whether it is known what a guest gets, and what that is; None for nothing."""
        mac = self._introductions.neighbours.mac(gate.bridge, gate.sock, guest[0])
        if not mac:
            # A guest that takes us for a gateway leaves no entry in the namespace's ARP table. A datagram to
            # it makes the kernel ask for its MAC; nobody reads it at this port.
            with suppress(OSError):
                gate.sock.sendto(b"", _DONT_WAIT, (guest[0], _DISCARD, *guest[2:]))
            return False, None
        verdict = self._introductions.judge(gate.bridge, mac)
        if verdict.network == WAIT:
            return False, None
        target, why = door.answer(verdict, mac)
        if target is None:
            self._refuse(gate, door.any, guest, why)
        return True, target

    def _look_later(self) -> None:
        if not self._looks:
            self._looks = True
            self._loop.call_later(LOOK, self._look_again)

    def _look_again(self) -> None:
        self._looks = False
        self.look()
        if self._held:
            self._look_later()

    def _refuse(self, gate: Gate, target: Target, guest: tuple[Any, ...], why: str) -> None:
        target.counts[TOTAL] += 1
        target.record.never_began(LIMITED)
        target.limited[NETWORK] = (target.limited[NETWORK] + 1) & 0xFFFFFFFF
        self._tracing.tell(target, guest, gate.sock, "limited", cause=CAUSES[NETWORK], why=f": {why}")
        if self._warnings.allows(time.monotonic()):
            self._log.warning(
                "bridge=%s port=%s datagram refused by network: guest=%s, %s%s",
                target.bridge,
                target.service.key.listener.in_words,
                guest[0],
                why,
                self._warnings.suffix(),
            )
