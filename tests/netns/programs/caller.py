"""Programs of a guest, on one TCP connection: ``caller.py BEHAVIOUR ADDRESS PORT [ARGUMENT]...``.

Each function in BEHAVIOURS is a behaviour; its docstring says what it does and prints. If the connection is
reset before the program can use it, it prints ``ECONNRESET``.
"""

from __future__ import annotations

import errno
import itertools
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

CONNECT_TIMEOUT = 100.0  # seconds
PATIENCE = 100.0  # seconds for each answer
BLOCK = 1 << 16

# SO_LINGER, on and zero seconds: close(2) sends a reset.
RESET = struct.pack("ii", 1, 0)


def connect(address: str, port: str) -> socket.socket:
    sock = socket.create_connection((address, int(port)), CONNECT_TIMEOUT)
    sock.settimeout(PATIENCE)
    return sock


def outcome(sock: socket.socket, action: Callable[[], object]) -> str:
    """Return the bytes that come until the end of file, or the name of the error."""
    try:
        action()
        return b"".join(iter(lambda: sock.recv(BLOCK), b"")).decode()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def hear(sock: socket.socket) -> None:
    """Print all that comes, or the error."""
    print(outcome(sock, lambda: None))


def hear_on(sock: socket.socket) -> None:
    """Read what comes; at the end of file, keep the connection until killed."""
    while sock.recv(BLOCK):
        pass
    signal.pause()


def say(sock: socket.socket, text: str) -> None:
    """Send the text, then print all that comes, or the error."""
    print(outcome(sock, lambda: sock.sendall(text.encode())))


def say_and_end(sock: socket.socket, text: str, times: str = "1") -> None:
    """Send the text so many times, end this direction, then print all that comes, or the error."""

    def action() -> None:
        sock.sendall(text.encode() * int(times))
        sock.shutdown(socket.SHUT_WR)

    print(outcome(sock, action))


def say_later(sock: socket.socket, text: str) -> None:
    """Wait for a line of input, then do as ``say_and_end``."""
    sys.stdin.readline()
    say_and_end(sock, text)


def echo(sock: socket.socket) -> None:
    """Send 8 MB in pieces of many sizes while reading; print whether the same bytes come back."""
    data = random.randbytes(8_000_000)

    def send() -> None:
        rest = memoryview(data)
        while rest:
            size = random.choice([1, 100, 4096, 65536, 65537, 1_000_000])
            sock.sendall(rest[:size])
            rest = rest[size:]
        sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=send).start()
    print(b"".join(iter(lambda: sock.recv(BLOCK), b"")) == data)


def hear_then_say(sock: socket.socket, text: str, times: str) -> None:
    """Print how many bytes come until the end of file, then send the text so many times, and close."""
    print(sum(map(len, iter(lambda: sock.recv(BLOCK), b""))))
    time.sleep(0.3)  # time for a daemon that takes one end of file for the end of both directions
    sock.sendall(text.encode() * int(times))
    sock.close()


def reset(sock: socket.socket) -> None:
    """Exchange three bytes with an endpoint that echoes, then reset the connection."""
    sock.sendall(b"abc")
    sock.recv(3)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def close(sock: socket.socket) -> None:
    """Close at once."""
    sock.close()


def hold(sock: socket.socket) -> None:
    """Exchange a byte with an endpoint that echoes, print ``on``, and keep the connection until killed."""
    sock.sendall(b"x")
    sock.recv(1)
    print("on", flush=True)
    signal.pause()


def flood(sock: socket.socket, count: str) -> None:
    """Send on so many connections until all are full; print the bytes sent, and wait until killed."""
    address, port = sock.getpeername()
    total = 0
    socks = [sock, *(connect(address, port) for _ in range(int(count) - 1))]
    for each in socks:
        each.settimeout(1)
        try:
            while True:
                total += each.send(bytes(1 << 20))
        except TimeoutError:
            pass
    print(total, flush=True)
    signal.pause()


def upload(sock: socket.socket) -> None:
    """Send for ever; print ``on`` after each 256 MiB."""
    block = bytes(1 << 20)
    report(lambda: sock.send(block))


def download(sock: socket.socket) -> None:
    """Receive for ever; print ``on`` after each 256 MiB."""
    report(lambda: len(sock.recv(1 << 20)))


def report(move: Callable[[], int]) -> None:
    moved = 0
    for told in itertools.count(1 << 28, 1 << 28):
        while moved < told:
            moved += move()
        print("on", flush=True)


BEHAVIOURS: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (
        hear,
        hear_on,
        say,
        say_and_end,
        say_later,
        echo,
        hear_then_say,
        reset,
        close,
        hold,
        flood,
        upload,
        download,
    )
}


def main() -> None:
    behaviour, address, port, *arguments = sys.argv[1:]
    try:
        sock = connect(address, port)
    except ConnectionResetError:
        # The reset came before connect(2) returned: the connection was there, and ended.
        print("ECONNRESET")
        return
    BEHAVIOURS[behaviour](sock, *arguments)


main()
