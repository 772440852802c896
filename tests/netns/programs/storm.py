"""Many short connections, some at a time: ``python storm.py [OPTIONS] ADDRESS PORT``.

Each connection sends a line of its own and waits for that line and the end of the connection. So an answer
that belongs to another connection is noticed too. The endpoint closes first (endpoints.py, ``short``): the
side that closes first keeps the port for a minute, and the guest would run out of ports. Prints JSON.
"""

from __future__ import annotations

import argparse
import errno
import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Attempt:
    """One connection on its way."""

    def __init__(self, number: int, target: tuple[str, int], now: float) -> None:
        self.line = f"{number}\n".encode()
        self.began = now
        self.step = "connect"
        self.answer = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        started = self.socket.connect_ex(target)
        if started not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(started, "connect")

    def go_on(self) -> bool:
        """Do what can be done now; returns whether this was the end. Raises OSError or ValueError."""
        if self.step == "connect":
            if problem := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(problem, "connect")
            self.step = "write"
            self.socket.sendall(self.line)
            self.step = "read"
            return False
        block = self.socket.recv(4096)
        self.answer += block
        if not block and self.answer != self.line:
            raise ValueError(f"{self.line!r} was answered with {self.answer!r}")
        return not block


class Storm:
    def __init__(self, target: tuple[str, int], left: Iterator[int], at_once: int, timeout: float) -> None:
        self.target = target
        self.left = left  # a number for each connection
        self.at_once = at_once
        self.timeout = timeout
        self.completed = 0
        self.errors: Counter[str] = Counter()
        self.poll = select.epoll()
        self.going: dict[int, Attempt] = {}

    def run(self) -> None:
        while self._fill():
            ready = self.poll.poll(1.0)
            for fd, _ in ready:
                self._go_on(fd)
            if not ready:  # the others have ended, or are stuck as well
                self._give_up()

    def _fill(self) -> bool:
        """Have as many on their way as there may be; returns whether there are any."""
        while len(self.going) < self.at_once and (number := next(self.left, None)) is not None:
            try:
                attempt = Attempt(number, self.target, time.monotonic())
            except OSError as error:
                self._count("connect", error)
                continue
            self.going[attempt.socket.fileno()] = attempt
            self.poll.register(attempt.socket, select.EPOLLOUT)
        return bool(self.going)

    def _go_on(self, fd: int) -> None:
        attempt = self.going[fd]
        connecting = attempt.step == "connect"
        try:
            ended = attempt.go_on()
        except (OSError, ValueError) as problem:
            self._count(attempt.step, problem)
            self._close(fd)
            return
        if ended:
            self.completed += 1
            self._close(fd)
        elif connecting:
            self.poll.modify(fd, select.EPOLLIN)

    def _give_up(self) -> None:
        now = time.monotonic()
        for fd, attempt in list(self.going.items()):
            if now - attempt.began > self.timeout:
                self.errors[f"{attempt.step}: timeout"] += 1
                self._close(fd)

    def _count(self, step: str, problem: OSError | ValueError) -> None:
        number = problem.errno if isinstance(problem, OSError) else None
        self.errors[f"{step}: {errno.errorcode.get(number or 0, str(problem))}"] += 1

    def _close(self, fd: int) -> None:
        self.going.pop(fd).socket.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, help="go on for so long, instead of a number of connections")
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=100.0)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    PORTS.write_text("1024 65535")  # of this network namespace: the guest's
    begin = time.monotonic()
    left = iter(range(options.connections))
    if options.seconds:
        left = takewhile(lambda _: time.monotonic() - begin < options.seconds, count())
    storm = Storm((options.address, options.port), left, options.at_once, options.timeout)
    storm.run()
    seconds = round(time.monotonic() - begin, 3)
    print(json.dumps({"completed": storm.completed, "errors": storm.errors, "seconds": seconds}))


if __name__ == "__main__":
    main()
