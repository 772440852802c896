"""Growth of cost with open connections, with bridges, and with services of a bridge."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

from bench import load
from bench.hooks import hook, milliseconds
from bench.lab import BRIDGE, HTTP_PORT, NAMES, add_endpoints, furnish
from bench.peers import BUILDERS, HAPROXY, TPROXY, Peer, tproxy_config, tproxy_processes
from bench.quiet import Quiet
from bench.results import Point, Results
from bench.rounds import FAILURES, built
from tproxy.lab.hypervisor import Hypervisor

CONNECTIONS = (10, 100, 1000, 2000, 4000, 8000)
BRIDGES = (1, 10, 50, 100, 150, 200)
SERVICES = (1, 5, 10, 20, 30, 50)

# Services of each bridge, where bridges are what grows.
SERVICES_PER_BRIDGE = 10

# Seconds that may be spent on repeating disturbed measurements.
PATIENCE = 600.0

# Hooks, and reloads, at each point of a curve; their median counts.
TIMES = 5


def measure(seconds: float, results: Results, scale: float = 1.0) -> None:
    """Measure all three curves; ``scale`` below 1 ends them at that part of their length."""
    quiet = Quiet(PATIENCE)
    for curve in (with_connections, with_bridges, with_services):
        print(f"growth: {curve.__name__.replace('_', ' ')}", file=sys.stderr)
        try:
            curve(seconds, results, scale, quiet)
        except FAILURES as problem:
            results.failed(TPROXY, f"growth {curve.__name__.replace('_', ' ')}", problem)


def with_connections(seconds: float, results: Results, scale: float, quiet: Quiet) -> None:
    """Requests on some connections while others are open and idle."""
    with built({name: BUILDERS[name] for name in (TPROXY, HAPROXY)}, results) as peers:
        for peer in peers:
            with load.holder(peer.guest) as holder:
                holder.hold(1)
                rest = peer.memory()
                for count in up_to(CONNECTIONS, scale):
                    try:
                        holder.hold(count)
                        memory = peer.memory().private - rest.private
                        point = {**speed(peer, seconds, quiet), "memory": memory / 1e6}
                    except FAILURES as problem:
                        results.failed(peer.name, f"{count} connections", problem)
                        break
                    results.add_point("connections", peer.name, {"n": count, **point})


def with_bridges(seconds: float, results: Results, scale: float, quiet: Quiet) -> None:
    """Requests, hooks and memory on a host that gets more and more bridges."""
    with Hypervisor() as host:
        guest = furnish(host)
        add_endpoints(host)
        config = host.write("/run/bridges.yaml", tproxy_config(ports(SERVICES_PER_BRIDGE)))
        peer = Peer(TPROXY, host, guest, partial(tproxy_processes, host), NAMES.namespace)
        names = [BRIDGE, *(f"br{number}" for number in range(1, max(BRIDGES)))]
        there = 0
        for count in up_to(BRIDGES, scale):
            for name in names[there:count]:
                if name != BRIDGE:
                    host.add_bridge(name)
                hook(host, name, config).up()
            there = count
            newest = hook(host, names[count - 1], config)
            point = {
                "hook warm": median_of(newest.up),
                "reload": median_of(partial(host.tproxy, "reload")),
                **speed(peer, seconds, quiet),
                "memory": peer.memory().pss / 1e6,
                "private": peer.memory().private / 1e6,
            }
            if (
                count > 1
            ):  # when its only bridge goes, the daemon ends, and the hook would have to start another
                point["hook cold"] = median_of(newest.up, newest.down)
            results.add_point("bridges", TPROXY, {"n": count, **point})


def with_services(seconds: float, results: Results, scale: float, quiet: Quiet) -> None:
    """Requests, hooks and memory on one bridge that gets more and more services."""
    with Hypervisor() as host:
        guest = furnish(host)
        add_endpoints(host)
        peer = Peer(TPROXY, host, guest, partial(tproxy_processes, host), NAMES.namespace)
        for count in up_to(SERVICES, scale):
            config = host.write("/run/services.yaml", tproxy_config(ports(count)))
            bridge = hook(host, BRIDGE, config)
            changed = milliseconds(bridge.up)
            point = {
                "hook changed": changed,
                "hook warm": median_of(bridge.up),
                "reload": median_of(partial(host.tproxy, "reload")),
                **speed(peer, seconds, quiet),
                "memory": peer.memory().pss / 1e6,
            }
            results.add_point("services", TPROXY, {"n": count, **point})


def speed(peer: Peer, seconds: float, quiet: Quiet) -> Point:
    """Latency on one connection, requests/s on 64, and new connections/s, 32 at a time."""
    one, many, new = (
        quiet.measure(partial(load.requests, peer.guest, seconds, connections, close=close))[0].figures
        for connections, close in ((1, False), (64, False), (32, True))
    )
    return {"p50": one.p50, "p99": one.p99, "rate": many.rate, "new rate": new.rate}


def ports(count: int) -> Sequence[int]:
    """The service ports of so many services; only the first has an endpoint that answers."""
    return range(HTTP_PORT, HTTP_PORT + count)


def up_to(sizes: Sequence[int], scale: float) -> list[int]:
    """The sizes up to that part of the largest."""
    return [size for size in sizes if size <= max(sizes) * scale]


def median_of(job: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The median time of the job, in milliseconds; ``before`` runs each time, and is not timed."""
    taken = []
    for _ in range(TIMES):
        before()
        taken.append(milliseconds(job))
    return statistics.median(taken)
