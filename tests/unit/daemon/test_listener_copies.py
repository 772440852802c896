"""Copies of listening sockets: whose they are, and when they are closed."""

from __future__ import annotations

import socket

import pytest

from tests.keys import keys
from tproxy.daemon import listener_copies
from tproxy.daemon.listener_copies import ListenerCopies
from tproxy.kernel.netns import NamespaceId
from tproxy.model import ServiceKey

ONE, TWO = NamespaceId(4, 1), NamespaceId(4, 2)


@pytest.fixture
def held() -> ListenerCopies:
    return ListenerCopies()


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_a_second_copy_takes_the_place_of_the_first(held: ListenerCopies) -> None:
    first, second = listener(), listener()
    held.add("br0", ONE, ServiceKey(80), first)
    held.add("br0", ONE, ServiceKey(80), second)
    assert held.of("br0", ONE) == {ServiceKey(80): second}
    assert first.fileno() == -1
    held.drop("br0")


def test_copies_of_a_namespace_are_of_no_use_in_another_one(held: ListenerCopies) -> None:
    first, second = listener(), listener()
    held.add("br0", ONE, ServiceKey(80), first)
    assert held.of("br0", TWO) == {}
    held.add("br0", TWO, ServiceKey(443), second)
    assert (held.of("br0", ONE), held.of("br0", TWO)) == ({}, {ServiceKey(443): second})
    assert first.fileno() == -1
    held.drop("br0")


def test_only_ports_that_are_served_keep_their_copies(held: ListenerCopies) -> None:
    sockets = {port: listener() for port in (80, 443)}
    for port, each in sockets.items():
        held.add("br0", ONE, ServiceKey(port), each)
    held.keep("br0", keys(443, 8080))
    assert held.of("br0", ONE) == {ServiceKey(443): sockets[443]}
    assert sockets[80].fileno() == -1
    held.drop("br0")
    assert sockets[443].fileno() == -1
    held.drop("br0")


def test_copies_take_half_of_the_descriptors_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_copies, "descriptor_limit", lambda: 4)
    held = ListenerCopies()
    for port in range(80, 90):
        held.add("br0", ONE, ServiceKey(port), listener())
    assert list(held.of("br0", ONE)) == [*keys(80, 81)]
    assert len(caplog.messages) == 8
    assert caplog.messages[0] == "too few descriptors for a copy of each listening socket"
    held.keep("br0", keys(80))
    held.add("br1", TWO, ServiceKey(80), listener())
    assert list(held.of("br1", TWO)) == [*keys(80)]
    for bridge in ("br0", "br1"):
        held.drop(bridge)
