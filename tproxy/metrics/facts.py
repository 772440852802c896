"""What metrics show, as values: the daemon's figures, the workers' counters, and the processes. Pure.

``Facts`` remembers the list of services, which the daemon sends only when it has changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tproxy.daemon.client import FIGURES
from tproxy.datapath.counters import View
from tproxy.datapath.counts import Counts, EndpointState, LoopTimes
from tproxy.datapath.membership import EVERYBODY
from tproxy.errors import ProtocolError
from tproxy.model import UDP, ServiceKey, service_label
from tproxy.routes import is_route


class Service(NamedTuple):
    """A service, with its ``label``, and the states of those endpoints that were dialled."""

    bridge: str
    network: str
    label: str
    listening: bool
    counts: Counts
    endpoints: tuple[tuple[str, bool], ...]
    udp: bool = False


class Bridge(NamedTuple):
    name: str
    network: str
    relay: bool
    relay_restarts: int
    repairs: tuple[int, int]  # done and failed


class Process(NamedTuple):
    """A process; ``kind`` is a value of the label ``process``. Memory in bytes, ``cpu`` in seconds."""

    kind: str
    bridge: str = ""
    worker: str = ""
    memory: int = 0
    fds: int = 0
    most_fds: int = 0
    cpu: float = 0.0


class Snapshot(NamedTuple):
    """All that one scrape shows. Without a daemon all but ``processes`` is as it is by default."""

    up: bool = False
    version: str = ""
    started: float = 0.0
    bridges: tuple[Bridge, ...] = ()
    services: tuple[Service, ...] = ()
    worker_restarts: int = 0
    loops: tuple[tuple[str, LoopTimes], ...] = ()
    processes: tuple[Process, ...] = ()


class Facts:
    """Makes a snapshot of each answer. ``known`` is what it knows by now, for the next question."""

    def __init__(self) -> None:
        self.known = ""
        self._bridges: dict[str, Any] = {}

    def take(self, answer: dict[str, Any] | None, views: list[View], processes: list[Process]) -> Snapshot:
        """Return the snapshot; ``answer`` is None without a daemon. Raises ProtocolError."""
        listed = tuple(processes)
        if answer is None:
            return Snapshot(processes=listed)
        if answer.get("format") != FIGURES:
            raise ProtocolError("the daemon is of another version")
        if "bridges" in answer:
            self._bridges = answer["bridges"]
        self.known = answer["generation"]
        counts = _ended(answer["ended"])
        states: dict[str, EndpointState] = {}
        loops = _loop(answer["worker_loops"])
        for view in views:
            loops = loops.plus(view.loop())
            for key, each in view.read()[1].items():
                counts[key] = counts.get(key, Counts()).plus(each)
            for endpoint, state in view.states().items():
                if endpoint not in states or states[endpoint].since < state.since:
                    states[endpoint] = state
        services = []
        for bridge, details in self._bridges.items():
            silent = answer["silent"].get(bridge, ())
            networks = _networks(details)
            for fields, name, endpoints in details["services"]:
                service = ServiceKey(*fields)
                services.append(
                    Service(
                        bridge,
                        networks.get(order := _order(service), f"@{order}"),
                        f"route/{name}" if is_route(service) else service_label(name, service.listener),
                        silent is not None and [*service.listener] not in silent,
                        counts.get((bridge, service), Counts()),
                        tuple((each, not states[each].failed) for each in endpoints if each in states),
                        service.protocol == UDP,
                    )
                )
        bridges = tuple(
            Bridge(
                name,
                _networks(details)[EVERYBODY],
                answer["relays"][name][0] is not None,
                answer["relays"][name][1],
                tuple(answer["repairs"].get(name, (0, 0))),
            )
            for name, details in self._bridges.items()
        )
        return Snapshot(
            True,
            answer["version"],
            answer["started"],
            bridges,
            tuple(services),
            answer["worker_restarts"],
            (("daemon", _loop(answer["loop"])), ("worker", loops)),
            listed,
        )


def _networks(details: dict[str, Any]) -> dict[int, str]:
    """Return the label of each network of a bridge by its order; no two are the same.

    What is for everybody belongs to the bridge's network where it has only one, and to none otherwise.
    """
    # A name that is not UTF-8 came as surrogates (PEP 383), which Prometheus does not take.
    names = [each.encode(errors="backslashreplace").decode() for each in details["networks"]]
    if len(names) == 1 and all(_order(ServiceKey(*key)) == EVERYBODY for key, _, _ in details["services"]):
        return {EVERYBODY: names[0]}
    known = {EVERYBODY: ""}
    for order, name in zip(details["orders"], names, strict=True):
        known[order] = name if name and names.count(name) == 1 else f"{name}@{order}"
    return known


def _ended(rows: list[list[Any]]) -> dict[tuple[str, ServiceKey], Counts]:
    return {
        (bridge, ServiceKey(*fields)): Counts(*counts[:6], *map(tuple, counts[6:8]), *counts[8:])
        for bridge, fields, *counts in rows
    }


def _loop(row: list[Any]) -> LoopTimes:
    turns, seconds, slow = row
    return LoopTimes(turns, seconds, tuple(slow))


def _order(key: ServiceKey) -> int:
    """The network whose guests have a service; a route is nobody's alone."""
    return EVERYBODY if is_route(key) else key.network
