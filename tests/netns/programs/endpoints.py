"""Endpoints with one trait each, good and bad: ``python endpoints.py BEHAVIOUR [OPTIONS] ADDRESS PORT``.

It prints ``ready`` when it listens. With ``--tell`` it then prints a line for each connection that
ended: how (``eof``, ``closed``, or the error, such as ``ECONNRESET``), how many bytes had come, and
their SHA-256.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import select
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Iterator

from tproxy.proxy_protocol import START, length

BLOCK = 1 << 16

# SO_LINGER, on and zero seconds: close(2) sends a reset.
RESET = struct.pack("ii", 1, 0)


class Connection:
    """A connection that keeps count of what has come."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.count = 0
        self.sum = hashlib.sha256()
        self.end = "closed"

    def blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """What comes, until the peer has said all."""
        while block := self.socket.recv(size):
            self.count += len(block)
            self.sum.update(block)
            yield block
        self.end = "eof"

    def digest(self) -> str:
        return f"{self.count} {self.sum.hexdigest()}"


def echo(connection: Connection, _: argparse.Namespace) -> None:
    """Say again whatever comes, as it comes."""
    for block in connection.blocks():
        connection.socket.sendall(block)


def digest(connection: Connection, options: argparse.Namespace) -> None:
    """Listen to the end of what the peer has to say, then answer: needs half-close."""
    discard(connection, options)
    connection.socket.sendall(connection.digest().encode())


def farewell(connection: Connection, options: argparse.Namespace) -> None:
    """Say all, end this direction, then listen to the end: half-close the other way round."""
    source(connection, options)
    discard(connection, options)


def source(connection: Connection, options: argparse.Namespace) -> None:
    """Say ``--bytes`` bytes, whatever comes, and end this direction."""
    left = options.bytes
    while left > 0:
        left -= connection.socket.send(b"x" * min(left, BLOCK))
    connection.socket.shutdown(socket.SHUT_WR)


def discard(connection: Connection, _: argparse.Namespace) -> None:
    """Listen to the end, and say nothing."""
    for _block in connection.blocks():
        pass


def sink(_connection: Connection, _: argparse.Namespace) -> None:
    """Never read: what comes piles up on the way."""
    threading.Event().wait()


def reset(connection: Connection, options: argparse.Namespace) -> None:
    """Reset the connection after ``--bytes`` bytes have come."""
    while connection.count < options.bytes and next(connection.blocks(options.bytes), None):
        pass
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


BEHAVIOURS: dict[str, Callable[[Connection, argparse.Namespace], None]] = {
    each.__name__: each for each in (echo, digest, farewell, source, discard, sink, reset)
}


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        super().__init__((options.address, options.port), socketserver.BaseRequestHandler)

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]  # no UDP here
        connection = Connection(request)
        try:
            BEHAVIOURS[self.options.behaviour](connection, self.options)
        except OSError as error:
            connection.end = errno.errorcode.get(error.errno or 0, str(error))
        if self.options.tell:
            print(connection.end, connection.digest(), flush=True)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]  # no UDP here
        request.close()  # socketserver's would end our direction first, and there is no reset after that


def short(options: argparse.Namespace) -> None:
    """Answer each line with itself and close, for a storm of connections: one thread, no waiting."""
    listener = socket.create_server((options.address, options.port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    open_sockets: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                for sock in accepted(listener):
                    open_sockets[sock.fileno()] = sock
                    poll.register(sock, select.EPOLLIN)
                continue
            with open_sockets.pop(fd) as sock:
                line = without_header(sock) if options.introduced else sock.recv(BLOCK)
                if line and not line.endswith(b"\n"):
                    sys.exit(f"cut in pieces, which a line of some bytes never is: {line!r}")
                sock.sendall(line)


def without_header(sock: socket.socket) -> bytes:
    """Return the line behind a PROXY header."""
    data = sock.recv(BLOCK)
    while not data.endswith(b"\n") and (more := sock.recv(BLOCK)):
        data += more
    return data[START + length(data[:START]) :]


def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    try:
        while True:
            yield listener.accept()[0]
    except BlockingIOError:
        return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=[*BEHAVIOURS, "short"])
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--tell", action="store_true")
    parser.add_argument("--introduced", action="store_true", help="of short: PROXY headers come")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    if options.behaviour == "short":
        short(options)
    with Server(options) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
