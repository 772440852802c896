"""One question of a guest to a UDP service: its first datagram, and what came of it. Pure.

It ends with the first answer. Nobody can tell whether a datagram that is not answered was to be.
"""

from __future__ import annotations

from collections.abc import Callable

from tproxy.datapath.tracing import Told
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
from tproxy.trace.frames import ARP, DISCOVERY, REFUSAL, Frame
from tproxy.trace.line import GOOD, named


class UdpAttempt(Attempt):
    """``service`` is as in ``tcp.TcpAttempt``."""

    kind = "udp"

    def __init__(
        self,
        link: Link,
        port: str,
        first: Frame,
        at: float,
        say: Callable[[float, str, str], None],
        service: Callable[[], bool | None],
    ) -> None:
        super().__init__(link, port, first, at, say)
        self._service = service
        self._reached: Frame | None = None
        self._sent = 0
        self._endpoint = ""
        self._endpoint_answered = False
        self._asked = self._told = False  # the namespace looked for the guest's MAC, and found it
        self._answered = False
        self._refused_at = 0.0

    def see(self, place: str, frame: Frame, at: float) -> None:
        """A frame of this question was seen."""
        if self.outcome:
            return
        if frame.kind in (ARP, DISCOVERY):
            if self._reached is not None and not self.dropped and not self._answered:
                self.touch(at)
                self._about_guest(place, frame)
        elif frame.kind == REFUSAL:
            if place == FROM_US and not self._refused_at:
                self.touch(at)
                self._refused_at = at
                self.say("refused", "the namespace refused it by ICMP")
        elif place == FROM_GUEST:
            self._sent += 1
            if self._sent == 1:
                self.touch(at)
                guest, service = named(frame.source, frame.ports[0]), named(frame.target, frame.ports[1])
                tag = vlan_of(frame)
                text = f"datagram of {guest} to {service} at port {self.port}{tag}, from {frame.source_mac}"
                self.say("datagram", text)
        elif place == TO_US and self._reached is None:
            self.touch(at)
            self._reached = frame
            self.say("reached", f"the bridge gave it to {self.link.ours}{vlan_of(frame)}")
        elif place == FROM_US and not self._answered:
            self.touch(at)
            self._answered = True
            self.say("answered", "the answer came from the namespace")
        elif place == TO_GUEST:
            self.touch(at)
            self.good(f"answered; the answer went to port {self.port}")

    def _about_guest(self, place: str, frame: Frame) -> None:
        """The namespace looks for the guest's MAC before it can answer."""
        if place == FROM_US and frame.asks and not self._asked:
            self._asked = True
            self.say("asked", f"the namespace asks who has {frame.target}")
        elif place == TO_US and not frame.asks and self._asked:
            self._told = True

    def hear(self, told: Told) -> None:
        """A worker has told something of this session."""
        if self.outcome:
            return
        self.touch(told.at)
        more = told.more
        endpoint = more.get("endpoint")
        match told.what:
            case "session":
                self._endpoint = str(endpoint)
                self.say("session", f"a worker sends it to endpoint {endpoint}: session {told.id}")
            case "limited":
                self.failed(f"refused by {more.get('cause')}{more.get('why')}")
            case "dial-failed":
                self.say("dial-failed", f"endpoint {endpoint}: {more.get('why')}")
            case "endpoint-answered":
                self._endpoint_answered = True
                self.say("endpoint-answered", f"endpoint {endpoint} answered")
            case "ended" if more.get("outcome") != "finished":
                self.failed(f"endpoint {endpoint}: {more.get('how')}")

    def look(self, now: float, missing: Missing) -> None:
        """Decide whether it has ended."""
        if self.outcome or now - self.touched < PATIENCE:
            return
        self.now = now
        if missing.frames or (missing.workers and self._reached is not None):
            self.unknown(missing)
        elif self._answered:
            why = f"was dropped {self.answer_dropped}" if self.answer_dropped else "was not seen there"
            self.failed(f"the answer did not reach port {self.port}: it {why}")
        elif self._refused_at:
            self.failed(f"refused by ICMP{self._known()}")
        elif self._reached is None:
            self.failed(f"no answer: {self.lost_on_bridge()}")
        elif self._reached.vlan:
            self.failed(
                f"no answer: the datagram reached {self.link.ours} in VLAN {self._reached.vlan}, "
                "and the namespace is in none"
            )
        elif self.dropped:
            self.failed(f"no answer: dropped {self.dropped}{self._known()}")
        elif self._endpoint_answered:
            silent = self._asked and not self._told
            why = f": it asked who has {self.first.source}, and nobody told" if silent else ""
            self.failed(f"endpoint {self._endpoint} answered, and no answer left the namespace{why}")
        elif self._endpoint:
            self.end(GOOD, f"sent to endpoint {self._endpoint}, which has not answered within {PATIENCE:g} s")
        else:
            self.failed(f"no answer: no worker has told of it{self._known()}")

    def _known(self) -> str:
        there = self._service()
        place = named(self.first.target, self.first.ports[1])
        if there is None or there:
            return ""
        return f": {self.link.bridge} has no UDP service at {place}"
