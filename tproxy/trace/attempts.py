"""All attempts of the guests that a trace follows: which attempt a frame or a report belongs to. Pure.

What a guest can cause is bound: so many attempts are open at once, and so many begin in a second. Others are
only counted. A UDP client that goes on with the port that it had is not told of again before it was quiet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tproxy.datapath.tracing import Told
from tproxy.log.limit import LineLimit
from tproxy.model import TCP as TCP_PROTOCOL
from tproxy.model import UDP as UDP_PROTOCOL
from tproxy.model import ServiceKey
from tproxy.trace import frames
from tproxy.trace.asking import Claim, Question
from tproxy.trace.attempt import FROM_GUEST, TO_GUEST, TO_US, Link, Missing
from tproxy.trace.datagrams import UdpAttempt
from tproxy.trace.frames import Frame
from tproxy.trace.line import FAILED, Line, named
from tproxy.trace.tcp import TcpAttempt

MOST_OPEN = 512
_AT_ONCE, _INTERVAL = 50, 0.1  # attempts that may begin at once, and seconds until the next one then
_QUIET = 30.0  # seconds
_MOST_OLD = 4096

_AnyAttempt = TcpAttempt | UdpAttempt | Question | Claim
_Key = tuple[str, str, int, str, int]  # kind, guest and port (or MAC), service and port


class Place(NamedTuple):
    """Where a frame was seen: the bridge, the port of the bridge, and which of the four places it is."""

    link: Link
    port: str
    where: str


class Attempts:
    """``show`` gets each line, ``served`` says whether a bridge has a service; None: that is not known."""

    def __init__(
        self, show: Callable[[Line], None], served: Callable[[str, ServiceKey], bool | None]
    ) -> None:
        self._show = show
        self._served = served
        self._open: dict[tuple[str, _Key], tuple[int, _AnyAttempt]] = {}  # with the bridge
        self._old: OrderedDict[tuple[str, _Key], float] = OrderedDict()  # UDP: when it was seen last
        self._limit = LineLimit(_AT_ONCE, _INTERVAL)
        self._number = 0
        self.ended = self.failed = 0  # attempts that count
        self.hidden = 0  # attempts that are not shown, since the last time that somebody asked

    @property
    def begun(self) -> int:
        """How many attempts began and were shown."""
        return self._number

    # News

    def see(self, place: Place, frame: Frame, at: float, services: frozenset[str]) -> None:
        """A frame was seen. ``services`` are the service addresses of the bridge."""
        key = _key(place, frame, services)
        if key is None:
            return
        bridge = place.link.bridge
        found = self._open.get((bridge, key))
        if found is None and place.where == FROM_GUEST and _begins(key, frame, services):
            self._begin(bridge, key, place, frame, at)
            return
        if found is not None and (place.where != TO_GUEST or place.port == found[1].port):
            found[1].see(place.where, frame, at)
        if frame.kind in (frames.ARP, frames.DISCOVERY) and place.where != FROM_GUEST:
            guest = frame.target if frame.asks else frame.source
            for _, each in self._of_guest(bridge, guest):
                each.see(place.where, frame, at)

    def drop(self, bridge: str, frame: Frame, reason: str, at: float, services: frozenset[str]) -> None:
        """A frame was dropped."""
        for answer in (False, True):
            place = Place(Link(bridge, ""), "", TO_US if not answer else "")
            key = _key(place, frame, services, answer=answer)
            if key is not None and (found := self._open.get((bridge, key))) is not None:
                found[1].drop(frame, reason, answer=answer, at=at)
                return

    def hear(self, told: Told) -> None:
        """A worker has told something."""
        key = (told.protocol, *told.guest, *told.service)
        found = self._open.get((told.bridge, key))
        if found is not None and isinstance(found[1], TcpAttempt | UdpAttempt):
            found[1].hear(told)

    def gone(self, bridge: str, port: str, at: float) -> None:
        """A port has left its bridge."""
        for (where, _), (_, each) in self._open.items():
            if where == bridge and each.port == port:
                each.gone(at)

    def look(self, now: float, missing: Missing = Missing()) -> None:  # noqa: B008 - it never changes
        """Say how those went that have ended."""
        for where, (number, each) in list(self._open.items()):
            each.look(now, missing)
            if each.outcome:
                self._end(where, number, each)

    def cut(self) -> None:
        """End all, because the trace ends."""
        for where, (number, each) in list(self._open.items()):
            each.cut()
            self._end(where, number, each, counts=False)

    def take_hidden(self) -> int:
        hidden, self.hidden = self.hidden, 0
        return hidden

    # Attempts

    def _begin(self, bridge: str, key: _Key, place: Place, frame: Frame, at: float) -> None:
        kind = key[0]
        if kind == UDP_PROTOCOL and self._is_old((bridge, key), at):
            return
        if len(self._open) >= MOST_OPEN or not self._limit.allows(at):
            self.hidden += 1
            return
        self._number += 1
        number = self._number

        def say(seconds: float, event: str, text: str) -> None:
            self._show(self._line(number, bridge, key, seconds, event, text))

        attempt: _AnyAttempt
        if kind in (TCP_PROTOCOL, UDP_PROTOCOL):
            wanted = ServiceKey(key[4], kind, key[3])
            of_kind = TcpAttempt if kind == TCP_PROTOCOL else UdpAttempt
            attempt = of_kind(place.link, place.port, frame, at, say, lambda: self._served(bridge, wanted))
        else:
            attempt = (Claim if kind == "claim" else Question)(place.link, place.port, frame, at, say)
        self._open[bridge, key] = number, attempt
        attempt.see(place.where, frame, at)

    def _end(
        self, where: tuple[str, _Key], number: int, attempt: _AnyAttempt, *, counts: bool = True
    ) -> None:
        del self._open[where]
        bridge, key = where
        if key[0] == UDP_PROTOCOL:
            self._note_old(where, attempt.now)
        line = self._line(number, bridge, key, attempt.now - attempt.started, "end", attempt.text)
        self._show(line._replace(outcome=attempt.outcome))
        if attempt.outcome == FAILED:
            self.failed += 1
        # A guest that was told where the service is goes on from there.
        if counts and (attempt.outcome == FAILED or not isinstance(attempt, Question)):
            self.ended += 1

    def _line(self, number: int, bridge: str, key: _Key, seconds: float, event: str, text: str) -> Line:
        kind, guest, port, service, service_port = key
        places = named(guest, port), named(service, service_port)
        return Line(number, max(seconds, 0.0), event, text, kind, bridge, *places)

    def _of_guest(self, bridge: str, guest: str) -> Iterable[tuple[_Key, _AnyAttempt]]:
        return [
            (key, each)
            for (where, key), (_, each) in self._open.items()
            if where == bridge and key[1] == guest and isinstance(each, TcpAttempt | UdpAttempt)
        ]

    def _is_old(self, where: tuple[str, _Key], at: float) -> bool:
        """Whether this client was told of already, and was not quiet since."""
        before = self._old.get(where)
        if before is None or at - before > _QUIET:
            return False
        self._note_old(where, at)
        return True

    def _note_old(self, where: tuple[str, _Key], at: float) -> None:
        self._old[where] = at
        self._old.move_to_end(where)
        if len(self._old) > _MOST_OLD:
            self._old.popitem(last=False)


def _key(place: Place, frame: Frame, services: frozenset[str], answer: bool | None = None) -> _Key | None:
    """Which attempt a frame belongs to; None: to none."""
    if answer is None:
        answer = place.where not in (FROM_GUEST, TO_US)
    if frame.kind in (frames.ARP, frames.DISCOVERY):
        return _asking_key(frame, services, answer=answer)
    service, guest = (frame.source, frame.target) if answer else (frame.target, frame.source)
    if not answer and guest in services:
        return "claim", frame.source_mac, 0, guest, 0
    if service not in services or frame.kind == frames.OTHER:
        return None
    ports = frame.ports if not answer else (frame.ports[1], frame.ports[0])
    kind = UDP_PROTOCOL if frame.kind == frames.REFUSAL else frame.kind
    return kind, guest, ports[0], service, ports[1]


def _asking_key(frame: Frame, services: frozenset[str], *, answer: bool) -> _Key | None:
    if not answer and frame.source in services:
        return "claim", frame.source_mac, 0, frame.source, 0
    if not answer and frame.asks and frame.target in services:
        return frame.kind, frame.source, 0, frame.target, 0
    if answer and frame.source in services and not frame.asks:
        return frame.kind, frame.target, 0, frame.source, 0
    if (answer and frame.asks and frame.source in services) or (not answer and frame.target in services):
        return "about", "", 0, "", 0  # the namespace looks for a guest, or is told
    return None


def _begins(key: _Key, frame: Frame, services: frozenset[str]) -> bool:
    """Whether a frame of the guest begins an attempt."""
    return key[0] in ("claim", UDP_PROTOCOL, frames.ARP, frames.DISCOVERY) or frame.is_first
