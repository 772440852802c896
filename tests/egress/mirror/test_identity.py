"""Who is believed on the guests' port, and what a hostile guest's requests get there."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress.python_index import Index
from tests.egress.running import GUEST, LOOPBACK, Running, relay, running
from tests.egress.upstream import Site
from tproxy import proxy_protocol
from tproxy.egress.mirror.settings import Settings

HEADER = proxy_protocol.encode((GUEST.address, 40000), ("169.254.16.9", 80), GUEST.values)
REQUEST = b"GET /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def mirror(tmp_path: Path, upstream: Site) -> Iterator[Running]:
    index = Index(upstream)
    index.add("demo", "1.0")
    with running(Settings(tmp_path / "store", pypi=index.url, inner=LOOPBACK)) as found:
        yield found


def ask(port: int, *parts: bytes) -> bytes:
    """Send bytes, part by part, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        try:
            for part in parts:
                client.sendall(part)
            while data := client.recv(1 << 16):
                answer += data
        except ConnectionError:
            pass
        return answer


def test_a_header_that_arrives_byte_by_byte_is_read(mirror: Running) -> None:
    pieces = [bytes([byte]) for byte in HEADER + REQUEST]
    assert ask(mirror.guests, *pieces).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "start",
    [b"", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", HEADER[:12] + b"\xff" + HEADER[13:], HEADER[:-3]],
    ids=["none", "version 1", "unknown version", "cut off"],
)
def test_connections_that_begin_otherwise_get_no_answer(mirror: Running, start: bytes) -> None:
    assert b"200" not in ask(mirror.guests, start + REQUEST)[:20]


AS_NOBODY = """
import socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); answer = b""
try:
    client.sendall(bytes.fromhex(sys.argv[2]))
    while data := client.recv(65536): answer += data
except ConnectionError: pass
print(len(answer))
"""


def test_a_header_of_another_user_of_this_host_is_not_believed(mirror: Running) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    program = ["/usr/bin/python3", "-c", AS_NOBODY, str(mirror.guests), (HEADER + REQUEST).hex()]
    done = subprocess.run([*nobody, *program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    done = subprocess.run([sys.executable, *program[1:]], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /pypi/simple/demo/ HTTP/1.1\r\n\r\n",
        b"GET /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\n Folded: y\r\n\r\n",
        b"GET /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /pypi/simple/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT inner:443 HTTP/1.1\r\nHost: inner:443\r\n\r\n",
        b"POST /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["two hosts", "no host", "two lengths", "folded", "huge header", "dots", "CONNECT", "POST"],
)
def test_odd_requests_get_an_error(mirror: Running, request_: bytes) -> None:
    with relay(mirror.guests, GUEST) as port:
        answer = ask(port, request_.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    assert not answer.startswith(b"HTTP/1.1 2")
