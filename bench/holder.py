"""Connections that were used once and stay open: ``python -m bench.holder ADDRESS PORT``.

Reads from standard input how many there are to be, and answers ``holding N`` when there are.
"""

from __future__ import annotations

import socket
import sys

# A relay that cannot take one more must not hold the benchmark up.
TIMEOUT = 10.0  # seconds


def used_once(address: tuple[str, int]) -> socket.socket:
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
