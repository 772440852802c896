"""``kernel/netlink`` finds messages and attributes in any bytes, and leaves out what is cut short."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tproxy.kernel.netlink import attributes, messages

NESTED = 0x8000

kinds = st.integers(0, 0x3FFF)
small = st.binary(max_size=9)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def message(kind: int, body: bytes) -> bytes:
    return padded(struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body)


def attribute(kind: int, value: bytes) -> bytes:
    return padded(struct.pack("=HH", 4 + len(value), kind) + value)


@given(st.lists(st.tuples(kinds, small)))
def test_several_messages_in_one_read_are_separated(told: list[tuple[int, bytes]]) -> None:
    assert list(messages(b"".join(message(kind, body) for kind, body in told))) == told


@given(small, st.integers(1, 20))
def test_a_message_that_is_cut_short_is_left_out(body: bytes, missing: int) -> None:
    whole, cut = message(1, b"whole"), struct.pack("=IHHII", 16 + len(body), 2, 0, 0, 0) + body
    assert list(messages(whole + cut[:-missing])) == [(1, b"whole")]


def test_a_message_that_is_shorter_than_its_header_ends_the_list() -> None:
    whole = message(1, b"")
    for length in (0, 15):
        assert list(messages(whole + struct.pack("=IHHII", length, 2, 0, 0, 0) + whole)) == [(1, b"")]


@given(small, st.dictionaries(kinds, small))
def test_attributes_are_found_by_type_whatever_its_flags(fixed: bytes, values: dict[int, bytes]) -> None:
    for flags in (0, NESTED):
        body = fixed + b"".join(attribute(kind | flags, value) for kind, value in values.items())
        assert attributes(body, len(fixed)) == values


def test_an_attribute_that_is_shorter_than_its_header_ends_the_list() -> None:
    whole = attribute(1, b"")
    for length in (0, 3):
        assert attributes(whole + struct.pack("=HH", length, 2) + attribute(3, b""), 0) == {1: b""}
    assert attributes(whole + whole[:3], 0) == {1: b""}


@given(st.binary())
def test_parsing_random_bytes_ends(noise: bytes) -> None:
    for _, body in messages(noise):
        attributes(body, 0)
    attributes(noise, 0)
