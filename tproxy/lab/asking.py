"""A small HTTP client, which can ask from any network namespace."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tproxy.errors import ProcessError

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>


def ask(address: str, port: int, timeout: float) -> bytes:
    """Return the body of an HTTP answer. Raises ProcessError with the reason, such as ECONNREFUSED."""
    try:
        with socket.create_connection((address, port), timeout) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        raise ProcessError(errno.errorcode.get(error.errno or 0, "ETIMEDOUT")) from None
    _, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        raise ProcessError("closed without an answer")
    return body


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """Run the body in a network namespace, on this thread, and return to the former one."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(os.open(namespace, os.O_RDONLY | os.O_CLOEXEC))
        try:
            yield
        finally:
            _enter(os.dup(home))
    finally:
        os.close(home)


def _enter(fd: int) -> None:
    """Enter the namespace of a descriptor, and close that."""
    libc = ctypes.CDLL(None, use_errno=True)  # Python has os.setns only from 3.12 on
    failed = libc.setns(fd, _CLONE_NEWNET) != 0
    os.close(fd)
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
