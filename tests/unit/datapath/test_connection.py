"""A connection: bytes, ends and resets pass between guest and endpoint, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sockets import descriptors, noise, reset, run_until, tcp_pair, wait_for
from tproxy.datapath import splice
from tproxy.datapath.connection import Connection
from tproxy.datapath.connections import Connections
from tproxy.datapath.dial_errors import dial_failure
from tproxy.datapath.splice import Mover
from tproxy.datapath.target import Target
from tproxy.kernel import tcp
from tproxy.kernel.loop import Loop
from tproxy.log.file import Log
from tproxy.model import Endpoint, Service, ServiceKey

PEER = ("10.0.0.7", 40000)

CLOSE_WAIT = 8  # the state in TCP_INFO, its first byte (tcp_states.h)

_PATTERN = bytes(range(251)) * 1000  # byte n is n % 251


class Far:
    """The far end of a connection, seen from the test: a guest, or an endpoint's server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.arrived = b""
        self.eof = False
        self.error: int | None = None
        sock.setblocking(False)

    def read(self) -> None:
        if self.eof or self.error:
            return
        try:
            while data := self.sock.recv(1 << 20):
                self.arrived += data
            self.eof = True
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = error.errno

    def has(self, data: bytes) -> bool:
        self.read()
        assert data.startswith(self.arrived) or self.arrived == data
        return self.arrived == data

    def is_reset(self) -> bool:
        self.read()
        assert not self.eof, "a reset was expected, not an orderly end"
        return self.error == errno.ECONNRESET

    def is_at_end(self) -> bool:
        self.read()
        assert self.error is None
        return self.eof


class Site:
    """A loop with connections, as in a worker, and an endpoint that listens on loopback."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.connections = Connections(self.loop, Log())
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.target = self.target_for(self.server)
        self.opened: list[socket.socket] = [self.server]

    def target_for(self, server: socket.socket, timeout: float = 5.0) -> Target:
        return Target(
            "br0", Service(ServiceKey(5030), Endpoint(*server.getsockname()), connect_timeout=timeout)
        )

    def guest(self, target: Target | None = None, *, first: bytes = b"") -> Far:
        """Return a guest whose connection was accepted; it has sent ``first`` by then."""
        far, near = tcp_pair()
        self.opened.append(far)
        if first:
            far.sendall(first)
            wait_for(lambda: bool(select.select([near], [], [], 0)[0]))
        self.connections.accept(target or self.target, socket.SocketType(fileno=near.detach()), PEER)
        return Far(far)

    def endpoint(self) -> Far:
        """Accept a connection at the endpoint's server."""
        accepted: list[socket.socket] = []

        def accept() -> bool:
            with suppress(BlockingIOError):
                accepted.append(self.server.accept()[0])
            return bool(accepted)

        self.until(accept)
        self.opened += accepted
        return Far(accepted[0])

    def both(self) -> tuple[Far, Far]:
        guest = self.guest()
        return guest, self.endpoint()

    def until(self, condition: Callable[[], bool]) -> None:
        run_until(self.loop, condition)

    def until_over(self) -> None:
        self.until(lambda: not self.connections)

    def close(self) -> None:
        self.connections.abort_all("test over")
        for each in self.opened:
            each.close()
        self.loop.close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


# Bytes


def test_what_the_guest_sends_reaches_the_endpoint_and_the_answer_the_guest(site: Site) -> None:
    guest, endpoint = site.both()
    guest.sock.send(b"question")
    site.until(lambda: endpoint.has(b"question"))
    endpoint.sock.send(b"answer")
    site.until(lambda: guest.has(b"answer"))
    guest.sock.send(b", and another")
    site.until(lambda: endpoint.has(b"question, and another"))


def test_what_the_guest_sent_before_the_dial_reaches_the_endpoint_first(site: Site) -> None:
    guest = site.guest(first=b"early ")
    guest.sock.send(b"late")
    endpoint = site.endpoint()
    site.until(lambda: endpoint.has(b"early late"))


def test_what_the_guest_has_sent_already_goes_out_with_the_handshake(site: Site) -> None:
    """An endpoint on this host has the bytes before the loop runs."""
    site.guest(first=b"early")
    (connection,) = site.connections
    assert (connection.dialing, connection.to_endpoint.held) == (False, 0)
    assert site.endpoint().has(b"early")


