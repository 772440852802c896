"""Load generators in a guest: iperf3 for bulk, wrk for requests, bench/holder.py for open connections."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.lab import BULK_PORT, HTTP_PORT, REPORT
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest

# Seconds that a load generator gets beyond its own time, for a peer that does not keep up.
GRACE = 10.0


@dataclass(frozen=True)
class Bulk:
    bytes: int
    gigabits: float  # a second


@dataclass(frozen=True)
class Requests:
    count: int
    rate: float  # a second
    p50: float  # microseconds, as p99 and p999
    p99: float
    p999: float
    errors: int


def bulk(
    guest: Guest,
    seconds: float,
    streams: int = 1,
    *,
    down: bool = False,
    address: str = SERVICE_ADDRESS,
    port: int = BULK_PORT,
) -> Bulk:
    said = _run(
        guest,
        seconds,
        *("iperf3", "--json", "--client", address, "--port", str(port)),
        *("--time", f"{seconds:.0f}", "--parallel", str(streams), *(["--reverse"] if down else [])),
    )
    report = json.loads(said)
    if "error" in report:
        raise ProcessError(f"iperf3: {report['error']}")
    received = report["end"]["sum_received"]
    return Bulk(received["bytes"], received["bits_per_second"] / 1e9)


def requests(
    guest: Guest,
    seconds: float,
    connections: int,
    size: int = 1,
    *,
    port: int = HTTP_PORT,
    close: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> Requests:
    """Request bodies of a size for some seconds.

    ``close`` opens a new connection for each request. ``meanwhile`` is called once, half-way through. Raises
    ProcessError when no request is answered.
    """
    said = _run(
        guest,
        seconds,
        *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"),
        *("--timeout", "5s", "--script", REPORT, *(["--header", "Connection: close"] if close else [])),
        f"http://{SERVICE_ADDRESS}:{port}/{size}",
        meanwhile=meanwhile,
    )
    report = next((line for line in said.splitlines() if line.startswith("RESULT")), "RESULT 0 0 0 0 0 0")
    count, microseconds, p50, p99, p999, errors = map(int, report.split()[1:])
    if not count:
        raise ProcessError(f"no request was answered, {errors} errors")
    return Requests(count, count / microseconds * 1e6, p50, p99, p999, errors)


class Holder:
    """Connections that stay open after one request each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hold(self, connections: int) -> None:
        """Have so many connections in all. Raises ProcessError when that cannot be."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(connections, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if answer != f"holding {connections}":
            raise ProcessError(f"{connections} connections: {answer or 'the holder died'}")


@contextmanager
def holder(guest: Guest) -> Iterator[Holder]:
    process = guest.popen(
        *(sys.executable, "-m", "bench.holder", SERVICE_ADDRESS, str(HTTP_PORT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield Holder(process)
    finally:
        process.kill()
        process.wait()


def _run(guest: Guest, seconds: float, *argv: str, meanwhile: Callable[[], None] | None = None) -> str:
    process = guest.popen(*argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        if meanwhile:
            time.sleep(seconds / 2)
            meanwhile()
        said, _ = process.communicate(timeout=seconds + GRACE)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{argv[0]} had not ended {GRACE:.0f} s after its time") from None
    finally:
        process.kill()
        process.wait()
    # iperf3 reports its errors in JSON as well.
    if process.returncode and not said.startswith("{"):
        raise ProcessError(f"{argv[0]} ended with {process.returncode}: {said.strip()[-200:]}")
    return said
