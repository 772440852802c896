"""Sends ``hello`` to a port of 127.0.0.1, and prints its own port and what comes back, in hexadecimal."""

from __future__ import annotations

import socket
import sys


def main(port: str) -> None:
    data = b""
    with socket.create_connection(("127.0.0.1", int(port))) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        while part := sock.recv(1000):
            data += part
        print(sock.getsockname()[1], data.hex())


if __name__ == "__main__":
    main(*sys.argv[1:])
