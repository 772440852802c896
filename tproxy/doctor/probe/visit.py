"""One visit of a guest to a service port: it connects, ends its direction, and waits for the other end.

Nothing is sent. The end of the guest's direction reaches the endpoint once that was dialled, and most end
theirs then: that proves the whole way. One that goes on and waits for more proves nothing, so the counters of
the workers have to tell.

A UDP service gets one datagram without content, which DNS, NTP and syslog servers ignore. Only a refusal, and
the counters of the workers, tell something of it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from typing import NamedTuple

from tproxy.kernel import tcp

CONNECT = 3.0  # seconds: the second SYN comes after one, the third would after three
REFUSAL = 1.0  # seconds in which a datagram is refused, if it is
QUIET = 2.0  # seconds in which an endpoint that was dialled and ends its direction has done so


class Visit(NamedTuple):
    """``refusal``: why there was no connection. ``end``: "ended", "reset", "data" or "quiet"."""

    refusal: str
    connecting: float  # seconds
    end: str = ""
    ending: float = 0.0  # seconds since there was a connection


def at(address: str, port: int, link: str) -> tuple[str, int] | tuple[str, int, int, int]:
    """What connect(2) gets for a port; an IPv6 address is one of this ``link``."""
    return (address, port, 0, socket.if_nametoindex(link)) if ":" in address else (address, port)


def pay(address: str, port: int, link: str, patience: float) -> Visit:
    """Visit a service port from this thread's namespace. ``patience``: seconds for dialling the endpoint."""
    began = time.monotonic()
    with socket.socket(tcp.family(address), socket.SOCK_STREAM) as sock:
        tcp.reset_on_close(sock)  # nobody has to keep a connection of which nothing more comes
        sock.settimeout(CONNECT)
        try:
            sock.connect(at(address, port, link))
        except OSError as error:
            return Visit(_words(error), time.monotonic() - began)
        connected = time.monotonic()
        sock.settimeout(patience + QUIET)
        end = "quiet"
        with suppress(TimeoutError):
            try:
                sock.shutdown(socket.SHUT_WR)
                end = "data" if sock.recv(1) else "ended"
            except (ConnectionResetError, BrokenPipeError):
                end = "reset"
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                    raise
                end = "reset"
        return Visit("", connected - began, end, time.monotonic() - connected)


def write(address: str, port: int, link: str) -> Visit:
    """Send a datagram without content to a service port; the end is "refused", "data" or "quiet"."""
    began = time.monotonic()
    with socket.socket(tcp.family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(REFUSAL)
        end = "quiet"
        with suppress(TimeoutError):
            try:
                sock.connect(at(address, port, link))
                sock.send(b"")
                sock.recv(1)
                end = "data"
            except ConnectionRefusedError:
                end = "refused"
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                return Visit(_words(error), time.monotonic() - began)
    return Visit("", 0.0, end, time.monotonic() - began)


def _words(error: OSError) -> str:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return f"no answer within {CONNECT:g} s"
    return os.strerror(error.errno or 0)
