"""Move many bytes over one TCP connection: ``bulk.py upload|download ADDRESS PORT [BLOCKS]``.

``upload`` sends BLOCKS blocks of 64 KiB (all bytes, 256 times each), ends this direction, and prints
what comes back. ``download`` ends this direction, and prints how many bytes come.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

PATIENCE = 100.0  # seconds for each step: under emulation, over a line that loses packets
BLOCK = bytes(range(256)) * 256


def received(sock: socket.socket) -> Iterator[bytes]:
    return iter(lambda: sock.recv(1 << 16), b"")


def main() -> None:
    action, address, port, *blocks = sys.argv[1:]
    with socket.create_connection((address, int(port)), PATIENCE) as sock:
        if action == "upload":
            for _ in range(int(blocks[0])):
                sock.sendall(BLOCK)
            sock.shutdown(socket.SHUT_WR)
            print(b"".join(received(sock)).decode())
        else:
            sock.shutdown(socket.SHUT_WR)
            print(sum(map(len, received(sock))))


main()
