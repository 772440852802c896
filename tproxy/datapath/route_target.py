"""The target of a route's streams, and the log lines of these."""

from __future__ import annotations

import time

from tproxy.datapath.connection import Connection
from tproxy.datapath.counts import DIAL_FAILED, OUTCOMES
from tproxy.datapath.ended_lines import EndedLines
from tproxy.datapath.target import Target
from tproxy.kernel.loop import Loop
from tproxy.log.file import INFO, Log
from tproxy.model import Endpoint
from tproxy.typed import Any

# Seconds between two times that the daemon is asked where the guest of a route is. Clients decide how often
# it is not there.
QUIET = 5.0

# How a stream ends whose guest has another MAC than the route's.
ANOTHER = "another guest"


class RouteTarget(Target):
    """The target of a route's streams. ``id``, ``expires`` and ``mac`` are as in ``tproxy.routes``."""

    __slots__ = ("absent_since", "expires", "id", "mac")

    def __init__(self, *arguments: Any, sharers: int = 1) -> None:
        super().__init__(*arguments, sharers=sharers)
        self.id = ""
        self.expires = 0
        self.mac = ""
        self.absent_since = -QUIET  # when somebody was last told, by time.monotonic()

    @property
    def fields(self) -> dict[str, object]:
        return {"bridge": self.bridge, "network": self.network, "route": self.id}


class StreamLines(EndedLines):
    """The log lines of streams."""

    def __init__(self, loop: Loop, log: Log) -> None:
        super().__init__(loop, log)

    def write(self, connection: Connection, how: str, outcome: int) -> None:
        if self._allows(connection.target):
            assert isinstance(connection.target, RouteTarget)
            moved = connection.to_endpoint.moved, connection.to_guest.moved
            # The connection calls the accepted side the guest, and the dialled one the endpoint.
            said = how.replace("guest", "client") if how != ANOTHER else how
            words = said.replace("endpoint", "guest"), OUTCOMES[outcome]
            self._line(
                connection.target, connection.guest_name, connection.dialed, moved, connection.started, words
            )

    def write_early(
        self,
        target: RouteTarget,
        peer: tuple[str, int],
        how: str,
        since: float,
        outcome: int = DIAL_FAILED,
    ) -> None:
        """Write the line of a stream that has moved no byte, unless its target has had too many."""
        if self._allows(target):
            client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
            self._line(target, client, target.service.endpoint, (0, 0), since, (how, OUTCOMES[outcome]))

    def _line(
        self,
        target: RouteTarget,
        client: str,
        guest: Endpoint,
        moved: tuple[int, int],
        started: float,
        words: tuple[str, str],
    ) -> None:
        if self._log.level > INFO:
            return
        how, outcome = words
        seconds = time.monotonic() - started
        self._log.info(
            "route=%s bridge=%s client=%s guest=%s to_guest=%d to_client=%d seconds=%.3f end=%s",
            target.id,
            target.bridge,
            client,
            guest,
            *moved,
            seconds,
            how.replace(" ", "_"),
            fields={
                **target.fields,
                "client": client,
                "guest": str(guest),
                "outcome": outcome,
                "end": how,
                "to_guest": moved[0],
                "to_client": moved[1],
                "seconds": round(seconds, 3),
            }
            if self._log.has_fields
            else None,
        )

    def summarize(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        targets, self._left_out = self._left_out, {}
        for target in targets:
            assert isinstance(target, RouteTarget)
            self._log.info(
                "route=%s bridge=%s %d more like this",
                target.id,
                target.bridge,
                target.lines.left_out,
                fields={**target.fields, "left_out": target.lines.left_out},
            )
            target.lines.left_out = 0
