"""Holds a connection to a port of 127.0.0.1 behind which an endpoint echoes.

A line on the input sends a byte.

Argument: the port. Prints ``ready`` when the first byte has come back, and ``served`` for each other one.
"""

from __future__ import annotations

import socket
import sys


def exchange(held: socket.socket, byte: bytes) -> None:
    """Send a byte, and read until it comes back."""
    held.sendall(byte)
    while not (data := held.recv(1000)).endswith(byte):
        if not data:
            raise ConnectionResetError("the connection has ended")


def main(port: str) -> None:
    with socket.create_connection(("127.0.0.1", int(port))) as held:
        exchange(held, b"x")
        print("ready", flush=True)
        for _ in sys.stdin:
            exchange(held, b"y")
            print("served", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
