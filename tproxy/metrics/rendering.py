"""Turns a snapshot into Prometheus' text format, with prometheus-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tproxy.datapath.counts import OUTCOMES, LoopTimes
from tproxy.metrics import declared
from tproxy.metrics.declared import Metric
from tproxy.metrics.facts import Process, Service, Snapshot

# Names of newer formats may hold any character; ours do not.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Row = tuple[tuple[str, ...], float]


class _Snapshots(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Family]:
        return families(self._snapshot)


def render(snapshot: Snapshot) -> bytes:
    """Return the snapshot as text."""
    return generate_latest(_Snapshots(snapshot))


def families(snapshot: Snapshot) -> Iterator[Family]:
    """Yield all metrics, in the order of ``declared.ALL``."""
    services, bridges = snapshot.services, snapshot.bridges
    yield _simple(declared.UP, [((), snapshot.up)])
    if snapshot.up:
        yield _simple(declared.BUILD, [((snapshot.version,), 1)])
        yield _simple(declared.STARTED, [((), snapshot.started)])
        yield _simple(declared.RELAY_UP, [((each.name, each.network), each.relay) for each in bridges])
        yield _simple(declared.LISTENING, [(_of(each), each.listening) for each in services])
        yield from _of_connections([each for each in services if not each.udp])
        yield from _of_sessions([each for each in services if each.udp])
        yield _split(declared.DIAL_FAILURES, services, [each.counts.dial_failures for each in services])
        yield _split(declared.LIMITED, services, [each.counts.limited for each in services])
        yield _simple(
            declared.ENDPOINT_UP,
            [((*_of(each), endpoint), up) for each in services for endpoint, up in each.endpoints],
        )
        restarts = [((each.name, each.network), each.relay_restarts) for each in bridges]
        yield _simple(declared.RELAY_RESTARTS, restarts)
        yield _simple(declared.WORKER_RESTARTS, [((), snapshot.worker_restarts)])
        repairs = [
            ((each.name, each.network, result), count)
            for each in bridges
            for result, count in zip(declared.REPAIRS.values, each.repairs, strict=True)
        ]
        yield _simple(declared.REPAIRS, repairs)
        loops = [((process,), _by_bounds(times), times.seconds) for process, times in snapshot.loops]
        yield _histogram(declared.LAG, loops)
    processes = snapshot.processes
    yield _simple(declared.MEMORY, [(_which(each), each.memory) for each in processes])
    yield _simple(declared.FDS, [(_which(each), each.fds) for each in processes])
    yield _simple(declared.MOST_FDS, [(_which(each), each.most_fds) for each in processes if each.most_fds])
    yield _simple(declared.CPU, [(_which(each), each.cpu) for each in processes])


def _of_connections(services: list[Service]) -> Iterator[Family]:
    yield _simple(declared.OPEN, [(_of(each), each.counts.open) for each in services])
    yield _simple(declared.ACCEPTED, [(_of(each), each.counts.total) for each in services])
    yield _ended(declared.ENDED, services)
    both = [(each.counts.to_endpoint, each.counts.to_guest) for each in services]
    yield _split(declared.BYTES, services, both)
    connects = [(_of(each), each.counts.connects, each.counts.connect_seconds) for each in services]
    yield _histogram(declared.CONNECT, connects)
    durations = [(_of(each), each.counts.durations, each.counts.seconds) for each in services]
    yield _histogram(declared.DURATION, durations)


def _of_sessions(services: list[Service]) -> Iterator[Family]:
    yield _simple(declared.SESSIONS_OPEN, [(_of(each), each.counts.open) for each in services])
    yield _simple(declared.SESSIONS, [(_of(each), each.counts.total) for each in services])
    yield _ended(declared.SESSIONS_ENDED, services)
    datagrams = [(each.counts.datagrams_to_endpoint, each.counts.datagrams_to_guest) for each in services]
    yield _split(declared.DATAGRAMS, services, datagrams)
    both = [(each.counts.to_endpoint, each.counts.to_guest) for each in services]
    yield _split(declared.DATAGRAM_BYTES, services, both)


def _ended(metric: Metric, services: list[Service]) -> Family:
    places = [OUTCOMES.index(word) for word in metric.values]
    counts = [tuple(each.counts.outcomes[place] for place in places) for each in services]
    return _split(metric, services, counts)


def _simple(metric: Metric, rows: Iterable[Row]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _split(metric: Metric, services: Iterable[Service], counts: Iterable[tuple[int, ...]]) -> Family:
    """Return a counter that has a series for each value of its last label."""
    rows = (
        ((*_of(service), word), count)
        for service, row in zip(services, counts, strict=True)
        for word, count in zip(metric.values, row, strict=True)
    )
    return _simple(metric, rows)


def _histogram(metric: Metric, rows: Iterable[tuple[tuple[str, ...], tuple[int, ...], float]]) -> Family:
    """``rows`` have counts by bounds, each counted once; Prometheus' buckets include all lower ones."""
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(floatToGoString, metric.bounds), "+Inf"]
    for labels, counts, total in rows:
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return family


def _by_bounds(times: LoopTimes) -> tuple[int, ...]:
    return (times.turns - sum(times.slow), *times.slow)


def _of(service: Service) -> tuple[str, str, str]:
    return service.bridge, service.network, service.label


def _which(process: Process) -> tuple[str, str, str]:
    return process.kind, process.bridge, process.worker
