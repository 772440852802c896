"""Streams as a gateway sends them to ``in.sock`` of a stand-in, and a host with a route."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from tests.netns.conftest import ENDPOINTS
from tests.netns.waiting import eventually
from tproxy import proxy_protocol
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor
from tproxy.proxy_protocol import UNIQUE_ID

CLIENT = ("198.51.100.7", 40000)
GATEWAY = ("203.0.113.1", 443)
GATEWAY_IPV6 = ("2001:db8::1", 443)


def in_sock(host: Hypervisor) -> str:
    """Return the path of the host's in.sock, once it is there."""
    inode = os.stat(f"/proc/{host.pid}/ns/net").st_ino
    path = host.path(f"/run/tproxy-in/{inode}/in.sock")
    for _ in eventually():
        if path.exists():
            break
    return str(path)


def header(route: str, client: tuple[str, int] = CLIENT) -> bytes:
    gateway = GATEWAY_IPV6 if ":" in client[0] else GATEWAY
    return proxy_protocol.encode(client, gateway, {UNIQUE_ID: route})


def connect(
    host: Hypervisor, route: str, first: bytes = b"", client: tuple[str, int] = CLIENT
) -> socket.socket:
    """Begin a stream for a route, with these first bytes."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PATIENCE)
    stream.connect(in_sock(host))
    stream.sendall(header(route, client) + first)
    return stream


def ask(host: Hypervisor, route: str, client: tuple[str, int] = CLIENT) -> str:
    """Ask the guest's server for a page; return the answer's body, "" if there is none, or "reset"."""
    with connect(host, route, b"GET / HTTP/1.0\r\n\r\n", client) as stream:
        return everything(stream).partition(b"\r\n\r\n")[2].decode()


def everything(stream: socket.socket) -> bytes:
    """Read until the end of file; a reset ends it too."""
    data = b""
    with suppress(ConnectionResetError):
        while part := stream.recv(65536):
            data += part
    return data


def start(guest: Guest, behaviour: str, port: int) -> None:
    """Have one of programs/endpoints.py serve in a guest."""
    guest.hypervisor.serve(
        sys.executable, str(ENDPOINTS), behaviour, guest.address, str(port), netns=guest.name
    )


def log(host: Hypervisor) -> str:
    return host.path("/var/log/one_tproxy.log").read_text()


def await_in_log(host: Hypervisor, text: str) -> None:
    for _ in eventually():
        if text in log(host):
            return
