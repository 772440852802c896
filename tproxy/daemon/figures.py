"""The figures of the daemon: what ``tproxy metrics`` needs of it, besides the workers' counters.

Theory of operation. The process that makes metrics reads the counters in the memory of the workers by itself:
the answer brings a read-only descriptor of each. What remains is small, but for the list of services, which
is sent only when the asker does not know it as it is now (``known``). So an answer costs the daemon little,
however many services there are.
"""

from __future__ import annotations

import os
import time

from tproxy import __version__
from tproxy.daemon.catalog import Catalog
from tproxy.daemon.client import FIGURES, Json
from tproxy.daemon.relays import Relays
from tproxy.daemon.workers import Workers
from tproxy.kernel.loop import Loop


class Figures:
    """``started`` is in seconds since the epoch."""

    def __init__(
        self, loop: Loop, catalog: Catalog, workers: Workers, relays: Relays, started: float
    ) -> None:
        self._loop = loop
        self._catalog = catalog
        self._workers = workers
        self._relays = relays
        self._started = started
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"  # no other daemon has it
        self._repairs: dict[str, list[int]] = {}  # done and failed, by bridge

    def note_repair(self, bridge: str, *, failed: bool) -> None:
        """Count a repair by the watcher of a bridge that is served."""
        if bridge in self._catalog.bridges:
            self._repairs.setdefault(bridge, [0, 0])[failed] += 1

    def answer(self, known: str) -> tuple[Json, list[int]]:
        """Return the figures, and the descriptors to send beside them; ``known`` is a ``generation``."""
        bridges = sorted(self._catalog.bridges)
        self._repairs = {bridge: each for bridge, each in self._repairs.items() if bridge in bridges}
        generation = f"{self._mark}-{self._catalog.changes}"
        answer: Json = {
            "format": FIGURES,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "generation": generation,
            "loop": [self._loop.turns, self._loop.busy, self._loop.slow],
            "worker_restarts": self._workers.restarts,
            "worker_loops": self._workers.ended_loops(),
            "workers": self._workers.pids(),
            "relays": {
                bridge: [self._relays.pid(bridge), self._relays.restarts(bridge)] for bridge in bridges
            },
            "silent": {bridge: silent for bridge in bridges if (silent := self._relays.silent(bridge)) != []},
            "repairs": self._repairs,
            "ended": [[bridge, key, *each] for (bridge, key), each in self._workers.ended_counts().items()],
        }
        if known != generation:
            answer["bridges"] = {bridge: self._bridge(bridge) for bridge in bridges}
        return answer, self._workers.memories()

    def _bridge(self, bridge: str) -> Json:
        orders = self._catalog.orders(bridge)
        return {
            "networks": [each.name or each.id for each in orders],
            "orders": [*orders.values()],
            "services": [
                [each.key, each.name, [each.name_of(endpoint) for endpoint in each.candidates]]
                for each in self._catalog.services(bridge)
            ]
            + [[each.service.key, each.id, []] for each in self._catalog.routes(bridge)],
        }
