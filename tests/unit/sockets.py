"""Real sockets, and a loop that stops on a condition, for tests of the data path."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.kernel.loop import Loop

# Seconds after which a test that hangs fails.
PATIENCE = 100.0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of TCP sockets over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


def reset(sock: socket.socket) -> None:
    """Close so that the peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


def run_until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Run the loop until the condition holds, which is checked between batches of events."""
    end = time.monotonic() + PATIENCE

    def look() -> None:
        if condition():
            loop.stop()
        else:
            assert time.monotonic() < end, "waited in vain"
            loop.call_later(0.0005, look)

    loop.call_later(0, look)
    loop.run()


def noise(size: int) -> bytes:
    """Return bytes in which a lost, repeated or moved block is noticed."""
    return random.Random(size).randbytes(size)


def descriptors() -> set[str]:
    """Return the open descriptors of this process, without that of the listing itself."""
    return {f"{fd}: {target}" for fd in os.listdir("/proc/self/fd") if (target := _target(fd))}


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def copies(fd: int) -> int:
    """How many descriptors of this process are of this open file. Whatever runs the tests may have others."""
    status = os.fstat(fd)
    count = 0
    for each in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the listing's own is closed by now
            count += os.path.samestat(os.fstat(each), status)
    return count
