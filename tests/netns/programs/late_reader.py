"""Read a connection to its end, but only after a line of input has come: ``late_reader.py ADDRESS PORT``.

Ends its own direction at once, and prints how many bytes came.
"""

from __future__ import annotations

import socket
import sys

PATIENCE = 100.0  # seconds for connecting and for each part


def main() -> None:
    address, port = sys.argv[1:]
    with socket.create_connection((address, int(port)), PATIENCE) as sock:
        sock.shutdown(socket.SHUT_WR)
        sys.stdin.readline()
        print(sum(map(len, iter(lambda: sock.recv(65536), b""))))


main()
