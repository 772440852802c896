"""Connects as fast as it can: ``python -m bench.greedy ADDRESS PORT PROCESSES``.

Each process connects and closes at once, again and again. Prints ``ready`` when all have connected, and runs
until its standard input ends. Then prints the number of connections.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from contextlib import suppress

# A close that resets: a client that closes first would otherwise have no free port after some seconds.
RESET = struct.pack("ii", 1, 0)

TIMEOUT = 5.0  # seconds; a greedy client is not patient, but it must not hang


def connect(address: tuple[str, int]) -> bool:
    """Connect once, and close; false when that failed."""
    with suppress(OSError), socket.create_connection(address, TIMEOUT) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return True
    return False


def work(address: tuple[str, int], report: int) -> None:
    """Connect until SIGTERM; write a line after the first connection, and their number at the end."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    count = 0
    while not ended:
        count += connect(address)
        if count == 1:
            os.write(report, b"first\n")
    os.write(report, f"{count}\n".encode())


def main() -> None:
    address = sys.argv[1], int(sys.argv[2])
    children = []
    for _ in range(int(sys.argv[3])):
        ours, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(ours)
            work(address, theirs)
            os._exit(0)
        os.close(theirs)
        children.append((pid, os.fdopen(ours)))
    for _, report in children:
        report.readline()
    print("ready", flush=True)
    sys.stdin.read()
    for pid, _ in children:
        os.kill(pid, signal.SIGTERM)
    print(sum(int(report.readline()) for _, report in children), flush=True)


if __name__ == "__main__":
    main()
