"""The UDP endpoints of a worker: which are good, and whether guests are to be refused.

The state of endpoints is as for connections (``endpoints``), but apart from it: a server may answer TCP and
not UDP. A UDP endpoint fails when the kernel reports that a datagram was refused, or could not be delivered.
One that is only silent cannot be told from one that has nothing to say. A failed endpoint is checked with
datagrams without content (``datagram_checks``).

While all endpoints of a service have failed, the daemon is told again and again (``unreachable``). It has the
namespace's wall refuse the guests' datagrams with ICMP, as a closed port would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from tproxy.datapath.datagram_checks import DatagramChecks
from tproxy.datapath.dial_errors import OF_ENDPOINT, dial_failure
from tproxy.datapath.endpoints import BACK_OFF_MOST, Endpoints, State
from tproxy.datapath.session import Gate, connected
from tproxy.datapath.waiting import targets_of
from tproxy.kernel.loop import Loop
from tproxy.log.file import Log
from tproxy.model import Endpoint, Service, ServiceKey

# Seconds for which the daemon has guests refused, before it is told again that no endpoint can be reached.
REFUSED_FOR = BACK_OFF_MOST + 10


class DatagramEndpoints:
    """``gates`` are all of the worker, by bridge and key; the caller keeps them.

    ``report`` gets what is known of an endpoint, None when it is not used any more. ``unreachable`` gets a
    bridge, a key, and for how many seconds guests are to be refused; 0: no more.
    """

    def __init__(self, loop: Loop, log: Log, gates: Mapping[str, Mapping[ServiceKey, Gate]]) -> None:
        self._log = log
        self._gates = gates
        self._health = Endpoints(self._changed)
        self._checks = DatagramChecks(loop, self._health, connected, self._check_failed)
        self.report: Callable[[Endpoint, State | None], None] = lambda endpoint, state: None
        self.unreachable: Callable[[str, ServiceKey, float], None] = lambda bridge, key, seconds: None

    def keep(self, services: Iterable[Service]) -> None:
        """Know the endpoints of these services, and no others."""
        used = {endpoint for each in services for endpoint in each.candidates}
        for endpoint in self._health.keep(used, used):
            self.report(endpoint, None)
        self._checks.plan()

    def stop_checks(self) -> None:
        """Check nothing any more: another worker does."""
        self._checks.stop()

    def in_order(self, service: Service) -> list[Endpoint]:
        """Return the endpoints of a service in the order in which a session tries them."""
        return self._health.order(self._health.candidates(service), service.spread, {})

    def answered(self, endpoint: Endpoint, now: float) -> None:
        """Note an answer; ``now`` is of time.monotonic()."""
        if endpoint not in self._health.good:
            self._health.answered(endpoint, now)

    def failed(self, endpoint: Endpoint, number: int) -> None:
        """Note an error (errno(3)) of a datagram, if it is one of the endpoint."""
        if number in OF_ENDPOINT:
            self._health.fail(endpoint, dial_failure(number), time.monotonic())

    def _check_failed(self, endpoint: Endpoint, number: int) -> None:
        self.failed(endpoint, number)
        self._tell_guests(endpoint)

    def _changed(self, endpoint: Endpoint, state: State) -> None:
        self.report(endpoint, state)
        if state.failed:
            self._log.warning("endpoint %s/udp has failed: %s", endpoint, state.why)
        elif state.back_off:
            self._log.info("endpoint %s/udp answers", endpoint)
        self._checks.plan()
        self._tell_guests(endpoint)

    def _tell_guests(self, endpoint: Endpoint) -> None:
        """Have guests of services refused that this was the last endpoint of, or refused no more."""
        for bridge, gates in self._gates.items():
            for key, gate in gates.items():
                candidates = [
                    candidate
                    for each in targets_of(gate.door)
                    for candidate in self._health.candidates(each.service)
                ]
                if endpoint not in candidates or not gate.reading:
                    continue
                if self._health.failed.issuperset(candidates):
                    gate.unreachable = True
                    self.unreachable(bridge, key, REFUSED_FOR)
                elif gate.unreachable:
                    gate.unreachable = False
                    self.unreachable(bridge, key, 0)
