"""PROXY protocol, version 2: what the specification's bytes mean, and that no input does harm."""

from __future__ import annotations

import socket
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tproxy import proxy_protocol
from tproxy.errors import ProtocolError
from tproxy.proxy_protocol import DATAGRAM, OF_MAC, OF_NETWORK, START, UNIQUE_ID, Header, decode, encode

GUEST, SERVICE = ("10.0.0.5", 40000), ("169.254.16.9", 5030)

# Written by hand from section 2.2 of the specification.
BYTES = (
    b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"  # signature
    b"\x21\x11\x00\x12"  # version 2, PROXY; AF_INET, STREAM; 18 bytes follow
    b"\x0a\x00\x00\x05\xa9\xfe\x10\x09\x9c\x40\x13\xa6"
    b"\xe0\x00\x03\x64\x6d\x7a"
)


def pairs(family: int, size: int) -> some.SearchStrategy[tuple[str, str]]:
    """Two addresses as the kernel writes them: ::ffff:10.0.0.5, and not ::ffff:a00:5."""
    address = some.binary(min_size=size, max_size=size).map(partial(socket.inet_ntop, family))
    return some.tuples(address, address)


addresses = pairs(socket.AF_INET, 4) | pairs(socket.AF_INET6, 16)
ports = some.integers(0, 65535)
# Lengths far below MOST in sum.
values = some.dictionaries(some.integers(0xE0, 0xEF), some.text(min_size=1, max_size=20), max_size=10)


def test_a_header_has_the_bytes_of_the_specification() -> None:
    assert encode(GUEST, SERVICE, {OF_NETWORK: "dmz"}) == BYTES


def test_what_is_unknown_is_left_out() -> None:
    assert encode(GUEST, SERVICE, {OF_NETWORK: "dmz", OF_MAC: ""}) == BYTES


def test_a_datagram_says_so() -> None:
    assert encode(GUEST, SERVICE, {}, DATAGRAM)[13] == 0x12


@given(addresses, ports, ports, values)
def test_what_was_encoded_is_decoded(
    pair: tuple[str, str], source: int, destination: int, values: dict[int, str]
) -> None:
    header = Header((pair[0], source), (pair[1], destination), values)
    data = encode(header.source or GUEST, header.destination or SERVICE, values)
    assert decode(data) == header
    assert START + proxy_protocol.length(data[:START]) == len(data)


@pytest.mark.parametrize(
    "command", [b"\x20\x00\x00\x00", b"\x20\x11\x00\x0c" + bytes(12), b"\x21\x00\x00\x00"]
)
def test_a_sender_that_speaks_for_itself_names_nobody(command: bytes) -> None:
    """A load balancer's health check, for one."""
    assert decode(BYTES[:12] + command) == Header(None, None, {})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", id="no header"),
        pytest.param(BYTES[:12] + b"\x11\x11\x00\x00", id="version 1"),
        pytest.param(BYTES[:12] + b"\x22\x11\x00\x00", id="unknown command"),
        pytest.param(BYTES[:12] + b"\x21\x31\x00\x00", id="UNIX sockets"),
        pytest.param(BYTES[:12] + b"\x21\x11\x00\x04" + bytes(4), id="no room for addresses"),
        pytest.param(BYTES[:-1], id="cut off"),
        pytest.param(BYTES + b"x", id="too long"),
        pytest.param(BYTES[:14] + b"\x00\x0e" + BYTES[16:28] + b"\xe0\x00", id="value without a length"),
        pytest.param(BYTES[:14] + b"\x00\x0f" + BYTES[16:28] + b"\xe0\x00\x01", id="value without its text"),
        pytest.param(BYTES[:-3] + b"\xff\xff\xff", id="no text"),
        pytest.param(BYTES[:14] + b"\xff\xff", id="more than is accepted"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_values_of_other_programs_are_no_fault() -> None:
    """Checksum (CRC32C) and TLS details are binary."""
    data = BYTES[:14] + b"\x00\x19" + BYTES[16:] + b"\x03\x00\x04\xff\xfe\xfd\xfc"
    assert decode(data).values == {OF_NETWORK: "dmz"}


@given(some.binary(max_size=200), some.booleans())
def test_no_input_does_harm(data: bytes, begins: bool) -> None:
    try:
        decode(BYTES[:13] + data if begins else data)
    except ProtocolError:
        return


def test_the_types_are_those_of_the_contract() -> None:
    assert (UNIQUE_ID, OF_NETWORK, OF_MAC) == (0x05, 0xE0, 0xE3)
