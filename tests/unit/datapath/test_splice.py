"""One direction: all bytes arrive in order, copied or spliced, and FIN comes after the last byte."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sockets import descriptors, noise, reset, tcp_pair, wait_for
from tproxy.datapath import splice
from tproxy.datapath.splice import Mover, Pipe, PipePool, SideLost
from tproxy.kernel import tcp

Pair = Callable[[], tuple[socket.socket, socket.socket]]


class Recorder(socket.socket):
    """A socket that records the calls made on it, and passes them on to the kernel."""

    calls: list[str]

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.calls = []

    def recv_into(self, *arguments) -> int:  # type: ignore[no-untyped-def]  # as socket takes them
        self.calls.append("recv")
        return super().recv_into(*arguments)

    def send(self, *arguments) -> int:  # type: ignore[no-untyped-def]  # as socket takes them
        self.calls.append("send")
        return super().send(*arguments)

    def shutdown(self, how: int) -> None:
        self.calls.append("shutdown")
        super().shutdown(how)


class Rig:
    """sender -> source => Mover => destination -> receiver."""

    def __init__(self, pair: Pair, pool: PipePool | None = None) -> None:
        self.sender, source = pair()
        destination, self.receiver = pair()
        self.source, self.destination = Recorder(source), Recorder(destination)
        self.pool = pool or PipePool()
        self.mover = Mover(self.source, self.destination)
        self.arrived = b""
        self.arrived_eof = False
        self.sender.setblocking(False)
        self.receiver.setblocking(False)

    def close(self) -> None:
        self.mover.release(self.pool)
        for each in (self.sender, self.source, self.destination, self.receiver):
            each.close()

    def pump(self, *, peer_closed: bool = False) -> None:
        self.mover.pump(self.pool, peer_closed)

    def drain(self, most: int = 1 << 30) -> None:
        """Let the receiver read all that has arrived, but not more than ``most`` bytes."""
        try:
            while most > 0 and (data := self.receiver.recv(min(most, 1 << 20))):
                self.arrived += data
                most -= len(data)
            self.arrived_eof = self.arrived_eof or most > 0
        except BlockingIOError:
            pass

    def source_readable(self) -> bool:
        return bool(select.select([self.source], [], [], 0)[0])

    def have_queued(self, data: bytes) -> None:
        """Send, and wait until all of it can be read at the source."""
        self.source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.destination.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.sender.setblocking(True)
        self.sender.sendall(data)
        self.sender.setblocking(False)
        wait_for(lambda: self._queued() == len(data))

    def _queued(self) -> int:
        (count,) = struct.unpack("i", fcntl.ioctl(self.source, termios.FIONREAD, bytes(4)))
        return int(count)

    def stuff(self) -> int:
        """Send and pump, without reading, until nothing can be sent any more. Return the bytes sent."""
        sent = 0
        for _ in range(10_000):
            before = sent, self.mover.moved, self.mover.held
            try:
                while True:
                    sent += self.sender.send(_PATTERN[sent % 251 :][: 1 << 18])
            except BlockingIOError:
                pass
            self.pump()
            if before == (sent, self.mover.moved, self.mover.held) and not self.mover.wants_read:
                return sent
        raise AssertionError("there is no backpressure")


# Byte n of what stuff() sends is n % 251.
_PATTERN = bytes(range(251)) * 1100


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(params=[socket.socketpair, tcp_pair], ids=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Pair:
    made: Pair = request.param
    return made


@pytest.fixture
def rig(pair: Pair) -> Iterator[Rig]:
    made = Rig(pair)
    yield made
    made.close()


@pytest.fixture
def tcp_rig() -> Iterator[Rig]:
    made = Rig(tcp_pair)
    yield made
    made.close()


def move_all(rig: Rig, data: bytes) -> None:
    """Send all of ``data`` and the end of file, and pump until that has arrived."""
    unsent, fin = memoryview(data), False

    def step() -> bool:
        nonlocal unsent, fin
        try:
            while unsent:
                unsent = unsent[rig.sender.send(unsent[: 1 << 18]) :]
            if not fin:
                rig.sender.shutdown(socket.SHUT_WR)
                fin = True
        except BlockingIOError:
            pass
        rig.pump()
        rig.drain()
        return rig.arrived_eof

    wait_for(step)


# Small messages


def test_a_small_message_goes_by_one_recv_and_one_send_and_no_pipe(rig: Rig) -> None:
    rig.sender.sendall(b"GET / HTTP/1.0\r\n\r\n")
    wait_for(rig.source_readable)
    before = descriptors()
    rig.pump()
    assert (rig.source.calls, rig.destination.calls) == (["recv"], ["send"])
    assert descriptors() == before

    def arrived() -> bool:
        rig.drain()
        return rig.arrived == b"GET / HTTP/1.0\r\n\r\n"

    wait_for(arrived)
    assert (rig.mover.moved, rig.mover.held) == (18, 0)


def test_pumping_with_nothing_to_read_changes_nothing(rig: Rig) -> None:
    rig.pump()
    assert rig.source.calls == ["recv"]
    assert rig.destination.calls == []
    assert rig.mover.wants_read


def test_a_single_message_is_passed_on_with_one_recv_and_one_send(rig: Rig) -> None:
    rig.have_queued(b"a message")
    assert rig.mover.pass_on(rig.pool)
    assert rig.source.calls + rig.destination.calls == ["recv", "send"]
    assert rig.mover.moved == len(b"a message")
    wait_for(lambda: rig.drain() or bool(rig.arrived))  # type: ignore[func-returns-value]  # None: look on
    assert rig.arrived == b"a message"


@pytest.mark.parametrize("what", ["nothing", "the end", "bulk", "a full destination"])
def test_everything_but_a_single_message_is_left_to_pump_and_no_byte_is_lost(rig: Rig, what: str) -> None:
    before, expected = 0, b""
    if what == "bulk":
        expected = noise(splice.SMALL + 1000)
        rig.have_queued(expected)
    elif what == "the end":
        rig.sender.shutdown(socket.SHUT_WR)
        wait_for(rig.source_readable)
    elif what == "a full destination":
        with suppress(BlockingIOError):
            while True:
                before += rig.destination.send(bytes(4096), socket.MSG_DONTWAIT)
        expected = b"a message"
        rig.sender.sendall(expected)
        wait_for(rig.source_readable)
    assert not rig.mover.pass_on(rig.pool)
    # A message of a few bytes more than the buffer holds is bulk already, and is not copied twice.
    assert rig.pool.lent == (what == "bulk")
    rig.pump()
    assert rig.mover.fin_sent == (what == "the end")
    if what != "the end":
        rig.sender.shutdown(socket.SHUT_WR)
    wait_for(lambda: rig.pump() or rig.drain() or rig.arrived_eof)  # type: ignore[func-returns-value]  # likewise
    assert rig.arrived == bytes(before) + expected


def test_with_the_end_of_file_announced_one_pump_moves_message_and_fin(rig: Rig) -> None:
    rig.sender.sendall(b"last words")
    rig.sender.shutdown(socket.SHUT_WR)
    wait_for(rig.source_readable)
    await_end(rig.source)
    rig.pump(peer_closed=True)
    assert rig.mover.fin_sent
    wait_for(lambda: rig.drain() or rig.arrived_eof)  # type: ignore[func-returns-value]  # None: look on
    assert rig.arrived == b"last words"


def await_end(sock: socket.socket) -> None:
    """Wait until FIN has arrived behind the data, which EPOLLRDHUP tells."""
    with select.epoll() as watch:
        watch.register(sock, select.EPOLLRDHUP)
        wait_for(lambda: bool(watch.poll(0)))


def test_the_last_bytes_and_fin_go_in_one_packet(tcp_rig: Rig) -> None:
    tcp_rig.sender.sendall(b"last words")
    tcp_rig.sender.shutdown(socket.SHUT_WR)
    await_end(tcp_rig.source)
    before = segments_received(tcp_rig.receiver)
    tcp_rig.pump(peer_closed=True)
    wait_for(lambda: tcp_rig.drain() or tcp_rig.arrived_eof)  # type: ignore[func-returns-value]  # None: look on
    assert tcp_rig.arrived == b"last words"
    assert segments_received(tcp_rig.receiver) - before == 1


def segments_received(sock: socket.socket) -> int:
    """Return ``tcpi_segs_in`` of struct tcp_info, <linux/tcp.h>."""
    return int(struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 140)[0])


def test_bytes_before_a_reset_in_place_of_the_end_of_file_arrive(tcp_rig: Rig) -> None:
    """The bytes, sent with MSG_MORE, must not wait in the destination for a FIN that never comes."""
    tcp_rig.sender.sendall(b"last words")
    wait_for(tcp_rig.source_readable)
    reset(tcp_rig.sender)
    with pytest.raises(SideLost):
        tcp_rig.pump(peer_closed=True)
    reset(tcp_rig.destination)
    wait_for(lambda: bool(select.select([tcp_rig.receiver], [], [], 0)[0]))
    assert tcp_rig.receiver.recv(100) == b"last words"


def test_the_rest_of_a_message_that_does_not_fit_is_kept_and_sent_first(rig: Rig) -> None:
    message = noise(20_000)
    sent = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.pool, "take", lambda: pytest.fail("a message needs no pipe"))
        while not rig.mover.held:
            rig.sender.sendall(message)
            sent += 1
            wait_for(rig.source_readable)
            rig.pump()
    assert 0 < rig.mover.held <= splice.SMALL
    assert not rig.mover.wants_read

    def step() -> bool:
        rig.drain()
        rig.pump()
        return len(rig.arrived) == sent * len(message)

    wait_for(step)
    assert rig.arrived == message * sent
    assert rig.mover.held == 0


# Bulk


def test_bulk_uses_a_pipe_and_gives_it_back_when_the_source_has_no_more(rig: Rig) -> None:
    data = noise(2 * splice.SMALL)
    rig.have_queued(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "ROUNDS", 1)  # to see the state in between
        rig.pump()
    assert rig.pool.lent == 1

    def step() -> bool:
        rig.pump()
        rig.drain()
        return len(rig.arrived) == len(data) and not rig.pool.lent

    wait_for(step)
    assert rig.arrived == data
    # The same pipe is lent again.
    before = descriptors()
    pipe = rig.pool.take()
    assert pipe is not None
    assert descriptors() == before
    rig.pool.give_back(pipe, empty=True)


def test_bulk_is_copied_once_and_spliced_from_then_on(rig: Rig) -> None:
    rig.have_queued(noise(2 * splice.SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "ROUNDS", 2)
        rig.pump()
    assert (rig.source.calls, rig.destination.calls) == (["recv"], ["send"])
    assert rig.mover.moved + rig.mover.held == 2 * splice.SMALL


@pytest.mark.parametrize("near", [True, False])
def test_the_receive_window_is_bounded_only_for_bulk_of_a_peer_nearby(tcp_rig: Rig, near: bool) -> None:
    def clamp() -> int:
        return tcp_rig.source.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)

    tcp_rig.mover.near = near
    tcp_rig.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 1 << 30)
    tcp_rig.sender.send(b"x")
    wait_for(tcp_rig.source_readable)
    tcp_rig.pump()
    assert clamp() > tcp.NEAR_WINDOW
    # Three times, because the kernel's own tuning raises the bound.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "ROUNDS", 1)
        for _ in range(3):
            tcp_rig.have_queued(bytes(2 * splice.SMALL))
            tcp_rig.pump()
            assert tcp_rig.pool.lent == 1
            tcp_rig.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 1 << 30)
            tcp_rig.pump()
            assert (clamp() == tcp.NEAR_WINDOW) is near
            tcp_rig.drain()


def test_a_message_that_just_fills_the_buffer_leaves_no_pipe_lent(rig: Rig) -> None:
    rig.have_queued(noise(splice.SMALL))
    rig.pump()
    assert rig.pool.lent == 0


def test_one_pump_ends_after_so_many_rounds(tcp_rig: Rig) -> None:
    rig = tcp_rig
    rounds = 0

    class Endless(Recorder):
        """Always fills the buffer, and counts the reads."""

        def recv_into(self, *arguments) -> int:  # type: ignore[no-untyped-def]  # as socket takes them
            nonlocal rounds
            rounds += 1
            return splice.SMALL

    class Devouring(Recorder):
        def send(self, data, *arguments) -> int:  # type: ignore[no-untyped-def]
            return len(data)

    mover = Mover(Endless(rig.sender), Devouring(rig.receiver))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.pool, "take", lambda: None)
        mover.pump(rig.pool, False)
    assert rounds == splice.ROUNDS
    for each in (mover.source, mover.destination):
        each.close()


def test_bulk_is_copied_when_all_pipes_are_lent(rig: Rig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "MAX_PIPES", 0)
        data = noise(3_000_000)
        move_all(rig, data)
    assert rig.arrived == data
    assert rig.pool.lent == 0


def test_bulk_is_copied_when_no_descriptor_is_left_for_a_pipe(rig: Rig) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        data = noise(1_000_000)
        move_all(rig, data)
        assert rig.pool.take() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert rig.arrived == data
    assert rig.pool.lent == 0


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(
        st.integers(1, 5000)
        | st.integers(splice.SMALL - 2, splice.SMALL + 2)
        | st.integers(splice.SMALL, 600_000),
        max_size=6,
    ),
    reads=st.lists(st.integers(0, 300_000), min_size=1, max_size=10),
    max_pipes=st.sampled_from([0, 1]),
    make=st.sampled_from([socket.socketpair, tcp_pair]),
)
def test_any_bytes_in_any_pieces_arrive_unchanged(
    sizes: list[int], reads: list[int], max_pipes: int, make: Pair
) -> None:
    rig = Rig(make)
    data = b"".join(map(noise, sizes))
    unsent = [memoryview(noise(size)) for size in sizes]
    turn = 0

    def step() -> bool:
        nonlocal turn
        turn += 1
        try:
            if unsent:
                unsent[0] = unsent[0][rig.sender.send(unsent[0]) :]
                if not unsent[0]:
                    unsent.pop(0)
            if not unsent:
                rig.sender.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        rig.pump()
        assert rig.mover.held <= max(splice.SMALL, splice.PIPE_BYTES)
        # At first the receiver reads little, then everything.
        rig.drain(reads[turn] if turn < len(reads) else 1 << 30)
        return rig.arrived_eof

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "MAX_PIPES", max_pipes)
        wait_for(step)
    assert rig.arrived == data
    assert rig.mover.moved == len(data)
    assert rig.pool.lent == 0
    assert rig.destination.calls.count("shutdown") == 1
    rig.close()


# Backpressure


@pytest.mark.parametrize("pipes", [0, 1], ids=["copying", "by pipe"])
def test_a_destination_that_takes_nothing_limits_the_bytes_held(rig: Rig, pipes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "MAX_PIPES", pipes)
        sent = rig.stuff()
        assert 0 < rig.mover.held <= (splice.PIPE_BYTES if pipes else splice.SMALL)
        assert not rig.mover.wants_read
        moved = rig.mover.moved
        rig.pump()
        assert rig.mover.moved == moved

        def step() -> bool:
            rig.drain()
            rig.pump()
            return len(rig.arrived) >= sent

        wait_for(step)
    assert rig.arrived == pattern(sent)
    assert rig.mover.held == 0


def test_fin_is_sent_after_the_bytes_held(rig: Rig) -> None:
    sent = rig.stuff()
    rig.sender.shutdown(socket.SHUT_WR)
    rig.pump(peer_closed=True)
    assert not rig.mover.fin_sent
    assert "shutdown" not in rig.destination.calls

    def step() -> bool:
        rig.drain()
        rig.pump()
        return rig.arrived_eof

    wait_for(step)
    assert rig.arrived == pattern(sent)
    assert rig.destination.calls.count("shutdown") == 1


# Half-close


def test_fin_is_sent_once_however_often_pump_is_called(rig: Rig) -> None:
    rig.sender.sendall(b"all there is")
    rig.sender.shutdown(socket.SHUT_WR)

    def step() -> bool:
        rig.pump()
        rig.drain()
        return rig.arrived_eof

    wait_for(step)
    for _ in range(3):
        rig.pump(peer_closed=True)
    assert rig.destination.calls.count("shutdown") == 1
    assert rig.arrived == b"all there is"
    assert (rig.mover.ended, rig.mover.fin_sent, rig.mover.wants_read) == (True, True, False)


def test_fin_of_one_direction_leaves_the_other_open(rig: Rig) -> None:
    back = Mover(rig.destination, rig.source)
    rig.sender.shutdown(socket.SHUT_WR)

    def forth_ended() -> bool:
        rig.pump()
        rig.drain()
        return rig.arrived_eof

    wait_for(forth_ended)
    rig.receiver.sendall(b"answer after your FIN")
    answer = b""

    def back_arrived() -> bool:
        nonlocal answer
        back.pump(rig.pool, False)
        with suppress(BlockingIOError):
            answer += rig.sender.recv(100)
        return answer == b"answer after your FIN"

    wait_for(back_arrived)
    assert not back.ended


def test_the_pipe_is_given_back_at_the_end_of_bulk(rig: Rig) -> None:
    data = noise(2_000_000)
    move_all(rig, data)
    assert rig.arrived == data
    assert rig.mover.fin_sent
    assert rig.pool.lent == 0


def test_fin_to_a_destination_that_has_reset_raises_nothing(tcp_rig: Rig) -> None:
    rig = tcp_rig
    reset(rig.receiver)
    poll = select.poll()
    poll.register(rig.destination, 0)
    wait_for(lambda: bool(poll.poll(0)))
    rig.sender.shutdown(socket.SHUT_WR)

    def step() -> bool:
        rig.pump()
        return rig.mover.fin_sent

    wait_for(step)


# Reading ahead


def test_bytes_read_ahead_are_held_and_sent_first(rig: Rig) -> None:
    rig.sender.sendall(b"one ")
    wait_for(rig.source_readable)
    rig.mover.read_ahead()
    assert (rig.mover.held, rig.mover.moved, rig.mover.wants_read) == (4, 0, False)
    rig.sender.sendall(b"two")

    def step() -> bool:
        rig.pump()
        rig.drain()
        return len(rig.arrived) == 7

    wait_for(step)
    assert rig.arrived == b"one two"


def test_reading_ahead_with_nothing_to_read_changes_nothing(rig: Rig) -> None:
    rig.mover.read_ahead()
    assert (rig.mover.held, rig.mover.ended, rig.mover.wants_read) == (0, False, True)


def test_reading_ahead_at_the_end_of_file_makes_fin_due(rig: Rig) -> None:
    rig.sender.close()
    wait_for(rig.source_readable)
    rig.mover.read_ahead()
    assert rig.mover.fin_due
    rig.pump()
    assert rig.destination.calls == ["shutdown"]


def test_reading_ahead_of_a_reset_names_the_source(tcp_rig: Rig) -> None:
    reset(tcp_rig.sender)
    wait_for(tcp_rig.source_readable)
    with pytest.raises(SideLost) as caught:
        tcp_rig.mover.read_ahead()
    assert (caught.value.side, caught.value.errno) == (tcp_rig.source, errno.ECONNRESET)


# Broken sides


def test_a_reset_of_the_source_names_the_source(tcp_rig: Rig) -> None:
    reset(tcp_rig.sender)
    wait_for(tcp_rig.source_readable)
    with pytest.raises(SideLost) as lost:
        tcp_rig.pump()
    assert lost.value.side is tcp_rig.source
    assert lost.value.errno == errno.ECONNRESET


def test_a_reset_of_the_destination_names_the_destination(tcp_rig: Rig) -> None:
    rig = tcp_rig
    reset(rig.receiver)
    watch = select.poll()
    watch.register(rig.destination, 0)
    wait_for(lambda: bool(watch.poll(0)))
    rig.sender.sendall(b"for nobody")
    wait_for(rig.source_readable)
    with pytest.raises(SideLost) as lost:
        rig.pump()
    assert lost.value.side is rig.destination
    assert lost.value.errno in (errno.ECONNRESET, errno.EPIPE)


@pytest.mark.parametrize("pipes", [0, 1], ids=["copying", "by pipe"])
def test_a_reset_of_the_destination_with_bytes_held_names_the_destination(tcp_rig: Rig, pipes: int) -> None:
    rig = tcp_rig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "MAX_PIPES", pipes)
        rig.stuff()
        assert rig.pool.lent == pipes
        reset(rig.receiver)
        watch = select.poll()
        watch.register(rig.destination, 0)
        wait_for(lambda: bool(watch.poll(0)))
        with pytest.raises(SideLost) as lost:
            rig.pump()
    assert lost.value.side is rig.destination
    assert lost.value.errno in (errno.ECONNRESET, errno.EPIPE)


def test_a_reset_of_the_source_during_bulk_names_the_source_and_returns_the_pipe(tcp_rig: Rig) -> None:
    rig = tcp_rig
    rig.stuff()
    assert rig.pool.lent == 1
    reset(rig.sender)

    def drain_until_lost() -> None:
        while True:
            rig.drain()
            rig.pump()

    with pytest.raises(SideLost) as lost:
        drain_until_lost()
    assert lost.value.side is rig.source
    rig.mover.release(rig.pool)
    assert rig.pool.lent == 0


# Pipes


def test_an_aborted_pipe_with_bytes_in_it_is_never_lent_again(tcp_rig: Rig) -> None:
    rig = tcp_rig
    rig.stuff()
    assert rig.pool.lent == 1
    assert rig.mover.held
    rig.mover.release(rig.pool)
    assert (rig.pool.lent, rig.mover.held) == (0, 0)
    pipe = rig.pool.take()
    assert pipe is not None
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 1)
    rig.pool.give_back(pipe, empty=True)


def test_releasing_closes_a_pipe_that_holds_bytes(tcp_rig: Rig) -> None:
    before = descriptors()
    tcp_rig.stuff()
    assert len(descriptors() - before) == 2
    tcp_rig.mover.release(tcp_rig.pool)
    assert descriptors() == before


def test_releasing_twice_gives_back_once(tcp_rig: Rig) -> None:
    tcp_rig.stuff()
    tcp_rig.mover.release(tcp_rig.pool)
    tcp_rig.mover.release(tcp_rig.pool)
    assert tcp_rig.pool.lent == 0


def test_a_pool_lends_no_more_than_its_limit_until_a_pipe_is_given_back() -> None:
    pool = PipePool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "MAX_PIPES", 2)
        one, two = pool.take(), pool.take()
        assert one is not None
        assert two is not None
        assert pool.take() is None
        pool.give_back(one, empty=True)
        assert pool.take() is one
        assert pool.take() is None
    one.close()
    two.close()


def test_a_pool_keeps_no_more_spare_pipes_than_its_limit() -> None:
    before = descriptors()
    pool = PipePool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "SPARE_PIPES", 1)
        pipes = [pool.take() for _ in range(3)]
        for pipe in pipes:
            assert pipe is not None
            pool.give_back(pipe, empty=True)
    assert len(descriptors() - before) == 2
    spare = pool.take()
    assert spare is not None
    assert spare is pipes[0]
    spare.close()
    assert descriptors() == before


def test_a_pipe_is_close_on_exec_never_blocks_and_knows_its_size() -> None:
    pipe = Pipe()
    try:
        assert [os.get_inheritable(each) for each in (pipe.reader, pipe.writer)] == [False, False]
        with pytest.raises(BlockingIOError):
            os.read(pipe.reader, 1)
        assert os.write(pipe.writer, bytes(2 * splice.PIPE_BYTES)) == pipe.size
    finally:
        pipe.close()
