"""Options of TCP sockets, for the guests' side and the endpoints' side."""

from __future__ import annotations

import socket
import struct

from tproxy.model import DEFAULT_USER_TIMEOUT

# Seconds, seconds, and a number: a dead peer is noticed after 60 + 4 * 15 seconds (tcp(7)). A guest that is
# switched off sends no FIN.
KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 4

# How much a peer nearby may send ahead of what has arrived, in bytes. With a wider window, bulk data arrives
# out of order ten times as often, which costs more than waiting does
# (docs/performance-experiments.md).
NEAR_WINDOW = 512 * 1024

# Closing with this option set sends a reset instead of FIN (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)
_LINGER = struct.pack("ii", 0, 0)


def set_options(sock: socket.SocketType, *, near: bool) -> None:
    """Set no-delay, keep-alive and the user timeout. On a listener, what it accepts inherits them.

    ``near`` says that the peer is on this host or one bridge away, and selects Reno, which every kernel has
    (tcp(7), TCP_CONGESTION). Such a path needs neither probing nor pacing. The host's default may be meant
    for distant peers: BBR halves the throughput over a bridge with its timers. Call this before connecting.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    set_user_timeout(sock, DEFAULT_USER_TIMEOUT)
    if near:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def set_user_timeout(sock: socket.SocketType, seconds: int) -> None:
    """Give the peer up after so many seconds without an acknowledgement (tcp(7), TCP_USER_TIMEOUT).

    From Linux 5.11 on this bounds the time that the peer's window may be closed too. 0: as the kernel does.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


def bound_window(sock: socket.SocketType) -> None:
    """Advertise at most NEAR_WINDOW (tcp(7), TCP_WINDOW_CLAMP). The receive buffer may hold more."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, NEAR_WINDOW)


def family(address: str) -> int:
    """Return the address family of an IP address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def dialling_socket(address: str) -> socket.SocketType:
    """Return a socket that can dial an IP address, and never blocks. Raises OSError."""
    return socket.SocketType(family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def on_this_host(address: str) -> bool:
    """Whether an IP address is this host's own: then the kernel chooses it as the source address too."""
    try:
        probe = socket.socket(family(address), socket.SOCK_DGRAM)
    except OSError:  # the kernel has no IPv6
        return False
    with probe:
        try:
            probe.connect((address, 1))  # sends nothing, but chooses the source address (udp(7))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address)


def reset_on_close(sock: socket.SocketType) -> None:
    """Make closing this socket send a reset, which tells the peer that the stream was cut off."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def linger_on_close(sock: socket.SocketType) -> None:
    """Make closing this socket send what is left, and then FIN, in the background (the default)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
