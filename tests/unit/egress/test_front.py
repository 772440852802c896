"""The server name is read from real ClientHellos, and nothing else passes for one."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.egress import front
from tproxy.errors import ProtocolError


def client_hello(name: str | None) -> bytes:
    context = ssl._create_unverified_context()
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_the_server_name_of_a_real_client_is_read() -> None:
    assert front.server_name(client_hello("PyPI.org")) == "pypi.org"


def test_a_hello_that_comes_in_parts_is_waited_for() -> None:
    hello = client_hello("pypi.org")
    for end in range(len(hello)):
        with pytest.raises(front.Incomplete):
            front.server_name(hello[:end])


def test_a_hello_that_is_split_into_records_is_put_together() -> None:
    hello = client_hello("pypi.org")
    body = hello[5:]
    records = b"".join(
        hello[:3] + len(part).to_bytes(2, "big") + part for part in (body[:1], body[1:60], body[60:])
    )
    assert front.server_name(records) == "pypi.org"


def test_a_client_without_a_server_name_is_refused() -> None:
    with pytest.raises(ProtocolError):
        front.server_name(client_hello(None))


@pytest.mark.parametrize("name", ["pypi.org\r\n", "pypi.org ", "a/b", "127.0.0.1", "pypi.org:22"])
def test_a_server_name_that_is_no_host_name_is_refused(name: str) -> None:
    hello = client_hello("x" * len(name) if "." not in name else "y" * (len(name) - 2) + ".z")
    at = hello.index(b"xx" if b"xx" in hello else b"yy")
    with pytest.raises(ProtocolError):
        front.server_name(hello[:at] + name.encode() + hello[at + len(name) :])


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_make_it_fail_in_another_way(noise: bytes, at: int) -> None:
    hello = client_hello("pypi.org")
    for data in (noise, b"\x16\x03\x01" + noise, hello[:at] + noise + hello[at + len(noise) :]):
        with contextlib.suppress(ProtocolError, front.Incomplete):
            front.server_name(data)
