"""The log line of each connection that has ended, limited for each target.

Guests decide how many connections end. Counters of a target are exact whatever is logged. When lines of a
target were left out, one line tells how many, at most SUMMARY seconds later. There is one timer for all
targets, and only while lines are left out.
"""

from __future__ import annotations

import time

from tproxy.datapath.counts import OUTCOMES
from tproxy.kernel.loop import Loop, Timer
from tproxy.log.file import INFO, Log
from tproxy.log.lines import Fields
from tproxy.model import Endpoint
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.datapath.connection import Connection
    from tproxy.datapath.session import Session
    from tproxy.datapath.target import Target

# Seconds between two lines that tell how many were left out.
SUMMARY = 60.0


class EndedLines:
    """Writes the lines. Connections of one loop share it."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._left_out: dict[Target, None] = {}
        self._timer: Timer | None = None

    def write(self, connection: Connection, how: str, outcome: int) -> None:
        """Write the line of a connection that has ended, unless its target has had too many."""
        if not self._allows(connection.target):
            return
        self._write(
            connection.target,
            connection.guest_name,
            connection.dialed,
            (connection.to_endpoint.moved, connection.to_guest.moved),
            connection.started,
            connection.id,
            connection.mac is not None,
            how,
            outcome,
        )

    def write_session(self, session: Session, id_: str, how: str, outcome: int) -> None:
        """Write the line of a UDP session, likewise."""
        target = session.target
        if not self._allows(target):
            return
        address, port = session.guest[:2]
        self._write(
            target,
            f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
            session.endpoint,
            (session.sent, session.received),
            session.started,
            id_,
            target.service.introduced,
            how,
            outcome,
        )

    def _allows(self, target: Target) -> bool:
        if self._log.level > INFO:
            return False
        if target.lines.allows(time.monotonic()):
            return True
        if target.lines.left_out == 1:
            self._left_out[target] = None
            if self._timer is None:
                self._timer = self._loop.call_later(SUMMARY, self.summarize)
        return False

    def _write(
        self,
        target: Target,
        guest: str,
        endpoint: Endpoint,
        moved: tuple[int, int],
        started: float,
        id_: str,
        introduced: bool,
        how: str,
        outcome: int,
    ) -> None:
        """Write one line; ``introduced`` says whether the endpoint was told the id."""
        seconds = time.monotonic() - started
        fields: Fields | None = None
        if self._log.has_fields:
            fields = {
                "connection": id_,
                **target.fields,
                "guest": guest,
                "endpoint": str(endpoint),
                "outcome": OUTCOMES[outcome],
                "end": how,
                "to_endpoint": moved[0],
                "to_guest": moved[1],
                "seconds": round(seconds, 3),
            }
        self._log.info(
            "bridge=%s guest=%s port=%s endpoint=%s to_endpoint=%d to_guest=%d seconds=%.3f%s end=%s",
            target.bridge,
            guest,
            target.service.key.in_words,
            endpoint,
            *moved,
            seconds,
            f" id={id_}" if introduced else "",
            how.replace(" ", "_"),
            fields=fields,
        )

    def summarize(self) -> None:
        """Write for each target how many lines were left out since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        targets, self._left_out = self._left_out, {}
        for target in targets:
            self._log.info(
                "bridge=%s port=%s %d more like this",
                target.bridge,
                target.service.key.in_words,
                target.lines.left_out,
                fields={**target.fields, "left_out": target.lines.left_out},
            )
            target.lines.left_out = 0
