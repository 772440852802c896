"""What a process that was taken over could send: any message, and any descriptors beside it."""

from __future__ import annotations

import gc
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress

from hypothesis import strategies as st

from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import send_bytes

PORTS = st.integers(0, 65535)
KEYS = st.one_of(PORTS.map(ServiceKey), PORTS.map(lambda port: ServiceKey(port, "udp", "fd00::1")))
NUMBERS = st.one_of(st.integers(0, 3), st.integers(0, 0xFFFFFFFF))
TEXTS = st.one_of(
    st.text(max_size=50), st.just("fine\n2026-11-29T00:00:00 1 ERROR forged\x1b[31m"), st.just("x" * 9999)
)

# Born is left out of most: the daemon hears of it before the process is anybody's but ours.
MESSAGES: st.SearchStrategy[wire.Message] = st.one_of(
    st.builds(wire.Hello, st.integers(0, 3), NUMBERS),
    st.builds(wire.Born, NUMBERS),
    st.just(wire.Workers()),
    st.just(wire.LogFile()),
    st.builds(wire.Listen, NUMBERS, st.integers(0, 255), st.lists(KEYS, max_size=5).map(tuple)),
    st.builds(wire.Report, NUMBERS, st.dictionaries(KEYS, st.integers(0, 65535), max_size=5)),
    st.builds(wire.Behind, PORTS),
    st.builds(wire.Accepted, KEYS),
    st.builds(wire.Failed, TEXTS),
    st.just(wire.Quit()),
    st.just(wire.Adopt()),
    st.just(wire.Adopted()),
    st.just(wire.Takeover()),
    st.builds(wire.Listeners, st.lists(KEYS, max_size=5).map(tuple)),
)

PAYLOADS = st.one_of(
    MESSAGES.map(wire.encode),
    st.binary(max_size=60),
    st.tuples(MESSAGES.map(wire.encode), st.integers(0, 40)).map(lambda each: each[0][: each[1]]),  # partial
    st.tuples(MESSAGES.map(wire.encode), st.binary(max_size=9)).map(lambda each: each[0] + each[1]),
    st.sampled_from([b"R", b"L", b"S", b"U", b"C", b"H"]).map(
        lambda kind: kind.ljust(wire.MAX_BYTES + 9, b"\0")
    ),
)


def _unbound(family: int, kind: int) -> Callable[[], list[int]]:
    return lambda: [socket.socket(family, kind).detach()]


def _listening() -> list[int]:
    return [socket.create_server(("127.0.0.1", 0)).detach()]


def _connected() -> list[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return [one.detach(), other.detach()]


def _pair(kind: int) -> Callable[[], list[int]]:
    return lambda: [each.detach() for each in socket.socketpair(socket.AF_UNIX, kind)]


def _epoll() -> list[int]:
    poll = select.epoll()
    copy = os.dup(poll.fileno())
    poll.close()
    return [copy]


DESCRIPTORS: dict[str, Callable[[], list[int]]] = {
    "TCP": _unbound(socket.AF_INET, socket.SOCK_STREAM),
    "TCP that listens": _listening,
    "TCP that is connected": _connected,
    "UDP": _unbound(socket.AF_INET, socket.SOCK_DGRAM),
    "UNIX": _unbound(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    "UNIX stream pair": _pair(socket.SOCK_STREAM),
    "UNIX datagram pair": _pair(socket.SOCK_DGRAM),
    "UNIX message pair": _pair(socket.SOCK_SEQPACKET),
    "pipe": lambda: list(os.pipe()),
    "file": lambda: [os.open(__file__, os.O_RDONLY)],
    "memory": lambda: [os.memfd_create("hostile")],
    "epoll": _epoll,
    "this process": lambda: [os.pidfd_open(os.getpid())],
    "namespace": lambda: [os.open("/proc/self/ns/net", os.O_RDONLY)],
}

KINDS = st.lists(st.sampled_from(sorted(DESCRIPTORS)), max_size=4)


def send_hostile(channel: socket.socket, payload: bytes, kinds: list[str]) -> None:
    """Send one message with descriptors of these kinds, of which this process keeps none."""
    fds = [fd for kind in kinds for fd in DESCRIPTORS[kind]()]
    try:
        with suppress(OSError):  # the other end has closed the channel, or is behind
            send_bytes(channel, payload, fds)
    finally:
        for fd in fds:
            os.close(fd)


def open_descriptors() -> int:
    """Return how many descriptors this process has, without those that other tests have left as garbage."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
