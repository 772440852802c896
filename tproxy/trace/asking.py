"""One question of a guest for a service address, by ARP or neighbour discovery; and a guest's claim. Pure."""

from __future__ import annotations

from collections.abc import Callable

from tproxy.addresses import SERVICE_MAC
from tproxy.trace.attempt import (
    FROM_GUEST,
    FROM_US,
    PATIENCE,
    TO_GUEST,
    TO_US,
    Attempt,
    Link,
    Missing,
    vlan_of,
)
from tproxy.trace.frames import ARP, DISCOVERY, Frame

# Seconds in which a claim is dropped, if it is.
_CLAIM = 0.5

_NAMES = {ARP: "ARP", DISCOVERY: "neighbour discovery"}


class Question(Attempt):
    """Who has the service address?"""

    def __init__(
        self, link: Link, port: str, first: Frame, at: float, say: Callable[[float, str, str], None]
    ) -> None:
        super().__init__(link, port, first, at, say)
        self.kind = first.kind
        self._times = 0
        self._reached: Frame | None = None
        self._answered = False

    def see(self, place: str, frame: Frame, at: float) -> None:
        """A frame of question or answer was seen."""
        self.touch(at)
        if frame.asks and place == FROM_GUEST:
            self._times += 1
            if self._times == 1:
                asker = frame.source if frame.source != frame.claimed else frame.source_mac
                how = f"({_NAMES[self.kind]}) at port {self.port}{vlan_of(frame)}"
                self.say("asks", f"{asker} asks who has {frame.target} {how}, from {frame.source_mac}")
            else:
                self.say("asks-again", f"asks again ({self._times} times by now)")
        elif frame.asks and place == TO_US and self._reached is None:
            self._reached = frame
            self.say("reached", f"the bridge gave it to {self.link.ours}{vlan_of(frame)}")
        elif not frame.asks and place == FROM_US and not self._answered:
            self._answered = True
            self.say("answered", f"the namespace answered: {frame.source} is at {frame.claimed}")
        elif not frame.asks and place == TO_GUEST:
            mac = frame.claimed or frame.source_mac
            if mac == SERVICE_MAC:
                self.good(f"{frame.source} is at {mac}; the answer went to port {self.port}")
            else:
                self.failed(f"another machine, {mac}, says that it is {frame.source}")

    def look(self, now: float, missing: Missing) -> None:
        """Decide whether it has ended."""
        if self.outcome or now - self.progressed < PATIENCE:
            return
        self.now = now
        if missing.frames:
            self.unknown(missing.frames)
        elif self._answered:
            why = f"was dropped {self.answer_dropped}" if self.answer_dropped else "was not seen there"
            self.failed(f"the answer did not reach port {self.port}: it {why}")
        elif self._reached is None:
            self.failed(f"no answer: {self.lost_on_bridge()}")
        elif self._reached.vlan:
            self.failed(
                f"no answer: the question reached {self.link.ours} in VLAN {self._reached.vlan}, "
                "and the namespace is in none"
            )
        else:
            self.failed(
                f"no answer: the question reached {self.link.ours}, and the namespace did not answer it"
            )


class Claim(Attempt):
    """A guest's frame that says it comes from the service."""

    kind = "claim"

    def __init__(
        self, link: Link, port: str, first: Frame, at: float, say: Callable[[float, str, str], None]
    ) -> None:
        super().__init__(link, port, first, at, say)
        self._times = 0

    def see(self, place: str, frame: Frame, at: float) -> None:
        """A frame of this kind was seen."""
        self.touch(at)
        if place == FROM_GUEST:
            self._times += 1
            if self._times == 1:
                how = _NAMES.get(frame.kind, "as the source of a packet")
                what = f"{frame.source_mac} claims to be {frame.source} ({how})"
                self.say("claims", f"{what} at port {self.port}{vlan_of(frame)}")

    def look(self, now: float, missing: Missing) -> None:
        """Decide whether it has ended."""
        if self.outcome or now - self.touched < _CLAIM:
            return
        self.now = self.touched
        often = f", {self._times} times" if self._times > 1 else ""
        if self.dropped:
            self.failed(f"dropped {self.dropped}{often}")
        elif missing.frames or self.link.untraced:
            self.unknown(missing.frames or self.link.untraced)
        else:
            self.failed(f"no rule of nftables was seen to drop it{often}")
