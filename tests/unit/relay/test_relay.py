"""The relay: descriptors that nobody expects are closed, whoever sends them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keys import keys
from tests.unit.sockets import copies, run_until, tcp_pair
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send
from tproxy.relay.listening import Batch
from tproxy.relay.relay import Relay


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def rendezvous(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The abstract socket of the relay under test is this test's own."""
    monkeypatch.setattr("tproxy.relay.relay.RENDEZVOUS", f"\0{tmp_path}")


def take_over(*messages: tuple[wire.Message, list[int]]) -> Relay:
    """A relay that has taken over from one that said this."""
    relay = Relay()
    ours, theirs = pair()
    for message, fds in messages:
        send(theirs, message, fds)
    theirs.shutdown(socket.SHUT_WR)
    with theirs:
        relay.take_over(ours)
    return relay


def test_a_successor_gets_the_listening_sockets(listener: socket.socket) -> None:
    relay = take_over((wire.Listeners(keys(80, 81)), [listener.fileno()] * 2))
    assert relay._listening.keys == keys(80, 81)
    assert copies(listener.fileno()) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_listening_sockets_than_of_ports_is_refused_and_closed(
    listener: socket.socket, count: int
) -> None:
    relay = take_over((wire.Listeners(keys(80, 81)), [listener.fileno()] * count))
    assert relay._listening.keys == ()
    assert copies(listener.fileno()) == 1


def test_a_successor_keeps_what_came_before_a_message_that_it_refuses(listener: socket.socket) -> None:
    fd = listener.fileno()
    relay = take_over(
        (wire.Listeners((ServiceKey(80),)), [fd]),
        (wire.Adopted(), [fd, fd]),
        (wire.Listeners((ServiceKey(81),)), [fd]),
    )
    assert relay._listening.keys == keys(80)


def test_guests_that_are_handed_over_wait_for_a_worker(listener: socket.socket) -> None:
    first, second = ([listener.fileno()] * count for count in (1, 2))
    relay = take_over((wire.Accepted(ServiceKey(80)), first), (wire.Accepted(ServiceKey(81)), second))
    assert copies(listener.fileno()) == 4
    batches = relay._passing.hand_over()
    assert [(batch.key.port, len(batch.fds)) for batch in batches] == [(80, 1), (81, 2)]
    for batch in batches:
        batch.close()
    assert copies(listener.fileno()) == 1


def test_listening_sockets_are_handed_over_also_where_guests_that_wait_have_no_room(
    listener: socket.socket,
) -> None:
    relay = Relay()
    relay._listening.keep(ServiceKey(80), listener.dup())
    guests = [tcp_pair() for _ in range(300)]
    for _, accepted in guests:
        relay._passing.take(Batch(ServiceKey(81), (b"",), [accepted.detach()]))
    ours, theirs = pair()
    ours.settimeout(0.0)  # of a successor that does not read now; otherwise this takes PATIENCE
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        relay._hand_over(ours)
        delivery = receive(theirs)
        assert delivery is not None
        with delivery:
            assert delivery.message == wire.Listeners((ServiceKey(80),))
    guest = guests[-1][0]
    with pytest.raises(ConnectionResetError):
        guest.recv(1)
    for each, _ in guests:
        each.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
def test_a_socket_that_accepts_no_ipv4_connections_is_closed(family: int) -> None:
    with socket.socket(family) as other:
        if family == socket.AF_INET6:
            other.listen()
        relay = take_over((wire.Listeners(keys(80, 81)), [other.fileno()] * 2))
        assert relay._listening.keys == ()
        assert copies(other.fileno()) == 1


@pytest.mark.parametrize(
    ("message", "kept"),
    [(wire.Listen(1, 40, ()), True), (wire.Adopted(), False), (wire.Hello(1, 1), False)],
    ids=["what is expected", "what only the daemon gets", "what only the daemon gets, with a proof"],
)
def test_descriptors_that_come_from_the_daemon_are_closed(
    listener: socket.socket, message: wire.Message, kept: bool
) -> None:
    relay = Relay()
    daemon, channel = pair()
    with daemon:
        relay._greet(channel)
        send(daemon, message, [listener.fileno()] * 5)
        run_until(relay._loop, lambda: relay._report is None and not heard(daemon) if kept else gone(relay))
        assert copies(listener.fileno()) == 1
        assert (relay._channel is not None) == kept


def heard(daemon: socket.socket) -> bool:
    """Whether there is something left to hear on this channel."""
    daemon.setblocking(False)
    try:
        delivery = receive(daemon)
    except BlockingIOError:
        return False
    assert delivery is not None
    with delivery:
        return True


def gone(relay: Relay) -> bool:
    return relay._channel is None


def test_a_successor_whose_daemon_has_ended_keeps_what_it_took_over_for_the_next_daemon(
    listener: socket.socket, rendezvous: None
) -> None:
    """A daemon can be killed in the middle of a restart, and guests wait at these sockets."""
    relay = take_over((wire.Listeners((ServiceKey(80),)), [listener.fileno()]))
    daemon, channel = pair()
    daemon.close()
    relay._loop.call_later(0, relay._loop.stop)
    relay.serve(channel)
    assert relay._listening.keys == keys(80)
    assert copies(listener.fileno()) == 2


def test_a_relay_without_guests_ends_with_its_daemon(rendezvous: None) -> None:
    daemon, channel = pair()
    daemon.close()
    with pytest.raises(BrokenPipeError):
        Relay().serve(channel)
