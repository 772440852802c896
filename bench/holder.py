"""Holds connections open, after one request on each: ``python -m bench.holder ADDRESS PORT``.

Reads numbers from standard input, one a line. Opens or closes connections until it has that many, and answers
``holding N``.
"""

from __future__ import annotations

import socket
import sys

# A peer that cannot take one more connection must not block the benchmark.
TIMEOUT = 10.0  # seconds


def used_once(address: tuple[str, int]) -> socket.socket:
    """Connect and make one request; raises OSError when it is not answered."""
    connection = socket.create_connection(address, TIMEOUT)
    connection.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise OSError("no answer")
    return connection


def main() -> None:
    address = sys.argv[1], int(sys.argv[2])
    held: list[socket.socket] = []
    for line in sys.stdin:
        wanted = int(line)
        try:
            while len(held) < wanted:
                held.append(used_once(address))
        except OSError as error:
            print(f"{error}, after {len(held)}", flush=True)
            continue
        while len(held) > wanted:
            held.pop().close()
        print(f"holding {len(held)}", flush=True)


if __name__ == "__main__":
    main()
