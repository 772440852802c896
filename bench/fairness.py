"""Fairness: p99 of a guest, while another guest, of another bridge or of the same one, does its worst.

The greedy guest is the first one on the first bridge. It connects as fast as it can, moves bulk on many
streams, holds many idle connections, or reads slowly on many. The other guest, on the second bridge or on the
first one, makes requests on connections that stay, to another endpoint.

For the control, the same greedy load goes straight to its endpoint, over a link of its own. Then the two
guests share processors, kernel and nothing else. The ratio of both p99 is what sharing tproxy costs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from bench import load
from bench.bridges import Client, Site
from bench.lab import ENDPOINT
from bench.rounds import Measuring
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE

# The load of the greedy guest, and the connections of the other one.
PROCESSES, STREAMS, IDLE, SLOW = 8, 16, 3000, 500
CONNECTIONS = 64

# Seconds between two reports of iperf3, and for how much longer it runs than the other guest needs.
_INTERVAL, _LONGER = 0.5, 1.0

# Makes a load on an address, for at least so many seconds, for a ``with`` block. Yields a call that waits for
# the end of the load and returns what it reached.
Greed = Callable[[Client, str, float], AbstractContextManager[Callable[[], float]]]


@contextmanager
def connecting(client: Client, address: str, _: float) -> Iterator[Callable[[], float]]:
    """Connect as fast as possible; the call ends that, and returns the number of connections."""
    with _running("bench.greedy", client, address, PROCESSES) as end:
        yield end


@contextmanager
def slow(client: Client, address: str, _: float) -> Iterator[Callable[[], float]]:
    """Read slowly on many connections; the call ends that, and returns the bytes that were read."""
    with _running("bench.slow_readers", client, address, SLOW) as end:
        yield end


@contextmanager
def idle(client: Client, address: str, _: float) -> Iterator[Callable[[], float]]:
    """Hold many connections after one request each; the call returns their number."""
    argv = [sys.executable, "-m", "bench.holder", address, str(client.http)]
    process = client.guest.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(IDLE, file=process.stdin, flush=True)
        if (answer := process.stdout.readline().strip()) != f"holding {IDLE}":
            raise ProcessError(f"{IDLE} connections: {answer or 'the holder died'}")
        yield lambda: float(IDLE)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _running(module: str, client: Client, address: str, number: int) -> Iterator[Callable[[], float]]:
    """Run a program that prints ``ready``, and a number when its input ends; the call ends it."""
    argv = [sys.executable, "-m", module, address, str(client.http), str(number)]
    process = client.guest.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise ProcessError(f"{module} did not start")
        yield lambda: float(process.communicate(timeout=PATIENCE)[0])
    finally:
        process.kill()
        process.wait()


@contextmanager
def streaming(client: Client, address: str, seconds: float) -> Iterator[Callable[[], float]]:
    """Move bulk on many streams; the call waits for their end, and returns Gbit/s."""
    process = client.guest.popen(
        *("iperf3", "--client", address, "--port", str(client.bulk), "--parallel", str(STREAMS)),
        *(
            "--time",
            f"{seconds + _LONGER:.0f}",
            "--interval",
            str(_INTERVAL),
            "--format",
            "m",
            "--forceflush",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        said = ""
        while (line := process.stdout.readline()) and "[SUM]" not in line:
            said = line
        if not line:
            raise ProcessError(f"iperf3: {said.strip()}")
        first = line
        yield lambda: statistics.mean(sums(first + process.communicate(timeout=PATIENCE)[0])) / 1000
    finally:
        process.kill()
        process.wait()


def sums(report: str) -> list[float]:
    """Mbit/s of all streams together in each interval of iperf3's report."""
    lines = (line.split() for line in report.splitlines() if line.startswith("[SUM]"))
    return [
        float(words[words.index("Mbits/sec") - 1])
        for words in lines
        if words[-1] not in ("sender", "receiver")
    ]


GREEDS: dict[str, Greed] = {"connects": connecting, "streams": streaming, "idle": idle, "slow": slow}

# Where the other guest is: what keys begin with, its bridge, and its number there.
PLACES = {"": (1, 0), "same ": (0, 1)}


def victim(place: str, site: Site) -> Client:
    bridge, number = PLACES[place]
    return Client(site.guests[bridge][number], 1)


def calm(place: str, site: Site, seconds: float) -> dict[str, float]:
    """Microseconds of p99 of the other guest without the greedy one."""
    client = victim(place, site)
    done = load.requests(client.guest, seconds, CONNECTIONS, port=client.http)
    return {f"{place}calm p99": done.p99, "errors": done.errors}


def beside(place: str, greed: str, address: str, key: str, site: Site, seconds: float) -> dict[str, float]:
    """The same beside the greedy guest, and what that one reached."""
    client = victim(place, site)
    with GREEDS[greed](Client(site.guests[0][0], 0), address, seconds) as end:
        done = load.requests(client.guest, seconds, CONNECTIONS, port=client.http)
        reached = end()
    return {f"{key} p99": done.p99, f"{key} rate": done.rate, f"{key} greed": reached, "errors": done.errors}


MEASURES: dict[str, Measuring[Site]] = {
    **{f"fairness, {place}calm": partial(calm, place) for place in PLACES},
    **{
        f"fairness, {key}": partial(beside, place, greed, address, key)
        for place in PLACES
        for greed in GREEDS
        for key, address in (
            (f"{place}{greed}", SERVICE_ADDRESS),
            (f"{place}{greed} control", ENDPOINT),
        )
    },
}
