"""One TCP connection of a guest, from its SYN to its end. Pure."""

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
from tproxy.trace.frames import ARP, DISCOVERY, FIN, REFUSAL, RST, SYN, Frame
from tproxy.trace.line import milliseconds, named

# Seconds in which a worker tells that it has a connection that was reset, and in which FIN or RST of a
# connection that has ended are seen.
_SETTLE = 0.25

# What ``counters.OUTCOMES`` calls the end of a connection that did what it should.
_FINISHED = "finished"


class TcpAttempt(Attempt):
    """``service`` tells whether the bridge has this service now; None where that cannot be read."""

    kind = "tcp"

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
        self._syns = 0
        self._reached: Frame | None = None  # the SYN, as it was at our port
        self._answers = 0
        self._answered = False  # with SYN and ACK, at our port
        self._delivered = False  # the answer was given to the guest
        self._reset_at = 0.0
        self._asked = self._told = False  # the namespace looked for the guest's MAC, and found it
        self._taken, self._taken_at = False, 0.0
        self._first_end = ""  # who ended first
        self._ending: Told | None = None

    # Frames

    def see(self, place: str, frame: Frame, at: float) -> None:
        """A frame of this connection was seen."""
        self.touch(at)
        if frame.kind in (ARP, DISCOVERY):
            self._about_guest(place, frame)
        elif frame.kind == REFUSAL:
            if place == FROM_US:
                self.say("refused", "the namespace refused it by ICMP")
                self._reset_at = self._reset_at or at
        elif frame.is_first:
            self._syn(place, frame)
        elif frame.flags & RST:
            self._reset(place)
        elif frame.flags & SYN:
            self._answer(place)
        elif frame.flags & FIN:
            self._fin(place)

    def _syn(self, place: str, frame: Frame) -> None:
        if place == FROM_GUEST:
            self._syns += 1
            if self._syns > 1:
                self.say("syn-again", f"SYN again ({self._syns} by now)")
                return
            guest, service = named(frame.source, frame.ports[0]), named(frame.target, frame.ports[1])
            tag = vlan_of(frame)
            self.say("syn", f"SYN of {guest} to {service} at port {self.port}{tag}, from {frame.source_mac}")
        elif place == TO_US and self._reached is None:
            self._reached = frame
            led = frame.target_mac != self.first.target_mac
            how = f", with our MAC in place of {self.first.target_mac}" if led else ""
            self.say("reached", f"the bridge gave it to {self.link.ours}{vlan_of(frame)}{how}")

    def _answer(self, place: str) -> None:
        if place == FROM_US:
            self._answers += 1
            if not self._answered:
                self._answered = True
                self.say("answered", "the namespace answered with SYN and ACK")
            else:
                self.say("answered-again", f"the namespace answered again ({self._answers} times by now)")
        elif place == TO_GUEST and not self._delivered:
            self._delivered = True
            self.say("delivered", f"the bridge gave the answer to port {self.port}")

    def _reset(self, place: str) -> None:
        if place == FROM_GUEST:
            self._ended_by("guest", "reset", "the guest reset the connection")
        elif place == FROM_US and not self._reset_at:
            self._reset_at = self.now
            what = "the guest was sent a reset" if self._answered else "the namespace answered with a reset"
            self._ended_by("service", "reset", what)

    def _fin(self, place: str) -> None:
        if place == FROM_GUEST:
            self._ended_by("guest", "fin", "the guest ended its direction (FIN)")
        elif place == FROM_US:
            self._ended_by("service", "fin", "the guest was told that the endpoint ended its direction (FIN)")

    def _ended_by(self, who: str, event: str, text: str) -> None:
        self._first_end = self._first_end or who
        self.say(f"{event}-{who}", text)

    def _about_guest(self, place: str, frame: Frame) -> None:
        """The namespace looks for the guest's MAC before it can answer."""
        if self._answered:
            return
        if place == FROM_US and frame.asks and not self._asked:
            self._asked = True
            self.say("asked", f"the namespace asks who has {frame.target}")
        elif place == TO_US and not frame.asks and self._asked and not self._told:
            self._told = True
            self.say("told", f"{frame.source} is at {frame.claimed}")

    # Workers

    def hear(self, told: Told) -> None:
        """A worker has told something of this connection."""
        self.touch(told.at)
        more = told.more
        match told.what:
            case "taken":
                self._taken, self._taken_at = True, told.at
                self.say("taken", f"a worker took it: connection {told.id}")
            case "waits":
                self._taken = True
                self.say("waits", "a worker took it, and waits until the guest's network is known")
            case "limited":
                self._taken = True
                self.failed(f"reset by {more.get('cause')}{more.get('why')}")
            case "dials":
                self.say("dials", f"dials endpoint {more.get('endpoint')}")
            case "dial-failed":
                self.say("dial-failed", f"endpoint {more.get('endpoint')}: {more.get('why')}")
            case "connected":
                took = milliseconds(told.at - self._taken_at)
                self.say(
                    "connected", f"endpoint {more.get('endpoint')} accepted, {took} after the worker took it"
                )
            case "ended":
                self._ending = told

    # Time

    def look(self, now: float, missing: Missing) -> None:
        """Decide whether it has ended."""
        if self.outcome:
            return
        if self._ending is not None:
            if now - self.touched >= _SETTLE / 5:
                self.now = self.touched
                self._conclude(self._ending)
        elif self._reset_at and not self._taken:
            if now - self._reset_at >= _SETTLE:
                self.now = self._reset_at
                self._refused(missing)
        elif not self._taken and now - self.progressed >= PATIENCE:
            self.now = now
            if missing.frames or (missing.workers and self._answered):
                self.unknown(missing)
            else:
                self.failed(self._unanswered())

    def _conclude(self, told: Told) -> None:
        more = told.more
        how, outcome, endpoint = (more.get(each) for each in ("how", "outcome", "endpoint"))
        moved = f"{more.get('to_endpoint')} bytes to the endpoint, {more.get('to_guest')} to the guest"
        if outcome == _FINISHED:
            first = {"guest": "; the guest ended first", "service": "; the endpoint ended first"}
            self.good(f"ended in good order: {moved}{first.get(self._first_end, '')}")
        elif outcome == "dial_failed":
            self.failed(f"endpoint {endpoint} {how}, and the guest was reset")
        else:
            self.failed(f"{how}: {moved}")

    def _refused(self, missing: Missing) -> None:
        if missing.frames or (missing.workers and self._answered):
            self.unknown(missing)
        elif self._answered:
            self.failed("reset before a worker took it; the relay's log may say why")
        else:
            there = self._service()
            place = named(self.first.target, self.first.ports[1])
            if there is None:
                self.failed(f"refused: nothing listens at {place}")
            elif there:
                self.failed(
                    f"refused: nothing listens at {place}, although {self.link.bridge} has that service"
                )
            else:
                self.failed(f"refused: {self.link.bridge} has no service at {place}")

    def _unanswered(self) -> str:
        if self._delivered:
            return "answered, but no worker has it: the guest did not go on, or no worker takes connections"
        if self._answered:
            if self.answer_dropped:
                return f"the answer was dropped {self.answer_dropped}"
            return f"the answer did not reach port {self.port}, and no rule of nftables was seen to drop it"
        reached = self._reached
        if reached is None:
            return f"no answer: {self.lost_on_bridge()}"
        if reached.vlan:
            where = f"{self.link.ours} in VLAN {reached.vlan}"
            return f"no answer: the SYN reached {where}, and the namespace is in none"
        if self.dropped:
            return f"no answer: dropped {self.dropped}"
        if self._asked and not self._told:
            return f"no answer: the namespace asked who has {self.first.source}, and nobody told"
        unknown = f" (if its wall did not let it in, that is not known: {self.link.untraced})"
        return (
            f"no answer: the SYN reached {self.link.ours}, and the namespace did not answer it"
            f"{unknown if self.link.untraced else ''}"
        )
