"""Options of TCP sockets, for the guests' side and the endpoints' side."""

from __future__ import annotations

import socket
import struct

from tproxy.addresses import is_address
from tproxy.model import DEFAULT_USER_TIMEOUT
from tproxy.typed import NamedTuple

# Seconds, seconds, and a number: a dead peer is noticed after 60 + 4 * 15 seconds (tcp(7)). A guest that is
# switched off sends no FIN.
KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 4

# How much a peer nearby may send ahead of what has arrived, in bytes. With a wider window, bulk data arrives
# out of order ten times as often, which costs more than waiting does
# (docs/performance-experiments.md).
NEAR_WINDOW = 512 * 1024

# <linux/tcp.h>; Python does not name them. With this value the kernel keeps the Ethernet header too, from
# Linux 5.10 on.
_SAVE_SYN, _SAVED_SYN = 27, 28
_WITH_ETHERNET = 2

# Bytes of the longest SYN: Ethernet, IPv4 and TCP with all options.
_LONGEST_SYN = 14 + 60 + 60

_IP_VERSIONS = {b"\x08\x00": 4, b"\x86\xdd": 6}  # by the protocol of a frame

# struct tcp_info, <linux/tcp.h>: tcpi_rtt and tcpi_total_retrans
_INFO = struct.Struct("=68xI28xI")

# How many bytes that were not sent yet wait in a socket, at most: then it is not writable any more, whatever
# the kernel's tuning lets the buffer grow to. A peer that does not read costs 0.1 MB instead of 2.6 MB of a
# host's memory for TCP, and bulk is as fast (docs/performance-experiments.md).
UNSENT = 128 * 1024

# Closing with this option set sends a reset instead of FIN (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)
_LINGER = struct.pack("ii", 0, 0)


def set_options(sock: socket.SocketType, *, near: bool) -> None:
    """Set no-delay, UNSENT, and by ``near`` the congestion control. Call this before connecting.

    ``near`` says that the peer is on this host or one bridge away, and selects Reno, which every kernel has
    (tcp(7), TCP_CONGESTION). Such a path needs neither probing nor pacing. The host's default may be meant
    for distant peers: BBR halves the throughput over a bridge with its timers. On a listener, what it accepts
    inherits all of them.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    if near:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def watch_peer(sock: socket.SocketType, user_timeout: int = DEFAULT_USER_TIMEOUT) -> None:
    """Have the kernel notice a peer that has vanished: by keep-alive, and by ``user_timeout`` in seconds.

    On a listener, what it accepts inherits that.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    set_user_timeout(sock, user_timeout)


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
    """Whether an IP address is this host's own: then the kernel chooses it as the source address too.

    A UNIX socket has none.
    """
    if not is_address(address):
        return False
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


def listens(sock: socket.SocketType) -> bool:
    """Whether connections can be accepted from this socket. Raises OSError."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def reset_on_close(sock: socket.SocketType) -> None:
    """Make closing this socket send a reset, which tells the peer that the stream was cut off."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def linger_on_close(sock: socket.SocketType) -> None:
    """Make closing this socket send what is left, and then FIN, in the background (the default)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)


def save_syn(listener: socket.socket, *, wanted: bool) -> None:
    """Say whether the SYN of each connection is kept until it is read (``caller_mac``). Raises OSError."""
    listener.setsockopt(socket.IPPROTO_TCP, _SAVE_SYN, _WITH_ETHERNET if wanted else 0)


def caller_mac(sock: socket.SocketType) -> str:
    """Return the MAC address from which the SYN of an accepted connection came; "" where it was not kept.

    It is kept if the listener was told so (``save_syn``), except under SYN cookies. It can be read once.
    """
    try:
        syn = sock.getsockopt(socket.IPPROTO_TCP, _SAVED_SYN, _LONGEST_SYN)
    except OSError:
        return ""
    # Destination, source, protocol; then the first byte of an IP header. Else it begins with that header.
    if len(syn) < 34 or _IP_VERSIONS.get(syn[12:14]) != syn[14] >> 4 or not any(syn[6:12]):
        return ""
    return syn[6:12].hex(":")


class RoundTrip(NamedTuple):
    """What the kernel knows of the way to a peer and back.

    ``microseconds`` is the smoothed time of a round trip, None before the first was measured. ``repeated`` is
    how many packets had to be sent again. Both are None for a UNIX socket.
    """

    microseconds: int | None
    repeated: int | None


def round_trip(sock: socket.SocketType) -> RoundTrip:
    """Return what the kernel knows of a socket's connection (tcp(7), TCP_INFO)."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return RoundTrip(None, None)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    microseconds, repeated = _INFO.unpack(info.ljust(_INFO.size, b"\0"))
    return RoundTrip(microseconds or None, repeated)
