"""What workers are told of routes, and the socket at which they accept streams from a gateway.

The socket lives as long as a bridge has a route. Workers and daemon have copies of it. A new daemon gets it
back from the workers of the one before, so that no stream is lost when one of our processes, or all of them,
are replaced: meanwhile streams wait in its backlog.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from tproxy.errors import KernelError
from tproxy.kernel.loop import Loop
from tproxy.log import limit
from tproxy.model import ServiceMap
from tproxy.process import inward_socket
from tproxy.worker import orders, route_orders

log = logging.getLogger(__name__)

# Seconds that workers of an earlier daemon have to hand over the socket, and between two looks for that.
HANDED_OVER, LOOK = 3.0, 0.02


class Routes:
    """``tell`` sends a message to all workers, ``give`` the socket to those that accept streams.

    ``expects`` says whether workers of an earlier daemon have not spoken yet.
    """

    def __init__(
        self,
        loop: Loop,
        tell: Callable[[orders.Message], None],
        give: Callable[[socket.socket | None], None],
        expects: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._give = give
        self._expects = expects
        self._began = time.monotonic()
        self._said: dict[str, list[orders.Routes]] = {}
        self._listener: socket.socket | None = None
        self._given = False  # whether workers have it
        self._wanted = False
        self._knows = False  # whether maps have been read: a new daemon knows no routes before that
        self._waits = False
        self._warnings = limit.warnings()

    def serve(self, maps: Iterable[ServiceMap]) -> None:
        """Take over the maps of all bridges as they are now."""
        before = self._said
        self._said = {each.bridge: [*_messages(each)] for each in maps if each.routes}
        for bridge in before.keys() | self._said.keys():
            said = self._said.get(bridge) or [orders.Routes(bridge, True, ())]
            if said != before.get(bridge):
                for message in said:
                    self._tell(message)
        self._wanted, self._knows = bool(self._said), True
        self._keep()

    def messages(self, bridge: str) -> Iterable[orders.Message]:
        """Return what a worker is told before it hears of the bridge's services."""
        return self._said.get(bridge, ())

    def take_over(self, listener: socket.socket) -> None:
        """Take the socket of the daemon before, which a worker has handed over; it is this object's."""
        if self._listener is not None or not inward_socket.is_listener(listener):
            listener.close()
            return
        self._listener = listener
        self._given = False
        self._keep()

    def _keep(self) -> None:
        """Have the socket, or have none."""
        if not self._wanted:
            if self._knows and self._listener is not None:
                inward_socket.remove()
                self._give(None)
                self._listener.close()
                self._listener = None
            return
        if self._listener is not None and inward_socket.is_listener(self._listener):
            if not self._given:
                self._given = True
                self._give(self._listener)
            return
        if self._listener is None and self._expects() and time.monotonic() < self._began + HANDED_OVER:
            if not self._waits:
                self._waits = True
                self._loop.call_later(LOOK, self._look)
            return
        old = self._listener
        try:
            self._listener = inward_socket.listen()
        except (OSError, KernelError) as error:
            if self._warnings.allows(time.monotonic()):
                log.error("no socket for routes: %s%s", error, self._warnings.suffix())
            return
        log.info("streams for routes are accepted at %s", inward_socket.path())
        self._given = True
        self._give(self._listener)
        if old is not None:
            old.close()

    def _look(self) -> None:
        self._waits = False
        self._keep()


def _messages(found: ServiceMap) -> Iterator[orders.Routes]:
    told = [orders.Told(each.number, each.id, each.expires, each.mac) for each in found.routes.values()]
    for start in range(0, len(told), route_orders.MOST_ROUTES):
        some = tuple(told[start : start + route_orders.MOST_ROUTES])
        yield orders.Routes(found.bridge, start == 0, some)
