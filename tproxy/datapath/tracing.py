"""Tells `tproxy trace` what becomes of the connections and sessions of a guest, while one runs.

While there is no trace, a connection costs one comparison more. Which guests a trace follows is decided once,
when a connection is taken: it has a ``Trail`` then, and each thing that happens to it is a line of JSON.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from tproxy.datapath.choice import Choice
from tproxy.datapath.neighbours import Neighbours
from tproxy.datapath.target import Target, reached_at
from tproxy.log.lines import json_object
from tproxy.typed import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from tproxy.datapath.session import Session

READY = "ready"  # the first line of a worker: it tells from now on


class Listener(Protocol):
    """Gets the lines of a trace, and calls ``on_gone`` when nobody reads them any more.

    A ``worker.questions.Answer`` is one.
    """

    on_gone: Callable[[], None]

    def say(self, line: str) -> None:
        """Pass a line on; it may be left out where there are too many."""


class Told(NamedTuple):
    """What a worker told, as the reader has it. ``more`` depends on what happened."""

    at: float  # by time.monotonic()
    what: str
    id: str
    bridge: str
    protocol: str
    guest: tuple[str, int]
    service: tuple[str, int]
    more: dict[str, Any]


def parse(line: dict[str, Any]) -> Told | None:
    """Return what a line of JSON says; None when it cannot be used, whoever wrote it."""
    try:
        guest = str(line["guest"]), int(line["guest_port"])
        service = str(line["service"]), int(line["service_port"])
        what, id_, bridge, protocol = (str(line[each]) for each in ("what", "id", "bridge", "protocol"))
        return Told(float(line["at"]), what, id_, bridge, protocol, guest, service, line)
    except (KeyError, TypeError, ValueError):
        return None


class Trail:
    """Tells the traces that follow one connection or session what becomes of it."""

    __slots__ = ("_about", "_listeners", "answered", "id")

    def __init__(self, listeners: list[Listener], target: Target, guest: tuple[Any, ...]) -> None:
        key, address = target.service.key, guest[0].partition("%")[0]
        self._listeners = listeners
        self._about: dict[str, object] = {
            "bridge": target.bridge,
            "protocol": key.protocol,
            "guest": address,
            "guest_port": guest[1],
            "service": reached_at(target, guest),
            "service_port": key.port,
        }
        self.id = ""
        self.answered = False  # of a session: whether its first answer was told

    def tell(self, what: str, **more: object) -> None:
        """Tell what happened just now."""
        line = json_object({"what": what, "at": time.monotonic(), "id": self.id, **self._about, **more})
        for each in self._listeners:
            each.say(line)


class Tracing:
    """The traces of a worker, each with the guests that it follows."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._traces: dict[Listener, Choice] = {}
        self.active = False
        self.state = 0  # changes with what is followed

    def answer(self, words: tuple[str, ...], listener: Listener) -> None:
        """Tell a listener of the guests that are chosen by these words (``choice``), until it has gone."""
        self._traces[listener] = Choice(words)
        listener.on_gone = lambda: self.forget(listener)
        self.active = True
        self.state += 1
        listener.say(json_object({"what": READY}))

    def forget(self, listener: Listener) -> None:
        """Tell a listener nothing any more."""
        self._traces.pop(listener, None)
        self.active = bool(self._traces)
        self.state += 1

    def trail(self, target: Target, guest: tuple[Any, ...], sock: socket.SocketType) -> Trail | None:
        """Return the trail of a guest's connection or session; None if no trace follows it.

        ``sock`` is a socket of the bridge's namespace.
        """
        address = guest[0].partition("%")[0]
        found = [each for each, choice in self._traces.items() if choice.has(target, address, "")]
        if found:
            mac = self._neighbours.mac(target.bridge, sock, address)
            # Where nobody knows the MAC, the reader decides.
            found = [each for each in found if not mac or self._traces[each].has_mac(mac)]
        return Trail(found, target, guest) if found else None

    def join(self, session: Session, id_: str) -> None:
        """Find out which traces follow a session, and tell them of it."""
        session.traced = self.state
        session.trail = self.trail(session.target, session.guest, session.gate.sock)
        if session.trail is not None:
            session.trail.id = id_
            session.trail.tell("session", endpoint=session.endpoint)

    def tell(
        self, target: Target, guest: tuple[Any, ...], sock: socket.SocketType, what: str, **more: object
    ) -> None:
        """Tell what happened to a guest that got no session."""
        if self.active and (trail := self.trail(target, guest, sock)) is not None:
            trail.tell(what, **more)
