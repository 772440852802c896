"""What the TCP sockets of both sides have in common."""

from __future__ import annotations

import socket
import struct

# Dead peers are noticed after 60 + 4 * 15 seconds (tcp(7)); a guest may vanish without a word.
KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 4

# Closing with this option set sends a reset instead of FIN (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


def set_options(sock: socket.SocketType) -> None:
    """No delay, and keep-alive. Set on a listener it holds for what is accepted there."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def reset_on_close(sock: socket.SocketType) -> None:
    """Make the close of this socket tell its peer that the stream was cut, not finished."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
