"""Traffic of one guest: ``python -m bench.soak.guest CALM ADDRESS STEADY [FICKLE]``, until its input ends.

The ports are those of two services: the endpoint behind STEADY never goes away, the one behind FICKLE does.
With a CALM of 10, pauses are ten times longer, and bulk is a tenth. Prints a line of JSON when it has all its
idle connections, and for each loss (judgement.py, ``Loss``); and a last one, with counts, when all is closed.
"""

from __future__ import annotations

import errno
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.soak.exchange import Damaged, Header, ask

PATIENCE = 60.0  # seconds for connecting, and for each read
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

SMALL = 100  # bytes
IDLE = 50  # connections
# A guest that was refused or reset tries again after a moment, as programs do.
BACK_OFF = 0.2  # seconds


class Guest:
    def __init__(self, address: str, calm: float) -> None:
        self.address = address
        self.calm = calm
        self.ending = threading.Event()
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ready = False

    def connect(self, kind: str, port: int, talk: Callable[[socket.socket], None]) -> None:
        """Connect, and talk; when one of that fails there is a line, and a pause."""
        began = time.monotonic()
        with socket.socket() as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect((self.address, port))
                talk(sock)
            except (OSError, Damaged) as problem:
                self.lose(kind, port, sock, began, problem)
                self.ending.wait(BACK_OFF)
            else:
                self.count(f"{kind} connections")

    def lose(self, kind: str, port: int, sock: socket.socket, began: float, problem: Exception) -> None:
        number = problem.errno if isinstance(problem, OSError) else None
        error = (
            f"damaged: {problem}"
            if isinstance(problem, Damaged)
            else "timeout"
            if isinstance(problem, TimeoutError)
            else errno.errorcode.get(number or 0, str(problem))
        )
        loss = {
            "kind": kind,
            "service": port,
            "local": sock.getsockname()[1],
            "began": began,
            "ended": time.monotonic(),
            "error": error,
        }
        with self._lock:
            print(json.dumps({"loss": loss}), flush=True)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def exchange(
        self, sock: socket.socket, up: int, down: int, *, last: bool = False, pause: float = 0.0
    ) -> None:
        ask(sock, Header(up, down, last), pause)
        self.count("exchanges")
        self.count("bytes", up + down)

    # Kinds of traffic, each until the end

    def short(self, kind: str, port: int) -> None:
        while not self.ending.wait(0.01 * self.calm):
            self.connect(kind, port, lambda sock: self.exchange(sock, SMALL, SMALL))

    def kept(self, kind: str, port: int) -> None:
        def talk(sock: socket.socket) -> None:
            until = time.monotonic() + random.uniform(2, 60)
            while time.monotonic() < until and not self.ending.wait(0.01 * self.calm):
                self.exchange(sock, 2 * SMALL, 20 * SMALL)

        while not self.ending.is_set():
            self.connect(kind, port, talk)

    def bulk(self, kind: str, port: int, up: int, down: int) -> None:
        size = up / self.calm, down / self.calm
        while not self.ending.wait(1.0):
            self.connect(kind, port, lambda sock: self.exchange(sock, *map(int, size)))

    def half_closed(self, kind: str, port: int) -> None:
        def talk(sock: socket.socket) -> None:
            self.exchange(sock, random.randrange(1, 100_000), random.randrange(1, 100_000), last=True)

        while not self.ending.wait(0.05 * self.calm):
            self.connect(kind, port, talk)

    def slow(self, kind: str, port: int) -> None:
        while not self.ending.wait(0.05):
            self.connect(
                kind, port, lambda sock: self.exchange(sock, SMALL, 2_000_000, pause=0.02, last=True)
            )

    def idle(self, kind: str, port: int) -> None:
        """Hold many connections, and use each one once in a while."""
        held: list[tuple[float, socket.socket]] = []
        while not self.ending.is_set():
            if len(held) == IDLE and not self._ready:
                self._ready = True
                with self._lock:
                    print(json.dumps({"ready": True}), flush=True)
            while len(held) < IDLE and not self.ending.is_set():
                began, sock = time.monotonic(), socket.socket()
                sock.settimeout(PATIENCE)
                held.append((began, sock))
                try:
                    sock.connect((self.address, port))
                    self.exchange(sock, SMALL, SMALL)
                except (OSError, Damaged) as problem:
                    self._drop(kind, port, held, held[-1], problem)
            for one in held.copy():
                if self.ending.wait(0.1):
                    break
                try:
                    self.exchange(one[1], SMALL, SMALL)
                except (OSError, Damaged) as problem:
                    self._drop(kind, port, held, one, problem)
        for one in held.copy():
            try:
                self.exchange(one[1], SMALL, SMALL, last=True)
                self.count(f"{kind} connections")
            except (OSError, Damaged) as problem:
                self._drop(kind, port, held, one, problem)
        for _, sock in held:
            sock.close()

    def _drop(
        self,
        kind: str,
        port: int,
        held: list[tuple[float, socket.socket]],
        one: tuple[float, socket.socket],
        problem: Exception,
    ) -> None:
        held.remove(one)
        self.lose(kind, port, one[1], one[0], problem)
        one[1].close()
        self.ending.wait(BACK_OFF)


def main() -> None:
    calm, address, *ports = sys.argv[1:]
    steady, fickle = int(ports[0]), int(ports[-1])
    PORTS.write_text("1024 65535")  # of this network namespace: the guest's
    guest = Guest(address, float(calm))
    jobs: list[Callable[[], None]] = [
        partial(guest.short, "short", steady),
        partial(guest.short, "short", fickle),
        *(partial(guest.kept, "kept", port) for port in (steady, steady, fickle)),
        partial(guest.bulk, "bulk up", steady, 8_000_000, 0),
        partial(guest.bulk, "bulk down", steady, 0, 8_000_000),
        partial(guest.bulk, "bulk both ways", steady, 3_000_000, 3_000_000),
        partial(guest.half_closed, "half-closed", steady),
        *[partial(guest.slow, "slow reader", steady)] * 3,
        partial(guest.idle, "idle", steady),
    ]
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    guest.ending.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"counts": guest.counts}), flush=True)


if __name__ == "__main__":
    main()