def test_the_guest_hears_a_server_that_speaks_first(site: Site) -> None:
    guest, endpoint = site.both()
    endpoint.sock.send(b"220 ready\r\n")
    site.until(lambda: guest.has(b"220 ready\r\n"))


def test_a_guest_that_has_sent_everything_and_fin_before_the_dial_gets_its_answer(site: Site) -> None:
    far, near = tcp_pair()
    site.opened.append(far)
    far.sendall(b"all I have to say")
    far.shutdown(socket.SHUT_WR)
    site.connections.accept(site.target, socket.SocketType(fileno=near.detach()), PEER)
    guest, endpoint = Far(far), site.endpoint()
    site.until(lambda: endpoint.has(b"all I have to say") and endpoint.is_at_end())
    endpoint.sock.sendall(b"understood")
    endpoint.sock.close()
    site.until(lambda: guest.has(b"understood") and guest.is_at_end())
    site.until_over()


def test_a_guest_that_has_sent_only_fin_before_the_dial_ends_the_endpoints_stream(site: Site) -> None:
    far, near = tcp_pair()
    site.opened.append(far)
    far.shutdown(socket.SHUT_WR)
    wait_for(lambda: bool(select.select([near], [], [], 0)[0]))
    site.connections.accept(site.target, socket.SocketType(fileno=near.detach()), PEER)
    endpoint = site.endpoint()
    site.until(endpoint.is_at_end)


@pytest.mark.parametrize("max_pipes", [0, 256], ids=["copying", "by pipe"])
def test_bulk_both_ways_at_once_arrives_complete(
    site: Site, max_pipes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "MAX_PIPES", max_pipes)
    guest, endpoint = site.both()
    upload, download = noise(3_000_000), noise(4_000_000)
    unsent = {guest: memoryview(upload), endpoint: memoryview(download)}

    def step() -> bool:
        for sender in list(unsent):
            with suppress(BlockingIOError):
                while unsent[sender]:
                    unsent[sender] = unsent[sender][sender.sock.send(unsent[sender]) :]
                sender.sock.shutdown(socket.SHUT_WR)
                del unsent[sender]
        guest.read()
        endpoint.read()
        return guest.eof and endpoint.eof

    site.until(step)
    assert guest.arrived == download
    assert endpoint.arrived == upload
    site.until_over()
    assert (site.target.read().to_endpoint, site.target.read().to_guest) == (len(upload), len(download))
    assert site.connections.pipes.lent == 0


@settings(deadline=None, max_examples=15)
@given(st.lists(st.binary(min_size=1, max_size=3000) | st.integers(60_000, 300_000).map(noise), max_size=5))
def test_any_messages_are_echoed_unchanged(messages: list[bytes]) -> None:
    site = Site()
    guest, endpoint = site.both()
    for message in messages:
        guest.arrived = endpoint.arrived = b""
        unsent, unechoed = message, message

        def step() -> bool:
            nonlocal unsent, unechoed
            with suppress(BlockingIOError):
                unsent = unsent[guest.sock.send(unsent) :] if unsent else b""
            endpoint.read()
            ready = len(endpoint.arrived) - (len(message) - len(unechoed))  # noqa: B023 - runs in its round only
            with suppress(BlockingIOError):
                unechoed = unechoed[endpoint.sock.send(unechoed[:ready]) :] if ready else unechoed
            return guest.has(message)  # noqa: B023 - likewise

        site.until(step)
        assert endpoint.arrived == message
    site.close()


