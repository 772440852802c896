"""The wire format: every message survives encoding and decoding, and garbage raises ProtocolError only."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.keys import keys, keys_of
from tproxy.errors import ProtocolError
from tproxy.model import PROTOCOLS, ServiceKey
from tproxy.relay import wire

port = st.integers(0, 65535)
key = st.tuples(port, st.sampled_from(PROTOCOLS), st.ip_addresses(v=4).map(str) | st.just("fd00::1")).map(
    lambda fields: ServiceKey(*fields)
)
listed = st.lists(port.map(ServiceKey) | key, max_size=300).map(tuple)
uint32 = st.integers(0, 2**32 - 1)

messages: st.SearchStrategy[wire.Message] = st.one_of(
    st.builds(wire.Hello, port, uint32),
    st.builds(wire.Listen, uint32, st.integers(0, 255), listed),
    st.builds(wire.Report, uint32, st.dictionaries(key, port, max_size=50)),
    st.builds(wire.Accepted, port.map(ServiceKey) | key),
    st.builds(wire.Born, uint32),
    st.builds(wire.Behind, port),
    st.builds(wire.Workers),
    st.builds(wire.LogFile),
    st.builds(wire.Failed, st.text(st.characters(exclude_categories=["Cs"]))),
    st.builds(wire.Quit),
    st.builds(wire.Adopt),
    st.builds(wire.Adopted),
    st.builds(wire.Takeover),
    st.builds(wire.Listeners, listed),
)


@settings(deadline=None)
@given(messages)
def test_every_message_survives_encoding_and_decoding(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.Hello(wire.VERSION, 4194304),
        wire.Listen(7, 20, ()),
        wire.Listen(7, 20, keys(1, 5030, 65535)),
        wire.Report(7, {}),
        wire.Report(7, {ServiceKey(5030): errno.EADDRINUSE, ServiceKey(80): errno.EACCES}),
        wire.Accepted(ServiceKey(5030)),
        wire.Born(4194304),
        wire.Behind(0),
        wire.Behind(63),
        wire.Workers(),
        wire.LogFile(),
        wire.Failed(""),
        wire.Failed("namespace one_tproxy_br0: does not exist"),
        wire.Failed("\N{SNOWMAN}"),
        wire.Quit(),
        wire.Adopt(),
        wire.Adopted(),
        wire.Takeover(),
        wire.Listeners(()),
        wire.Listeners(keys(1, 65535)),
    ],
    ids=repr,
)
def test_each_kind_of_message_survives_encoding_and_decoding(message: wire.Message) -> None:
    decoded = wire.decode(wire.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


def test_each_kind_of_message_has_a_first_byte_of_its_own() -> None:
    kinds: list[wire.Message] = [
        wire.Hello(1, 1),
        wire.Listen(1, 1, ()),
        wire.Report(1, {}),
        wire.Accepted(ServiceKey(1)),
        wire.Born(1),
        wire.Behind(1),
        wire.Workers(),
        wire.LogFile(),
        wire.Failed(""),
        wire.Quit(),
        wire.Adopt(),
        wire.Adopted(),
        wire.Takeover(),
        wire.Listeners(()),
    ]
    assert len({wire.encode(each)[:1] for each in kinds}) == len(kinds)


def test_a_reason_with_undecodable_bytes_arrives_escaped() -> None:
    # File names from the operating system can hold such characters (PEP 383).
    assert wire.decode(wire.encode(wire.Failed("no \udcff"))) == wire.Failed("no \\udcff")


def test_the_largest_message_is_a_report_of_all_ports() -> None:
    ports = range(1, 65536)
    listen = wire.Listen(2**32 - 1, 255, keys_of(ports))
    report = wire.Report(
        2**32 - 1, {ServiceKey(port): port % 256 for port in ports}
    )  # each reason there may be
    assert len(wire.encode(listen)) < len(wire.encode(report)) == wire.MAX_BYTES
    assert wire.decode(wire.encode(report)) == report
    assert wire.decode(wire.encode(listen)) == listen


def test_values_are_in_network_order() -> None:
    assert wire.encode(wire.Listeners(keys(0x0102))).endswith(b"\x01\x02")


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=64)
    | st.builds(
        bytes.__add__,
        st.sampled_from(b"ABCHLRbFSUQWladt").map(lambda each: bytes([each])),
        st.binary(max_size=40),
    )
)
def test_garbage_is_a_message_or_a_protocol_error_and_nothing_else(data: bytes) -> None:
    try:
        message = wire.decode(data)
    except ProtocolError:
        return
    assert wire.decode(wire.encode(message)) == message


@given(port, st.binary(max_size=6 * wire.MAX_DESCRIPTORS))
def test_what_a_relay_of_version_1_says_of_its_guests_is_not_needed(port: int, guests: bytes) -> None:
    assert wire.decode(wire.encode(wire.Accepted(ServiceKey(port))) + guests) == wire.Accepted(
        ServiceKey(port)
    )


@settings(deadline=None)
@given(messages, st.data())
def test_a_message_cut_anywhere_never_raises_anything_else(
    message: wire.Message, data: st.DataObject
) -> None:
    whole = wire.encode(message)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        wire.decode(part)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"Z",
        b"q",
        b"H",
        b"H\x00\x01",
        wire.encode(wire.Hello(1, 1)) + b"\x00",
        b"L",
        wire.encode(wire.Listen(1, 1, keys(80))) + b"\x00",
        wire.encode(wire.Listen(1, 1, ()))[:-1],
        b"R\x00\x00\x00",
        wire.encode(wire.Report(1, {ServiceKey(80): 98})) + b"\x00",
        wire.encode(wire.Report(1, {ServiceKey(80): 98}))[:-2],
        b"A",
        b"A\x00",
        b"B\x00\x00\x00",
        wire.encode(wire.Born(1)) + b"\x00",
        b"b\x00",
        wire.encode(wire.Behind(1)) + b"\x00",
        b"F\xff",
        b"S\x00",
        b"W\x00",
        b"l\x00",
        b"Q\x00",
        b"a\x00",
        b"d\x00",
        b"t\x00",
    ],
    ids=repr,
)
def test_malformed_input_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(data)
