"""A link: whatever a relay sends, its descriptors are taken over or closed, and the link goes on or ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.unit.sockets import copies, run_until
from tproxy.daemon.admission import Admission
from tproxy.daemon.link import Link
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, pair, send

PEER = bytes(wire.PEER_BYTES)


class Owner:
    """Notes what a link tells, and takes connections as long as ``take`` lets it."""

    def __init__(self) -> None:
        self.taken: list[socket.SocketType] = []
        self.ends: list[str] = []
        self.take: Callable[[Delivery], socket.SocketType] = Delivery.take_connection

    def greeted(self, link: Link) -> None:
        raise AssertionError("no relay of these tests says Hello from a namespace")

    def reported(self, link: Link, before: dict[int, int]) -> None:
        pass

    def connected(self, link: Link, port: int, peers: tuple[bytes, ...], delivery: Delivery) -> None:
        self.taken += [self.take(delivery) for _ in peers]

    def ended(self, link: Link, reason: str) -> None:
        self.ends.append(reason)
        link.close()


class Setting:
    """A link that has greeted, if told so, with the test as its relay."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.owner = Owner()
        near, self.relay = pair()
        near.setblocking(False)
        admission = Admission(self.loop, 1000, [], lambda: None)
        self.link = Link(self.loop, "br0", near, self.owner, admission)

    def send(self, message: wire.Message, fds: list[int]) -> None:
        """Send a message to the link, which has acted on it when this returns."""
        send(self.relay, message, fds)
        said, taken = len(self.owner.ends), len(self.owner.taken)
        run_until(self.loop, lambda: len(self.owner.ends) > said or len(self.owner.taken) > taken)
        run_until(self.loop, lambda: True)  # what was to be closed is closed


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    if not made.owner.ends:
        made.link.close()
    made.loop.close()
    made.relay.close()


@pytest.fixture
def file() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        yield sock.fileno()


UNEXPECTED: dict[str, tuple[wire.Message, int]] = {
    "connections before Hello": (wire.Accepted(80, (PEER, PEER)), 2),
    "a report before Hello": (wire.Report(1, {}), 1),
    "Hello without a proof": (wire.Hello(wire.VERSION, 1), 0),
    "Hello with two proofs": (wire.Hello(wire.VERSION, 1), 2),
    "Adopted without a channel": (wire.Adopted(), 0),
    "Adopted with two channels": (wire.Adopted(), 2),
    "a message that only relays get": (wire.Listeners((80, 81)), 2),
}


@pytest.mark.parametrize("case", UNEXPECTED)
def test_an_unexpected_message_ends_the_link_and_leaves_no_descriptor(
    setting: Setting, file: int, case: str
) -> None:
    message, count = UNEXPECTED[case]
    setting.send(message, [file] * count)
    kind = type(message).__name__
    assert setting.owner.ends == [f"relay lost: unexpected {kind} with {count} descriptors"]
    assert copies(file) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_sockets_than_of_guests_ends_the_link_and_leaves_no_descriptor(
    setting: Setting, file: int, count: int
) -> None:
    setting.link.namespace = netns.current()
    setting.send(wire.Accepted(80, (PEER, PEER)), [file] * count)
    assert setting.owner.ends == [f"relay lost: unexpected Accepted with {count} descriptors"]
    assert copies(file) == 1


def test_what_the_owner_took_stays_open_and_is_all_that_does(setting: Setting, file: int) -> None:
    setting.link.namespace = netns.current()
    setting.send(wire.Accepted(80, (PEER, PEER)), [file] * 2)
    assert copies(file) == 3
    for sock in setting.owner.taken:
        sock.close()
    assert copies(file) == 1
    assert setting.owner.ends == []


def test_when_the_owner_fails_half_way_the_rest_is_closed(setting: Setting, file: int) -> None:
    taken: list[socket.SocketType] = []

    def take(delivery: Delivery) -> socket.SocketType:
        if taken:
            raise OSError("no more")
        taken.append(delivery.take_connection())
        return taken[0]

    setting.link.namespace = netns.current()
    setting.owner.take = take
    setting.send(wire.Accepted(80, (PEER,) * 4), [file] * 4)
    assert setting.owner.ends == ["relay lost: no more"]
    assert copies(file) == 2
    taken[0].close()


@pytest.mark.parametrize("message", [wire.Hello(wire.VERSION, 1), wire.Adopted()], ids=["Hello", "Adopted"])
def test_a_descriptor_that_is_no_socket_ends_the_link_and_is_closed(
    setting: Setting, message: wire.Message
) -> None:
    file = os.memfd_create("no socket")
    try:
        setting.send(message, [file])
        assert "non-socket" in setting.owner.ends[0]
        assert copies(file) == 1
    finally:
        os.close(file)


def test_a_relay_that_was_there_already_goes_on_over_the_channel_that_was_brought(setting: Setting) -> None:
    near, far = pair()
    with far:
        send(setting.relay, wire.Adopted(), [near.fileno()])
        near.close()
        run_until(setting.loop, lambda: setting.link.pid == os.getpid())  # who made the channel
        send(far, wire.Failed("heard"), [])
        run_until(setting.loop, lambda: bool(setting.owner.ends))
    assert setting.owner.ends == ["heard"]


def test_the_end_of_the_channel_is_the_end_of_the_relay(setting: Setting) -> None:
    setting.relay.close()
    run_until(setting.loop, lambda: bool(setting.owner.ends))
    assert setting.owner.ends == ["relay ended"]
