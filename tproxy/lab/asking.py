"""A small HTTP client: one question, and the body of the answer."""

from __future__ import annotations

import errno
import socket

from tproxy.errors import ProcessError


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
