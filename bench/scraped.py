"""Measures the latency of guests' requests, by turns with and without a scrape of the metrics each second.

``python -m bench.scraped [--rounds N] [--seconds S] [--services N]`` prints Markdown. All services are on one
bridge; the process that serves metrics runs as its unit has it run.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

from bench import load, report
from bench.growth import PATIENCE
from bench.lab import BRIDGE, ENDPOINT, HTTP_PORT, add_endpoints, furnish
from bench.quiet import Quiet
from tproxy.lab.hypervisor import Hypervisor

SOCKET = "/run/metrics.sock"
CONNECTIONS = 64
EVERY = 1.0  # seconds between two scrapes

# As in etc/systemd/tproxy-metrics.service.
LIKE_THE_UNIT = ("nice", "-n", "5", "chrt", "--batch", "0")

NOT_SCRAPED, SCRAPED = "not scraped", "scraped every second"
COLUMNS = {"p50": "p50, µs", "p99": "p99, µs", "p999": "p99.9, µs", "rate": "requests/s"}

Point = dict[str, float]


class Scraper:
    """Asks for the page every second while it is told to, and notes how long that takes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wanted = threading.Event()
        self.times: list[float] = []
        self.bytes = 0
        threading.Thread(target=self._run, daemon=True).start()

    @contextmanager
    def scraping(self) -> Iterator[None]:
        self._wanted.set()
        try:
            yield
        finally:
            self._wanted.clear()

    def scrape(self) -> None:
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX) as sock:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
            os.close(folder)
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            size = sum(map(len, iter(lambda: sock.recv(1 << 20), b"")))
        self.bytes = max(self.bytes, size)  # the last one may be cut off by the end of the host
        self.times.append(time.monotonic() - began)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            due = time.monotonic() + EVERY
            self.scrape()
            time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scraped")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--services", type=int, default=2000)
    options = parser.parse_args()
    quiet = Quiet(PATIENCE)
    taken: dict[str, list[Point]] = {NOT_SCRAPED: [], SCRAPED: []}
    with Hypervisor() as host:
        guest = furnish(host)
        add_endpoints(host)
        text = "tproxy_debug_level: 1\ntproxy:\n" + "".join(
            f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {HTTP_PORT}}}\n"
            for port in (HTTP_PORT, *range(20_000, 20_000 + options.services - 1))
        )
        config = host.write("/run/tproxy.yaml", text)
        host.tproxy("hook", "up", "--bridge", BRIDGE, "--config", config)
        host.popen(*LIKE_THE_UNIT, sys.executable, "-m", "tproxy", "metrics", "--listen", SOCKET)
        path = host.path(SOCKET)
        while not path.exists():
            time.sleep(0.1)
        scraper = Scraper(path)
        scraper.scrape()

        def measure() -> Point:
            done = load.requests(guest, options.seconds, CONNECTIONS)
            return {"p50": done.p50, "p99": done.p99, "p999": done.p999, "rate": done.rate}

        def measure_scraped() -> Point:
            with scraper.scraping():
                return measure()

        turns: dict[str, Callable[[], Point]] = {NOT_SCRAPED: measure, SCRAPED: measure_scraped}
        for number in range(options.rounds):
            for name in list(turns)[:: -1 if number % 2 else 1]:
                taken[name].append(quiet.measure(turns[name])[0].figures)
    print("\n".join(f"- {line}" for line in report.circumstances(options.rounds, options.seconds)))
    print(f"- {options.services} services; a page of {scraper.bytes / 1e6:.1f} MB")
    print(f"- a scrape under load takes {statistics.median(scraper.times[1:]):.2f} s (median)")
    print()
    print(table(taken))


def table(taken: dict[str, list[Point]]) -> str:
    """Each figure with its spread, and its ratio to the one of NOT_SCRAPED."""
    rows = []
    for name, points in taken.items():
        texts = []
        for key in COLUMNS:
            measured = [point[key] for point in points]
            whole = statistics.median(point[key] for point in taken[NOT_SCRAPED])
            texts.append(f"{report.spread(measured)}: {statistics.median(measured) / whole:.2f}")
        rows.append([name, *texts])
    return tabulate(rows, ["", *COLUMNS.values()], "pipe")


if __name__ == "__main__":
    main()
