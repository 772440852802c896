"""Asks a server at a UNIX socket, whose path may be longer than an address can be (unix(7))."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GET = "GET /metrics HTTP/1.1\r\nHost: tproxy\r\n\r\n"


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        yield sock


def ask(path: Path, request: str = GET) -> str:
    """Return the whole answer to a request."""
    with connected(path) as sock:
        sock.sendall(request.encode())
        return b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()


def get(path: Path) -> str:
    """Return the page."""
    head, _, body = ask(path).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 "), head
    return body
