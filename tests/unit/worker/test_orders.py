"""The messages to workers: all survive encoding and decoding, and garbage raises ProtocolError only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.addresses import MOST_PATH, is_address
from tproxy.errors import ProtocolError
from tproxy.model import MOST_ENDPOINTS, PROTOCOLS, TCP, UDP, Endpoint, Network, Service, ServiceKey
from tproxy.names import INTERFACE_NAME_BYTES
from tproxy.relay import wire
from tproxy.worker import orders, packing

port = st.integers(0, 65535)
uint32 = st.integers(0, 2**32 - 1)
bridge = st.text("abcXYZ019_.-", min_size=1, max_size=INTERFACE_NAME_BYTES)
address = st.ip_addresses(v=4).map(str) | st.just("fd00::1")
key = st.builds(
    ServiceKey,
    port,
    st.sampled_from(PROTOCOLS),
    address,
    uint32,
)
path = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=",/"), min_size=1)
unix = path.map(lambda name: f"unix:/{name[:100]}")
plain = st.builds(
    Service,
    key,
    st.builds(Endpoint, st.ip_addresses(v=4).map(str), port),
    st.just(""),
    st.floats(0.001, 300),
    *[uint32] * 7,
    st.sampled_from(["", "v2"]),
    st.sampled_from(["first", "least"]),
    st.integers(0, 86400),
)
# One that maps an IPv4 address is taken for that, and is refused as an endpoint.
address = st.ip_addresses().map(str).filter(lambda each: is_address(each) and "::ffff" not in each)
listed = st.builds(
    Service.led_to,
    plain.map(lambda each: each._replace(key=each.key._replace(protocol=TCP))),
    st.lists(address | unix, min_size=1, max_size=9, unique=True),
)
service = plain | listed
mac = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
network = st.builds(Network, text, text)

messages: st.SearchStrategy[orders.Message] = st.one_of(
    st.builds(
        orders.Settings,
        st.integers(0, 255),
        st.integers(1, 65535),
        st.tuples(port, port).map(lambda each: (min(each), max(each))),
        uint32,
    ),
    st.builds(
        orders.Services, bridge, st.booleans(), st.booleans(), st.lists(service, max_size=20).map(tuple)
    ),
    st.builds(
        orders.Networks,
        bridge,
        st.booleans(),
        st.booleans(),
        text,
        st.lists(st.tuples(uint32, network), max_size=5).map(tuple),
        st.lists(st.tuples(mac, uint32), max_size=20).map(tuple),
        st.lists(st.tuples(bridge, mac, uint32), max_size=20).map(tuple),
    ),
    st.builds(
        orders.Labels, bridge, st.booleans(), text, st.lists(st.tuples(key, text), max_size=20).map(tuple)
    ),
    st.builds(orders.Ports, bridge, st.booleans(), st.lists(st.tuples(mac, st.just("") | bridge)).map(tuple)),
    st.builds(orders.Addresses, bridge, st.lists(address, max_size=20).map(tuple)),
    st.builds(orders.Neighbours, bridge),
    st.builds(orders.Bridge, bridge, st.none() | st.integers(0, 2**64 - 1)),
    st.builds(orders.Gate, bridge, key),
    st.builds(orders.LetGo, bridge),
    st.builds(orders.Unreachable, bridge, key, st.floats(0, 60)),
    st.builds(orders.Dial, uint32, st.floats(0, 300), text),
    st.builds(orders.HangUp, uint32),
    st.builds(orders.Dialled, uint32, st.integers(0, 65535)),
    st.builds(orders.Forget, bridge),
    st.builds(orders.LogFile),
    st.builds(orders.Sync, uint32, st.booleans()),
    st.builds(orders.Drain),
    st.builds(orders.Question, text, st.lists(text, max_size=20).map(tuple)),
    st.builds(orders.Ready, port, st.booleans()),
    st.builds(orders.Synced, uint32),
)

ONE_OF_EACH: list[orders.Message] = [
    orders.Settings(20, 4, (32768, 60999)),
    orders.Services(
        "br0", True, False, (Service(ServiceKey(80), Endpoint("10.0.0.1", 81), connect_timeout=0.5),)
    ),
    orders.Networks(
        "br0",
        True,
        False,
        "node7",
        ((1, Network("blue", "7")),),
        (("02:00:0a:00:00:05", 1),),
        (("vnet0", "02:00:0a:00:00:05", 1),),
    ),
    orders.Labels("br0", True, "blue", ((ServiceKey(80), "web"), (ServiceKey(53, "udp"), "dns"))),
    orders.Ports("br0", True, (("02:00:0a:00:00:05", "vnet0"), ("02:00:0a:00:00:06", ""))),
    orders.Addresses("br0", ("169.254.16.9", "fe80::a9fe:1009")),
    orders.Neighbours("br0"),
    orders.Bridge("br0", 1),
    orders.Gate("br0", ServiceKey(53, "udp")),
    orders.LetGo("br0"),
    orders.Unreachable("br0", ServiceKey(53, "udp"), 40.0),
    orders.Dial(1, 2.5, "/run/x.sock"),
    orders.HangUp(1),
    orders.Dialled(1, 111),
    orders.Forget("br0"),
    orders.LogFile(),
    orders.Sync(1, True),
    orders.Drain(),
    orders.Question("connections", ("bridge=br0", "all")),
    orders.Ready(1, False),
    orders.Synced(1),
]


@given(messages)
def test_every_message_survives_encoding_and_decoding(message: orders.Message) -> None:
    decoded = orders.decode(orders.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda each: type(each).__name__)
def test_each_kind_of_message_survives_encoding_and_decoding(message: orders.Message) -> None:
    decoded = orders.decode(orders.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


def test_each_kind_of_message_has_a_first_byte_of_its_own() -> None:
    kinds = [orders.encode(each)[:1] for each in ONE_OF_EACH]
    assert len(set(kinds)) == len(kinds)
    # On the channel of a new worker, the first message is the spawner's.
    assert wire.encode(wire.Born(1))[:1] not in kinds[-2:]


def test_the_longest_list_of_services_fits_into_a_message() -> None:
    addresses = [f"fd00::{number:x}" for number in range(1, MOST_ENDPOINTS + 1)]
    services = [
        Service(ServiceKey(port), Endpoint("10.0.0.1", 80)).led_to(addresses) for port in range(1, 2000)
    ]
    first, *others = packing.parts(services)
    assert len(others) > 1
    data = orders.encode(orders.Services("a" * INTERFACE_NAME_BYTES, True, True, first))
    assert len(data) <= wire.MAX_BYTES
    assert len(orders.decode(data)) == len(orders.Services._fields)


def test_the_longest_paths_of_unix_sockets_fit_into_a_message_too() -> None:
    paths = [f"unix:/{'n' * (MOST_PATH - 3)}{number:02}" for number in range(MOST_ENDPOINTS)]
    services = [Service(ServiceKey(port), Endpoint(paths[0], 0)).led_to(paths) for port in range(1, 2000)]
    first, *others = packing.parts(services)
    assert len(others) > 1
    message = orders.Services("a" * INTERFACE_NAME_BYTES, True, True, first)
    data = orders.encode(message)
    assert len(data) <= wire.MAX_BYTES
    assert orders.decode(data) == message


@pytest.mark.parametrize(
    "address",
    [
        b"",
        b"\0",
        b"\0" * 16,
        b"\x05/run",
        b"\x03run",
        b"\x02/\xff",
        b"\x01/",
        b"\x04/a,b",
        b"\x6c/" + 107 * b"n",
    ],
)
def test_a_service_whose_endpoint_is_cut_off_or_no_path_is_refused(address: bytes) -> None:
    service = Service(ServiceKey(80), Endpoint("unix:/x", 0))
    whole = orders.encode(orders.Services("br0", True, True, (service,)))
    assert whole.endswith(b"\x01\x02/x")
    with pytest.raises(ProtocolError):
        orders.decode(whole.removesuffix(b"\x02/x") + address)


def test_a_service_of_udp_that_leads_to_a_unix_socket_is_refused() -> None:
    service = Service(ServiceKey(80, UDP), Endpoint("unix:/x", 0))
    with pytest.raises(ProtocolError, match="leads to a UNIX socket"):
        orders.decode(orders.encode(orders.Services("br0", True, True, (service,))))


@pytest.mark.parametrize("later", [b"", b"\x01", b"what a later version adds"])
def test_a_later_version_can_add_to_drain_and_ready(later: bytes) -> None:
    assert orders.decode(orders.encode(orders.Drain()) + later) == orders.Drain()
    assert orders.decode(orders.encode(orders.Ready(7, True)) + later) == orders.Ready(7, True)


@settings(max_examples=300)
@given(
    st.binary(max_size=64)
    | st.builds(
        bytes.__add__,
        st.sampled_from(b"SPBFLsDrd").map(lambda each: bytes([each])),
        st.binary(max_size=80),
    )
)
def test_garbage_is_a_message_or_a_protocol_error_and_nothing_else(data: bytes) -> None:
    try:
        orders.encode(orders.decode(data))
    except ProtocolError:
        return


@given(messages, st.data())
def test_a_message_cut_anywhere_never_raises_anything_else(
    message: orders.Message, data: st.DataObject
) -> None:
    whole = orders.encode(message)
    try:
        orders.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Z",
        b"S",
        b"P",
        orders.encode(ONE_OF_EACH[0]) + b"\x00",
        orders.encode(ONE_OF_EACH[1]) + b"\x00",
        orders.encode(ONE_OF_EACH[1])[:-1],
        orders.encode(orders.Bridge("br0", 1))[:-1],
        orders.encode(orders.Forget("br0")) + b"\x00",
        b"F" + b"\xff" * INTERFACE_NAME_BYTES,
        b"L\x00",
        b"s\x00",
        b"r",
        b"d\x00",
    ],
    ids=repr,
)
def test_malformed_input_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        orders.decode(data)
