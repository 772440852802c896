"""Programs that run inside a stand-in hypervisor: ``python -m tproxy.lab.inside PROGRAM ARGUMENT...``."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any

from tproxy import proxy_protocol
from tproxy.errors import ProcessError
from tproxy.lab import asking

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8  # <sys/mount.h>

# The file systems that the stand-in does not share with this machine. /proc and /sys show the processes and
# links of the namespaces in which they are mounted.
_MOUNTS = (
    ("proc", "/proc", None),
    ("sysfs", "/sys", None),
    ("tmpfs", "/run", b"mode=755"),
    ("tmpfs", "/var/log", b"mode=755"),
)

_GREETING = b"who am I?"  # what a guest sends by UDP


def init() -> None:
    """Run process 1: mount the stand-in's own file systems, then wait for the end of the owner."""
    pid = os.readlink("/proc/self")  # the pid in the process namespace of this /proc, which is the owner's
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where, options in _MOUNTS:
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        if libc.mount(kind.encode(), where.encode(), kind.encode(), flags, options) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), where)
    socket.sethostname("hypervisor")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps orphans, sigaction(2)
    print("ready", pid, flush=True)
    while sys.stdin.readline():
        signal.pause()


def answer(address: str, port: str, body: str) -> None:
    """Run a small HTTP server."""
    _serve(address, port, lambda _: body)


def introduced(address: str, port: str) -> None:
    """Run a small HTTP server that gets headers of the PROXY protocol, and answers with what they say."""
    _serve(address, port, _caller)


def datagrams(address: str, port: str) -> None:
    """Answer datagrams with what the header of the PROXY protocol before each of them says."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            data, source = sock.recvfrom(65536)
            if data:  # a worker checks with empty ones whether anybody refuses them
                sock.sendto(_said(data[: len(data) - len(_GREETING)]).encode(), source)


def _caller(stream: BufferedIOBase) -> str:
    start = stream.read(proxy_protocol.START)
    return _said(start + stream.read(proxy_protocol.length(start)))


def _said(header: bytes) -> str:
    """What a header says of a guest."""
    values = proxy_protocol.decode(header).values
    kinds = proxy_protocol.OF_NETWORK, proxy_protocol.OF_MAC, proxy_protocol.OF_PORT
    network, mac, port = (values.get(each, "unknown") for each in kinds)
    return f"network {network}, MAC {mac}, port {port}"


def _serve(address: str, port: str, body: Callable[[BufferedIOBase], str]) -> None:
    """Answer each request with a body, which can read what stands before the request."""
    import socketserver

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            said = body(self.rfile).encode()
            while self.rfile.readline().strip():
                pass
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n"
            self.wfile.write(head.encode() + said)

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore the error: a client may reset, and nobody reads our output."""

    where: Any = socket.getaddrinfo(address, port)[0][4]  # with the link's number
    with Server(where, Answer) as server:
        print("ready", flush=True)
        server.serve_forever()


def ask(address: str, port: str, timeout: str) -> None:
    """Run a small HTTP client: print the body on stdout, or the reason of a failure on stderr."""
    try:
        body = asking.ask(address, int(port), float(timeout))
    except ProcessError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(body)


def write(address: str, port: str, timeout: str) -> None:
    """Send a datagram, and print the answer on stdout, or the reason of a failure on stderr."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(float(timeout))
        try:
            sock.connect((address, int(port)))
            sock.send(_GREETING)
            print(sock.recv(65536).decode(), end="")
        except OSError as error:
            sys.exit(errno.errorcode.get(error.errno or 0, "ETIMEDOUT"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["init"]:
            init()
        case ["answer", address, port, body]:
            answer(address, port, body)
        case ["introduced", address, port]:
            introduced(address, port)
        case ["ask", address, port, timeout]:
            ask(address, port, timeout)
        case ["datagrams", address, port]:
            datagrams(address, port)
        case ["write", address, port, timeout]:
            write(address, port, timeout)
