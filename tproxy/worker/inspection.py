"""Answers the questions which connections there are ("connections"), and to end some of them ("kill").

What is asked for is a ``datapath.choice``. UDP sessions count as connections. Each line is that of a
connection (``datapath.inspection``) as it is when its turn comes, or was right before it was ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tproxy.datapath import counts, inspection
from tproxy.datapath.choice import Choice
from tproxy.datapath.connection import Connection
from tproxy.datapath.connections import Connections
from tproxy.datapath.datagrams import Datagrams
from tproxy.datapath.session import Session
from tproxy.datapath.streams import Stream, Streams
from tproxy.worker.questions import PAUSE, Answer, Answerer

# What the log says of how it ended.
KILLED = "killed by an operator"

# Connections that are looked at before a pause, chosen or not.
LOOKED_AT = 20


class Inspection:
    """The connections of a worker. ``draining`` says whether it only finishes them."""

    def __init__(
        self,
        connections: Connections,
        streams: Streams,
        datagrams: Datagrams,
        draining: Callable[[], bool],
    ) -> None:
        self._connections = connections
        self._streams = streams
        self._datagrams = datagrams
        self._draining = draining

    @property
    def answerers(self) -> dict[str, Answerer]:
        """Who answers which kind of question."""
        return {"connections": self._list, "kill": self._kill}

    def _list(self, words: tuple[str, ...], answer: Answer) -> Iterator[str]:
        return self._lines(Choice(words), kill=False)

    def _kill(self, words: tuple[str, ...], answer: Answer) -> Iterator[str]:
        return self._lines(Choice(words), kill=True)

    def _lines(self, choice: Choice, *, kill: bool) -> Iterator[str]:
        for number, each in enumerate([*self._connections, *self._streams, *self._datagrams]):
            if number and not number % LOOKED_AT:
                yield PAUSE
            if isinstance(each, Connection):
                if isinstance(each, Stream):
                    line = self._of_stream(each, choice)
                else:
                    line = self._of_connection(each, choice)
                if line and kill:
                    each.abort(KILLED, counts.KILLED)
            else:
                line = self._of_session(each, choice)
                if line and kill:
                    self._datagrams.end(each, KILLED, counts.KILLED)
            if line:
                yield line

    def _of_connection(self, each: Connection, choice: Choice) -> str:
        """Return the line; "" if it is not chosen, or has ended."""
        if each not in self._connections or not choice.has(each.target, each.peer[0], each.id):
            return ""
        known = self._connections.introductions
        mac = inspection.mac_of(each, known.neighbours)
        if not choice.has_mac(mac):
            return ""
        return inspection.line(each, known, mac, time.monotonic(), draining=self._draining())

    def _of_stream(self, each: Stream, choice: Choice) -> str:
        mac = each.guest_mac
        chosen = choice.has(each.target, each.dialed.address, each.id) and choice.has_mac(mac)
        if each not in self._streams or not chosen:
            return ""
        known = self._connections.introductions
        return inspection.stream_line(each, known, mac, time.monotonic(), draining=self._draining())

    def _of_session(self, each: Session, choice: Choice) -> str:
        known = self._datagrams.introductions
        if each not in self._datagrams or not choice.has(each.target, each.guest[0], known.id(each.number)):
            return ""
        mac = inspection.mac_of_session(each, known.neighbours)
        if not choice.has_mac(mac):
            return ""
        return inspection.session_line(each, known, mac, time.monotonic(), draining=self._draining())
