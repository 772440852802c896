"""What the TCP sockets of both sides have in common."""

from __future__ import annotations

import socket
import struct

# Dead peers are noticed after 60 + 4 * 15 seconds (tcp(7)); a guest may vanish without a word.
KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 4

# How far a peer nearby may send ahead of what has arrived, while bulk moves, in bytes. With a wider window
# packets overtake each other ten times as often, and cost more than waiting does
# (docs/performance-experiments.md).
NEAR_WINDOW = 512 * 1024

# Closing with this option set sends a reset instead of FIN (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


def set_options(sock: socket.SocketType, *, near: bool) -> None:
    """No delay, and keep-alive. Set on a listener it holds for what is accepted there.

    ``near``: the peer is on this host, or one bridge away, so there is no path to probe, and nothing to pace
    for. Then it is Reno, which every kernel has (tcp(7), TCP_CONGESTION); a host may have another default for
    its peers far away, such as BBR, whose timers halve what goes over a bridge. To be said before connecting.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    if near:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def bound_window(sock: socket.SocketType) -> None:
    """Advertise no more than NEAR_WINDOW (tcp(7), TCP_WINDOW_CLAMP); what waits to be read may be more."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, NEAR_WINDOW)


def on_this_host(address: str) -> bool:
    """Whether an IPv4 address is this host's own: the kernel then answers it from itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 1))  # sends nothing, and chooses the local address (udp(7))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address)


def reset_on_close(sock: socket.SocketType) -> None:
    """Make the close of this socket tell its peer that the stream was cut, not finished."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