def test_a_guest_that_does_not_read_slows_its_endpoint_down_and_loses_nothing(site: Site) -> None:
    guest, endpoint = site.both()
    sent, quiet = 0, 0

    def stuffed() -> bool:
        nonlocal sent, quiet
        quiet += 1
        with suppress(BlockingIOError):
            while True:
                sent += endpoint.sock.send(_PATTERN[sent % 251 :])
                quiet = 0
        return quiet > 20

    site.until(stuffed)
    (connection,) = site.connections
    assert connection.to_guest.held <= max(splice.SMALL, splice.PIPE_BYTES)
    # The other direction is not delayed.
    guest.sock.send(b"wait a moment")
    site.until(lambda: endpoint.has(b"wait a moment"))

    def drained() -> bool:
        guest.read()
        return len(guest.arrived) >= sent

    site.until(drained)
    assert guest.arrived == (_PATTERN * (sent // len(_PATTERN) + 1))[:sent]


def test_bytes_that_did_not_fit_are_tried_again_before_the_socket_is_polled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer on this host takes bytes while send(2) still runs, which makes room for more."""
    guest, endpoint = site.both()
    (connection,) = site.connections
    connection.to_guest.destination.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    answer = noise(40_000)
    assert endpoint.sock.send(answer) == len(answer)
    polled_for: list[int] = []
    modify = Loop.modify

    def note(loop: Loop, fd: int, mask: int) -> None:
        polled_for.append(mask)
        modify(loop, fd, mask)

    monkeypatch.setattr(Loop, "modify", note)
    site.until(lambda: guest.has(answer))
    assert not polled_for


class Watch:
    """Records the events that connections get."""

    def __init__(self, site: Site, patch: pytest.MonkeyPatch) -> None:
        self.site = site
        self.events: list[int] = []
        handle = Connection.on_event

        def note(connection: Connection, fd: int, mask: int) -> None:
            self.events.append(mask)
            handle(connection, fd, mask)

        patch.setattr(Connection, "on_event", note)

    def quiet(self) -> bool:
        self.events.clear()
        turns = iter(range(10))
        self.site.until(lambda: next(turns, None) is None)
        return not self.events

    def comes_to_rest(self) -> bool:
        # It takes a while, because the kernel lets buffers grow. A loop that spins never comes to rest.
        return any(self.quiet() for _ in range(100))

    def stuff(self, sender: Far, mover: Mover) -> None:
        """Send until the connection holds bytes that nobody reads."""
        while not mover.held:
            with suppress(BlockingIOError):
                sender.sock.send(bytes(65536))
            assert self.comes_to_rest()


def test_waiting_for_either_side_costs_no_events(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, endpoint = site.both()
    (connection,) = site.connections
    watch = Watch(site, monkeypatch)
    assert watch.comes_to_rest()
    guest.sock.shutdown(socket.SHUT_WR)
    site.until(endpoint.is_at_end)
    assert watch.comes_to_rest()
    watch.stuff(endpoint, connection.to_guest)
    endpoint.sock.shutdown(socket.SHUT_WR)
    assert watch.comes_to_rest()
    assert connection.to_guest.held


@pytest.mark.parametrize("who", ["guest", "endpoint"])
def test_a_side_that_has_ended_costs_no_events_while_its_last_bytes_wait(
    site: Site, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    guest, endpoint = site.both()
    (connection,) = site.connections
    watch = Watch(site, monkeypatch)
    done, other = (guest, endpoint) if who == "guest" else (endpoint, guest)
    mover = connection.to_endpoint if who == "guest" else connection.to_guest
    other.sock.shutdown(socket.SHUT_WR)
    site.until(done.is_at_end)
    watch.stuff(done, mover)
    done.sock.shutdown(socket.SHUT_WR)
    # The socket is closed in both directions, which a level-triggered poll would report for ever.
    poll = select.poll()
    poll.register(mover.source, 0)
    wait_for(lambda: bool(poll.poll(0)))
    assert watch.comes_to_rest()
    assert mover.held
    site.until(other.is_at_end)
    site.until_over()


# Ends


def test_fin_from_the_guest_leaves_the_other_direction_open(site: Site) -> None:
    guest, endpoint = site.both()
    guest.sock.send(b"request")
    guest.sock.shutdown(socket.SHUT_WR)
    site.until(lambda: endpoint.has(b"request") and endpoint.is_at_end())
    assert len(site.connections) == 1
    endpoint.sock.send(b"part one, ")
    site.until(lambda: guest.has(b"part one, "))
    endpoint.sock.send(b"part two")
    endpoint.sock.shutdown(socket.SHUT_WR)
    site.until(lambda: guest.has(b"part one, part two") and guest.is_at_end())
    site.until_over()
    assert site.target.read().last_error == ""


def test_fin_from_the_endpoint_leaves_the_other_direction_open(site: Site) -> None:
    guest, endpoint = site.both()
    endpoint.sock.send(b"only this")
    endpoint.sock.shutdown(socket.SHUT_WR)
    site.until(lambda: guest.has(b"only this") and guest.is_at_end())
    assert len(site.connections) == 1
    guest.sock.send(b"thanks")
    site.until(lambda: endpoint.has(b"thanks"))
    guest.sock.shutdown(socket.SHUT_WR)
    site.until(endpoint.is_at_end)
    site.until_over()
    assert site.target.read().last_error == ""


def test_a_reset_by_the_guest_is_a_reset_for_the_endpoint(site: Site) -> None:
    guest, endpoint = site.both()
    guest.sock.send(b"hello")
    site.until(lambda: endpoint.has(b"hello"))
    reset(guest.sock)
    site.until(endpoint.is_reset)
    assert len(site.connections) == 0
    assert site.target.read().last_error == ""


def test_a_reset_by_the_endpoint_is_a_reset_for_the_guest(site: Site) -> None:
    guest, endpoint = site.both()
    endpoint.sock.send(b"hello")
    site.until(lambda: guest.has(b"hello"))
    reset(endpoint.sock)
    site.until(guest.is_reset)
    assert len(site.connections) == 0
    assert "reset by endpoint" in site.target.read().last_error


@pytest.mark.parametrize("who", ["guest", "endpoint"])
def test_a_reset_is_noticed_while_its_bulk_waits_for_a_side_that_ended_and_does_not_read(
    site: Site, who: str
) -> None:
    guest, endpoint = site.both()
    (connection,) = site.connections
    sender, other = (guest, endpoint) if who == "guest" else (endpoint, guest)
    mover = connection.to_endpoint if who == "guest" else connection.to_guest
    other.sock.shutdown(socket.SHUT_WR)
    site.until(sender.is_at_end)

    def stuffed() -> bool:
        with suppress(BlockingIOError):
            sender.sock.send(bytes(65536))
        return mover.held > 0

    site.until(stuffed)
    reset(sender.sock)
    site.until_over()
    poll = select.poll()
    poll.register(other.sock, 0)
    wait_for(lambda: bool(poll.poll(0)))  # a read would return the unread bytes first


def test_a_connection_that_the_guest_has_reset_already_ends_at_once(site: Site) -> None:
    far, near = tcp_pair()
    reset(far)
    wait_for(lambda: bool(select.select([near], [], [], 0)[0]))
    site.connections.accept(site.target, socket.SocketType(fileno=near.detach()), PEER)
    assert not site.connections
    assert site.target.read().open == 0


def test_bytes_before_a_reset_of_the_endpoint_arrive_although_a_write_fails_first(site: Site) -> None:
    guest, endpoint = site.both()
    guest.sock.send(b"upload, part 1")
    turns = iter(range(3))
    site.until(lambda: next(turns, None) is None)
    guest.sock.send(b"upload, part 2")  # so that the guest's event comes first
    endpoint.sock.send(b"413 Content Too Large")
    endpoint.sock.close()  # with bytes unread: a reset
    site.until(lambda: guest.has(b"413 Content Too Large"))
    site.until(guest.is_reset)


def test_bytes_before_a_reset_arrive_although_the_dial_was_not_noticed_yet(site: Site) -> None:
    guest = site.guest()
    wait_for(lambda: bool(select.select([site.server], [], [], 0)[0]))
    endpoint, _ = site.server.accept()
    endpoint.send(b"421 Too many connections")
    reset(endpoint)
    site.until(lambda: guest.has(b"421 Too many connections"))
    site.until(guest.is_reset)


@pytest.mark.parametrize("who", ["guest", "endpoint"])
def test_bulk_goes_on_behind_an_urgent_byte(site: Site, who: str) -> None:
    """splice(2) returns 0 at an urgent byte. The byte is lost, as for any program that does not read it."""
    guest, endpoint = site.both()
    (connection,) = site.connections
    sender, receiver = (guest, endpoint) if who == "guest" else (endpoint, guest)
    source = (connection.to_endpoint if who == "guest" else connection.to_guest).source
    data = noise(2 * splice.SMALL)
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * splice.SMALL)
    sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * splice.SMALL)
    sender.sock.setblocking(True)
    sender.sock.sendall(data)
    sender.sock.send(b"!", socket.MSG_OOB)
    sender.sock.sendall(data)
    sender.sock.shutdown(socket.SHUT_WR)
    # splice(2) returns 0 only if all bytes have arrived, with FIN.
    wait_for(lambda: source.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSE_WAIT)
    site.until(receiver.is_at_end)
    assert receiver.arrived == data * 2


@pytest.mark.parametrize("who", ["guest", "endpoint"])
def test_a_reset_after_a_half_close_still_arrives(site: Site, who: str) -> None:
    guest, endpoint = site.both()
    ends, other = (guest, endpoint) if who == "guest" else (endpoint, guest)
    ends.sock.shutdown(socket.SHUT_WR)
    site.until(other.is_at_end)
    other.eof = False
    reset(ends.sock)
    site.until_over()
    # The other end has read FIN already, so only a write fails.
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        write_until_error(other.sock)


def write_until_error(sock: socket.socket) -> None:
    sock.setblocking(True)
    wait_for(lambda: not sock.send(b"x"))


@pytest.mark.parametrize("sender", ["guest", "endpoint"])
def test_a_reset_with_bytes_in_a_pipe_gives_the_pipe_back(site: Site, sender: str) -> None:
    guest, endpoint = site.both()
    sends, resets = (guest, endpoint) if sender == "guest" else (endpoint, guest)
    turns = iter(range(50))

    def stuffed() -> bool:
        with suppress(BlockingIOError):
            while True:
                sends.sock.send(bytes(1 << 20))
        return next(turns, None) is None

    site.until(stuffed)
    assert site.connections.pipes.lent == 1
    reset(resets.sock)
    site.until(sends.is_reset)
    assert site.connections.pipes.lent == 0


def test_bytes_that_the_endpoint_sent_before_its_reset_reach_the_guest(site: Site) -> None:
    guest, endpoint = site.both()
    guest.sock.send(b"an upload too large")
    site.until(lambda: bool(select.select([endpoint.sock], [], [], 0)[0]))
    # A server that answers without reading the request: its close is a reset (RFC 2525, 2.17).
    endpoint.sock.send(b"413 Content Too Large")
    endpoint.sock.close()
    site.until_over()
    guest.read()
    assert guest.arrived == b"413 Content Too Large"


# Dialing


def test_an_endpoint_that_refuses_resets_the_guest_at_once(site: Site) -> None:
    # The socket is bound, so that no other program gets the port, but does not listen.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = site.target_for(closed, timeout=3600)
        guest = site.guest(target)
        site.until(guest.is_reset)
    assert target.read().last_error == f"endpoint {target.service.endpoint} refused"
    assert target.read().last_error_at > 0
    assert (target.read().open, target.read().total, len(site.connections)) == (0, 1, 0)


def test_an_endpoint_that_refuses_resets_a_guest_that_has_sent_and_ended(site: Site) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        far, near = tcp_pair()
        site.opened.append(far)
        far.sendall(b"anyone there?")
        far.shutdown(socket.SHUT_WR)
        site.connections.accept(site.target_for(closed), socket.SocketType(fileno=near.detach()), PEER)
        site.until(Far(far).is_reset)


def test_an_endpoint_that_connect_refuses_to_dial_resets_the_guest(site: Site) -> None:
    # A broadcast address: connect(2) itself fails, and nothing is sent.
    target = Target("br0", Service(ServiceKey(5030), Endpoint("255.255.255.255", 9)))
    guest = site.guest(target)
    site.until(guest.is_reset)
    assert target.read().last_error.startswith("endpoint 255.255.255.255:9 ")
    assert (target.read().open, target.read().total, len(site.connections)) == (0, 1, 0)


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener whose backlog is full: further handshakes get no answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        wait_for(lambda: bool(select.select([server], [], [], 0)[0]))
        yield server
        for each in fillers:
            each.close()


def test_an_endpoint_that_does_not_answer_in_time_resets_the_guest(site: Site, silent: socket.socket) -> None:
    target = site.target_for(silent, timeout=0.01)
    guest = site.guest(target)
    assert target.read().open == 1
    site.until(guest.is_reset)
    assert target.read().last_error == f"endpoint {target.service.endpoint} timed out"
    assert (target.read().open, target.read().total, len(site.connections)) == (0, 1, 0)


@pytest.mark.parametrize("ticks", [0.1, 1.5])
def test_connect_timeouts_are_noticed_one_after_the_other(
    site: Site, silent: socket.socket, ticks: float
) -> None:
    target = site.target_for(silent, timeout=ticks * Connections.TICK)
    for _ in range(2):
        site.until(site.guest(target).is_reset)


def test_each_connection_has_its_own_timeout_and_delays_no_other(site: Site, silent: socket.socket) -> None:
    patient = site.guest(site.target_for(silent, timeout=3600))
    hasty = site.guest(site.target_for(silent, timeout=0.01))
    served, endpoint = site.both()
    served.sock.send(b"x")
    site.until(lambda: endpoint.has(b"x"))
    site.until(hasty.is_reset)
    patient.read()
    assert (patient.error, patient.eof) == (None, False)
    assert len(site.connections) == 2


def test_bytes_of_the_guest_wait_for_an_endpoint_that_answers_late(site: Site, silent: socket.socket) -> None:
    site.guest(site.target_for(silent, timeout=3600), first=b"early")
    (connection,) = site.connections
    assert (connection.dialing, connection.to_endpoint.held) == (True, 5)
    silent.setblocking(False)

    def answered() -> bool:
        with suppress(BlockingIOError):
            silent.accept()[0].close()  # room for the next try of the handshake
        return not connection.dialing

    site.until(answered)
    assert connection.to_endpoint.held == 0


def test_a_refusal_is_noticed_at_once_if_the_guest_has_sent_already(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        target = site.target_for(closed)
    guest = site.guest(target, first=b"early")
    assert target.read().open == 0
    assert "refused" in target.read().last_error
    site.until(guest.is_reset)


def test_a_dialed_connection_is_not_ended_by_its_connect_timeout(site: Site) -> None:
    guest = site.guest(site.target_for(site.server, timeout=0.2))
    endpoint = site.endpoint()
    guest.sock.send(b"x")
    site.until(lambda: endpoint.has(b"x"))
    end = time.monotonic() + 0.2 + 2 * Connections.TICK
    site.until(lambda: time.monotonic() > end)
    endpoint.sock.send(b"still here")
    site.until(lambda: guest.has(b"still here"))


def test_a_dial_that_succeeded_while_the_process_was_stopped_has_not_timed_out(site: Site) -> None:
    guest = site.guest(site.target_for(site.server, timeout=0.001))
    time.sleep(0.01)
    site.connections._expire()  # as in a turn of the loop that fetched its events before
    endpoint = site.endpoint()
    guest.sock.send(b"x")
    site.until(lambda: endpoint.has(b"x"))


def test_a_guest_that_resets_during_the_dial_is_noticed_after_it(site: Site) -> None:
    guest = site.guest()
    reset(guest.sock)
    endpoint = site.endpoint()
    site.until(endpoint.is_reset)
    site.until_over()


def test_a_guest_that_gives_up_during_the_dial_of_a_silent_endpoint_is_closed_at_the_timeout(
    site: Site, silent: socket.socket
) -> None:
    guest = site.guest(site.target_for(silent, timeout=0.01))
    reset(guest.sock)
    site.until_over()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.ETIMEDOUT, "timed out"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.ENETDOWN, "unreachable"),
        (errno.ENOENT, "missing"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_the_reason_of_a_failed_dial_is_in_words(number: int, words: str) -> None:
    assert dial_failure(number) == words


# Counts


def test_a_target_counts_connections_and_the_bytes_of_those_that_ended(site: Site) -> None:
    guest, endpoint = site.both()
    assert (site.target.read().open, site.target.read().total) == (1, 1)
    guest.sock.send(b"12345")
    site.until(lambda: endpoint.has(b"12345"))
    endpoint.sock.send(b"123")
    site.until(lambda: guest.has(b"123"))
    assert (site.target.read().to_endpoint, site.target.read().to_guest) == (0, 0)
    (connection,) = site.connections
    assert (connection.to_endpoint.moved, connection.to_guest.moved) == (5, 3)
    guest.sock.close()
    endpoint.sock.close()
    site.until_over()
    assert (site.target.read().open, site.target.read().total) == (0, 1)
    assert (site.target.read().to_endpoint, site.target.read().to_guest) == (5, 3)


def test_a_changed_endpoint_is_dialled_by_the_next_connection(site: Site) -> None:
    guest, endpoint = site.both()
    (connection,) = site.connections
    with socket.create_server(("127.0.0.1", 0)) as moved:
        moved.setblocking(False)
        site.target.service = Service(ServiceKey(5030), Endpoint(*moved.getsockname()))
        guest.sock.send(b"old one")
        site.until(lambda: endpoint.has(b"old one"))
        assert connection.dialed == Endpoint(*site.server.getsockname())
        site.guest()
        site.until(lambda: bool(select.select([moved], [], [], 0)[0]))


def test_aborting_a_bridge_resets_its_connections_and_no_others(site: Site) -> None:
    other_target = Target("br1", site.target.service)
    guest, endpoint = site.both()
    other_guest, other_endpoint = site.guest(other_target), site.endpoint()
    site.connections.abort_bridge("br0", "bridge removed")
    site.until(guest.is_reset)
    site.until(endpoint.is_reset)
    other_guest.sock.send(b"untouched")
    site.until(lambda: other_endpoint.has(b"untouched"))
    assert (site.target.read().open, other_target.read().open) == (0, 1)


def test_aborting_all_includes_connections_that_are_being_dialled(site: Site, silent: socket.socket) -> None:
    target = site.target_for(silent, timeout=Connections.TICK / 2)
    guest, endpoint = site.both()
    dialing = site.guest(target)  # last: the loop does not run before the abort, so it cannot time out
    site.connections.abort_all("stopped")
    for far in (dialing, guest, endpoint):
        site.until(far.is_reset)
    # Its connect timeout must not fire later.
    end = time.monotonic() + 2 * Connections.TICK
    site.until(lambda: time.monotonic() > end)
    assert target.read().last_error == ""
    assert (target.read().open, len(site.connections)) == (0, 0)


def test_the_guest_is_named_by_address_and_port(site: Site) -> None:
    site.both()
    (connection,) = site.connections
    assert connection.guest_name == "10.0.0.7:40000"


def test_the_options_of_a_live_connection_are_set_on_the_endpoint_side(site: Site) -> None:
    _, endpoint = site.both()
    (connection,) = site.connections
    side = connection.to_endpoint.destination
    assert side.getpeername() == endpoint.sock.getsockname()
    assert side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_first_sweep_has_the_kernel_watch_the_endpoint(site: Site) -> None:
    site.both()
    (connection,) = site.connections
    side = connection.to_endpoint.destination
    connection.sweep(time.monotonic(), None)
    assert side.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    timeout = connection.target.service.user_timeout
    assert side.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == timeout * 1000


def congestion_control(sock: socket.SocketType) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def test_a_connection_to_an_endpoint_on_this_host_is_not_paced(site: Site) -> None:
    site.both()
    (connection,) = site.connections
    assert connection.to_guest.near
    assert congestion_control(connection.to_guest.source) == "reno"


def test_addresses_of_this_host_are_near_and_are_looked_up_again_after_a_reload(site: Site) -> None:
    host = site.connections.host
    assert host.has("127.0.0.1")
    assert not host.has("192.0.2.1")
    host._near["192.0.2.1"] = True  # as if the address had moved to another host since
    assert host.has("192.0.2.1")
    host.forget((1, 65535))
    assert not host.has("192.0.2.1")


# Nothing is left behind


def test_500_connections_leave_no_descriptor_behind(site: Site, silent: socket.socket) -> None:
    refused = socket.socket()
    refused.bind(("127.0.0.1", 0))
    site.opened.append(refused)
    entries = [
        site.target,
        site.target_for(refused),
        Target("br0", Service(ServiceKey(1), Endpoint("255.255.255.255", 9))),
        site.target_for(silent, timeout=0.001),
    ]
    gc.collect()
    before = descriptors()

    for number in range(500):
        kind = number % 8
        target = entries[kind if kind < len(entries) and number < 400 else 0]
        guest = site.guest(target, first=b"x" if number % 3 else b"")
        if target is site.target:
            endpoint = site.endpoint()
            guest.sock.send(b"y")
            if number % 5 == 0:
                reset(guest.sock)
            elif number % 7 == 0:
                reset(endpoint.sock)
            guest.sock.close()
            endpoint.sock.close()
            del site.opened[-2:]
        else:
            guest.sock.close()
            site.opened.pop()
    site.until_over()
    gc.collect()
    assert descriptors() == before
    assert [each.read().open for each in entries] == [0, 0, 0, 0]
    assert sum(each.read().total for each in entries) == 500


def test_a_missing_descriptor_for_the_endpoint_resets_the_guest_and_is_reported(site: Site) -> None:
    far, near = tcp_pair()
    site.opened.append(far)
    guest = socket.SocketType(fileno=near.detach())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        site.connections.accept(site.target, guest, PEER)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    wait_for(Far(far).is_reset)
    assert "Too many open files" in site.target.read().last_error
    assert (site.target.read().open, len(site.connections)) == (0, 0)


# The death of the process


def serve_in_child(site: Site, near: socket.socket) -> int:
    """Let another process, which is returned, serve a guest. Its socket is as a relay makes it."""
    tcp.reset_on_close(near)
    pid = os.fork()
    if pid == 0:
        try:
            for each in site.opened[1:]:
                each.close()  # the guest's own side
            loop = Loop()
            Connections(loop, Log()).accept(site.target, socket.SocketType(fileno=near.detach()), PEER)
            loop.run()
        finally:
            os._exit(1)
    near.close()
    return pid


@pytest.mark.parametrize("ended", ["neither", "guest", "endpoint"])
def test_the_death_of_the_process_is_a_reset_and_never_an_end_of_file(site: Site, ended: str) -> None:
    far, near = tcp_pair()
    site.opened.append(far)
    pid = serve_in_child(site, near)
    try:
        site.server.setblocking(True)
        endpoint, _ = site.server.accept()
        site.opened.append(endpoint)
        sides = {"guest": far, "endpoint": endpoint}
        far.sendall(b"question")
        assert endpoint.recv(100) == b"question"
        endpoint.sendall(b"half an answer")
        assert far.recv(100) == b"half an answer"
        if ended in sides:
            # The other side has got its end of file. This one waits for more, and must not get one.
            sides[ended].shutdown(socket.SHUT_WR)
            (other,) = (each for name, each in sides.items() if name != ended)
            assert other.recv(1) == b""
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for name, side in sides.items():
        if ended in ("neither", name):
            with pytest.raises(ConnectionResetError):
                side.recv(1)


@pytest.mark.parametrize("who", ["guest", "endpoint"])
def test_after_an_orderly_end_a_slow_reader_gets_every_byte(site: Site, who: str) -> None:
    far, near = tcp_pair()
    site.opened.append(far)
    tcp.reset_on_close(near)
    site.connections.accept(site.target, socket.SocketType(fileno=near.detach()), PEER)
    guest, endpoint = Far(far), site.endpoint()
    (connection,) = site.connections
    slow, sender = (guest, endpoint) if who == "guest" else (endpoint, guest)
    mover = connection.to_guest if who == "guest" else connection.to_endpoint
    mover.destination.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    data = noise(150_000)
    slow.sock.shutdown(socket.SHUT_WR)
    rest = memoryview(data)

    def sent() -> bool:
        nonlocal rest
        with suppress(BlockingIOError):
            rest = rest[sender.sock.send(rest) :] if rest else rest
        return not rest

    site.until(sent)
    sender.sock.shutdown(socket.SHUT_WR)
    site.until_over()
    site.until(lambda: True)  # now both sockets of this process are closed
    site.until(lambda: slow.has(data) and slow.is_at_end())
