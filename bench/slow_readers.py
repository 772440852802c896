"""Reads slowly on many connections: ``python -m bench.slow_readers ADDRESS PORT CONNECTIONS``.

Each connection asks for more than all buffers on the way hold, and takes 4 KiB of the answers every tenth of
a second. Prints ``ready`` when all have had some bytes, and runs until its standard input ends. Then prints
the number of bytes that it has read.
"""

from __future__ import annotations

import select
import socket
import sys
import time

TIMEOUT = 10.0  # seconds for connecting, and for the first bytes
ASKED = 200  # answers of 64 KiB, 13 MB: minutes at this pace
PART, PAUSE = 4096, 0.1

_REQUEST = b"GET /65536 HTTP/1.1\r\nHost: x\r\n\r\n" * ASKED


def connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, TIMEOUT)
    connection.sendall(_REQUEST)
    if not connection.recv(PART):
        raise OSError("no answer")
    connection.setblocking(False)
    return connection


def read_all(connections: list[socket.socket]) -> int:
    """Read once from each connection; returns the bytes. Raises OSError when one has ended."""
    count = 0
    for connection in connections:
        try:
            part = connection.recv(PART)
        except BlockingIOError:
            continue
        if not part:
            raise OSError("a connection ended")
        count += len(part)
    return count


def main() -> None:
    address = sys.argv[1], int(sys.argv[2])
    connections = [connect(address) for _ in range(int(sys.argv[3]))]
    print("ready", flush=True)
    count, next_round = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, next_round - time.monotonic()))[0]:
        count += read_all(connections)
        next_round += PAUSE
    print(count, flush=True)


if __name__ == "__main__":
    main()
