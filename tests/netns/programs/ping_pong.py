"""Send messages on one connection, each after the last answer: ``ping_pong.py ADDRESS PORT COUNT``."""

from __future__ import annotations

import socket
import sys

MESSAGE = b"x" * 100


def main() -> None:
    address, port, count = sys.argv[1:]
    with socket.create_connection((address, int(port)), 10) as sock:
        for _ in range(int(count)):
            sock.sendall(MESSAGE)
            assert sock.recv(4096) == MESSAGE


main()
