"""Hold one TCP connection open and send lines on it: ``talker.py ADDRESS PORT``.

Prints ``ready`` when it is connected. Then it sends each line of its input and prints what comes back, which
is nothing when the peer has closed. It closes the connection at the end of its input.
"""

from __future__ import annotations

import socket
import sys

PATIENCE = 100.0  # seconds for connecting and for each answer


def main() -> None:
    address, port = sys.argv[1:]
    with socket.create_connection((address, int(port)), PATIENCE) as sock:
        print("ready", flush=True)
        for line in sys.stdin:
            sock.sendall(line.encode())
            print(sock.recv(100).decode(), end="", flush=True)


main()
