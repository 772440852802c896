"""What one guest may have at the mirror's own port."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.egress.python_index import Index
from tests.egress.running import GUEST, LOOPBACK, Running, relay, running
from tests.egress.upstream import Site
from tests.netns.waiting import eventually
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.policy.rules import Limits

INDEX = b"GET /pypi/simple/demo/ HTTP/1.1\r\nHost: x\r\n\r\n"
FILE = b"GET /pypi/files/demo/demo-1.0-py3-none-any.whl HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OTHER = replace(GUEST, port="vnet2-0")  # behind another bridge port, with the same address and MAC


@pytest.fixture
def mirror(tmp_path: Path, upstream: Site) -> Iterator[Running]:
    index = Index(upstream)
    index.add("demo", "1.0", size=1_500_000)
    with running(Settings(tmp_path / "store", pypi=index.url, inner=LOOPBACK)) as found:
        yield found


def ask(peer: socket.socket, request: bytes = INDEX) -> bytes:
    peer.sendall(request)
    return peer.recv(1 << 16)


def test_a_guest_has_as_many_connections_as_it_may_whatever_its_address(mirror: Running) -> None:
    mirror.limits = Limits(connections=2)
    with relay(mirror.guests, GUEST) as port, relay(mirror.guests, OTHER) as other:
        first, second, third = (socket.create_connection(("127.0.0.1", port)) for _ in range(3))
        with first, second, third:
            assert ask(first).startswith(b"HTTP/1.1 200 ")
            assert ask(second).startswith(b"HTTP/1.1 200 ")
            assert third.recv(100).startswith(b"HTTP/1.1 429 ")
            with socket.create_connection(("127.0.0.1", other)) as neighbour:
                assert ask(neighbour).startswith(b"HTTP/1.1 200 ")
        for _ in eventually():  # the ends of the first two have to get there
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as again:
                if ask(again).startswith(b"HTTP/1.1 200 "):
                    break


def test_a_guest_gets_what_is_in_the_store_as_fast_as_it_may(mirror: Running) -> None:
    with relay(mirror.guests, GUEST) as port:
        for limits in (Limits(), Limits(bytes_per_second=500_000)):  # the first time it comes from the site
            mirror.limits, started, size = limits, time.monotonic(), 0
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(FILE)
                while data := peer.recv(1 << 16):
                    size += len(data)
            took = time.monotonic() - started
            assert size > 1_500_000
    assert took > 1.5  # a slow machine makes it longer, never shorter; the socket holds the last bytes
