"""Send messages on one connection, each after the last answer: ``ping_pong.py ADDRESS PORT COUNT``."""

from __future__ import annotations

import socket
import sys

PATIENCE = 100.0  # seconds for connecting and for each answer
MESSAGE = b"x" * 100


def main() -> None:
    address, port, count = sys.argv[1:]
    with socket.create_connection((address, int(port)), PATIENCE) as sock:
        for _ in range(int(count)):
            sock.sendall(MESSAGE)
            assert sock.recv(4096) == MESSAGE


main()
