"""The channel between two of our processes: messages arrive whole or not at all, and no descriptor leaks."""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Iterator, Sequence

import pytest

from tests.keys import keys, keys_of
from tests.unit.sockets import descriptors
from tproxy.errors import ProtocolError
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, pair, receive, send


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = pair()
    with one, other:
        yield one, other


@pytest.fixture
def file() -> Iterator[int]:
    """A descriptor that deliberately is not close-on-exec."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    yield reader
    os.close(reader)
    os.close(writer)


def send_raw(channel: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def take(channel: socket.socket) -> tuple[object, list[int]]:
    """Receive one message, and the descriptors to be closed by the test."""
    delivery = receive(channel)
    assert delivery is not None
    return delivery.message, delivery.take()


def copies(file: int) -> set[str]:
    """The descriptors here that are of this pipe; whatever runs the tests may open and close others."""
    pipe = os.readlink(f"/proc/self/fd/{file}")
    return {each for each in descriptors() if each.endswith(pipe)}


def test_a_message_arrives_with_its_descriptors(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    send(channel[0], wire.Accepted(ServiceKey(5030)), [file])
    message, (fd,) = take(channel[1])
    try:
        assert message == wire.Accepted(ServiceKey(5030))
        assert os.path.sameopenfile(fd, file)
        assert fd != file
    finally:
        os.close(fd)


def test_received_descriptors_are_close_on_exec(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    send(channel[0], wire.Adopted(), [file, file])
    _, fds = take(channel[1])
    try:
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
    finally:
        for fd in fds:
            os.close(fd)


def test_both_ends_of_a_pair_are_close_on_exec(channel: tuple[socket.socket, socket.socket]) -> None:
    assert [each.get_inheritable() for each in channel] == [False, False]


def test_sending_leaves_the_descriptors_with_the_caller(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    before = copies(file)
    send(channel[0], wire.Adopted(), [file])
    assert copies(file) == before


def test_a_message_without_descriptors(channel: tuple[socket.socket, socket.socket]) -> None:
    send(channel[0], wire.Quit())
    assert take(channel[1]) == (wire.Quit(), [])


def test_message_boundaries_are_kept(channel: tuple[socket.socket, socket.socket], file: int) -> None:
    send(channel[0], wire.Listen(1, 20, keys(80)))
    send(channel[0], wire.Adopted(), [file])
    send(channel[0], wire.Listen(2, 20, ()))
    first, second, third = (take(channel[1]) for _ in range(3))
    assert first == (wire.Listen(1, 20, keys(80)), [])
    for fd in second[1]:
        os.close(fd)
    assert (second[0], len(second[1])) == (wire.Adopted(), 1)
    assert third == (wire.Listen(2, 20, ()), [])


@pytest.mark.parametrize("count", [1, 2, 64, wire.MAX_DESCRIPTORS])
def test_so_many_descriptors_go_in_one_message(
    channel: tuple[socket.socket, socket.socket], file: int, count: int
) -> None:
    send(channel[0], wire.Listeners(keys_of(range(count))), [file] * count)
    message, fds = take(channel[1])
    for fd in fds:
        os.close(fd)
    assert message == wire.Listeners(keys_of(range(count)))
    assert len(set(fds)) == count


def test_more_descriptors_than_the_kernel_takes_are_refused(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        send(channel[0], wire.Quit(), [file] * (wire.MAX_DESCRIPTORS + 1))


def test_the_largest_message_goes_through(channel: tuple[socket.socket, socket.socket]) -> None:
    message = wire.Listen(1, 20, keys_of(range(1, 65536)))
    send(channel[0], message)
    assert take(channel[1]) == (message, [])


def test_end_of_file_is_none(channel: tuple[socket.socket, socket.socket]) -> None:
    send(channel[0], wire.Quit())
    channel[0].close()
    assert take(channel[1]) == (wire.Quit(), [])
    assert receive(channel[1]) is None


def test_nothing_to_receive_raises_instead_of_looking_like_the_end(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    channel[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(channel[1])


def test_a_peer_that_is_behind_raises_blocking_and_nothing_is_half_sent(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    channel[0].setblocking(False)
    sent = 0

    def send_on_and_on() -> None:
        nonlocal sent
        while True:
            send(channel[0], wire.Listen(sent, 20, keys_of(range(1000))), [file])
            sent += 1

    with pytest.raises(BlockingIOError):
        send_on_and_on()
    for expected in range(sent):
        message, fds = take(channel[1])
        for fd in fds:
            os.close(fd)
        assert message == wire.Listen(expected, 20, keys_of(range(1000)))
    channel[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(channel[1])


def test_sending_to_a_closed_peer_raises_and_does_not_kill(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    channel[1].close()
    with pytest.raises(BrokenPipeError):
        send(channel[0], wire.Quit())


def test_descriptors_that_nobody_takes_are_closed_at_the_end_of_the_block(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    before = copies(file)
    send(channel[0], wire.Adopted(), [file] * 3)
    delivery = receive(channel[1])
    assert delivery is not None
    with pytest.raises(ZeroDivisionError), delivery:
        raise ZeroDivisionError
    assert copies(file) == before


def test_a_descriptor_that_is_not_a_socket_cannot_be_taken_as_one_and_is_closed(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    before = copies(file)
    for take_one in (Delivery.take_socket, Delivery.take_connection):
        send(channel[0], wire.Adopted(), [file] * 3)
        delivery = receive(channel[1])
        assert delivery is not None
        with pytest.raises(OSError, match="non-socket"), delivery:
            take_one(delivery)
        assert copies(file) == before


@pytest.mark.parametrize("data", [b"Z", b"L\x00", b"Qx", b"F\xff", b"A\x00"], ids=repr)
def test_a_malformed_message_closes_its_descriptors(
    channel: tuple[socket.socket, socket.socket], file: int, data: bytes
) -> None:
    send_raw(channel[0], data, [file] * 3)
    before = copies(file)
    with pytest.raises(ProtocolError):
        receive(channel[1])
    assert copies(file) == before


def test_descriptors_without_a_message_are_closed(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    send_raw(channel[0], b"", [file])
    before = copies(file)
    with pytest.raises(ProtocolError):
        receive(channel[1])
    assert copies(file) == before


def test_a_message_larger_than_any_is_a_protocol_error_and_closes_its_descriptors(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    # A valid message, were it cut at MAX_BYTES.
    send_raw(channel[0], b"F" + b"x" * wire.MAX_BYTES, [file])
    before = copies(file)
    with pytest.raises(ProtocolError):
        receive(channel[1])
    assert copies(file) == before


def test_a_message_that_lost_descriptors_is_a_protocol_error_and_closes_the_others(
    channel: tuple[socket.socket, socket.socket], file: int
) -> None:
    send(channel[0], wire.Listeners(keys_of(range(20))), [file] * 20)
    before = descriptors()
    taken = {int(each.partition(":")[0]) for each in before}
    free = [number for number in range(len(taken) + 4) if number not in taken]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[3], limits[1]))  # room for three
        with pytest.raises(ProtocolError):
            receive(channel[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert descriptors() == before
