"""The loop calls the right handlers, calls timers in order, and turns signals into calls."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.sockets import descriptors, run_until
from tproxy.kernel.loop import PEER_CLOSED, READ, WRITE, Loop


class Noted:
    """A handler that records its events, and then calls ``then``."""

    def __init__(self, then: Callable[[int], None] = lambda fd: None) -> None:
        self.events: list[tuple[int, int]] = []
        self.then = then

    def on_event(self, fd: int, mask: int) -> None:
        self.events.append((fd, mask))
        self.then(fd)


@pytest.fixture(params=[0.0, 0.002], ids=["sleepy", "alert"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    made = Loop(request.param)
    yield made
    made.close()


@pytest.fixture
def sockets() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    made: list[socket.socket] = []

    def pair() -> tuple[socket.socket, socket.socket]:
        both = socket.socketpair()
        made.extend(both)
        return both

    yield pair
    for each in made:
        each.close()


Pair = Callable[[], tuple[socket.socket, socket.socket]]


def one_batch(loop: Loop) -> None:
    """Run until everything that is pending now is handled."""
    loop.call_later(0, loop.stop)
    loop.run()


# Events


def test_a_handler_gets_its_descriptor_and_what_happened(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    handler = Noted(lambda fd: loop.stop())
    loop.add(one.fileno(), READ, handler)
    other.send(b"x")
    loop.run()
    assert handler.events == [(one.fileno(), READ)]


def test_data_that_is_left_unread_causes_another_event(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    handler = Noted()
    loop.add(one.fileno(), READ, handler)
    other.send(b"x")
    run_until(loop, lambda: len(handler.events) >= 3)


def test_the_mask_of_a_descriptor_can_be_changed(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    handler = Noted()
    loop.add(one.fileno(), READ, handler)
    one_batch(loop)
    assert handler.events == []
    loop.modify(one.fileno(), WRITE)
    one_batch(loop)
    assert handler.events == [(one.fileno(), WRITE)]
    other.send(b"x")
    loop.modify(one.fileno(), 0)
    one_batch(loop)
    assert len(handler.events) == 1


def test_the_end_of_file_is_reported_as_peer_closed(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    handler = Noted(lambda fd: loop.stop())
    loop.add(one.fileno(), READ | PEER_CLOSED, handler)
    other.shutdown(socket.SHUT_WR)
    loop.run()
    assert handler.events == [(one.fileno(), READ | PEER_CLOSED)]


def test_a_removed_descriptor_is_silent_stays_open_and_can_be_added_again(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    gone, new = Noted(), Noted()
    loop.add(one.fileno(), READ, gone)
    loop.remove(one.fileno())
    other.send(b"x")
    one_batch(loop)
    assert gone.events == []
    loop.add(one.fileno(), READ, new)
    one_batch(loop)
    assert (len(gone.events), len(new.events)) == (0, 1)
    assert one.recv(1) == b"x"


def test_adding_a_descriptor_that_cannot_be_watched_leaves_no_handler(loop: Loop, sockets: Pair) -> None:
    one, _ = sockets()
    fd = one.fileno()
    one.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add(fd, READ, Noted())
    one_batch(loop)


# Sleeping


class Looks:
    """Wraps a loop's epoll, and records the timeout of each poll."""

    def __init__(self, loop: Loop) -> None:
        self._epoll = loop._epoll
        self.timeouts: list[float] = []
        loop._epoll = self  # type: ignore[assignment]  # has what a running loop uses

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        return self._epoll.poll(timeout, most)

    def close(self) -> None:
        self._epoll.close()


ALERT, PERIOD = 0.05, 0.5


@pytest.fixture
def alert() -> Iterator[Loop]:
    made = Loop(ALERT)
    yield made
    made.close()


def test_an_alert_loop_polls_without_sleeping_while_single_events_come_fast(
    alert: Loop, sockets: Pair
) -> None:
    one, other = sockets()

    def read_and_go_on(fd: int) -> None:
        one.recv(1)
        if len(handler.events) < 5:
            other.send(b"x")

    handler = Noted(read_and_go_on)
    alert.add(one.fileno(), READ, handler)
    other.send(b"x")
    looks = Looks(alert)
    alert.call_later(PERIOD, alert.stop)
    alert.run()

    assert len(handler.events) == 5
    # It may sleep before the first event, polls for the other four, and sleeps again when no more come.
    assert looks.timeouts[0] > 0
    assert looks.timeouts[1:5] == [0] * 4
    assert sum(each > 0 for each in looks.timeouts) <= 3
    assert looks.timeouts[-1] > 0


def test_an_alert_loop_sleeps_after_several_events_at_once(alert: Loop, sockets: Pair) -> None:
    handler = Noted(lambda fd: alert.stop() if len(handler.events) >= 6 else None)
    for _ in range(2):
        one, other = sockets()
        alert.add(one.fileno(), READ, handler)  # it reads nothing, so the event comes again at once
        other.send(b"x")
    looks = Looks(alert)
    alert.run()

    assert looks.timeouts == [-1] * 3


def test_a_loop_that_is_not_alert_always_sleeps(sockets: Pair) -> None:
    loop = Loop()
    one, other = sockets()
    handler = Noted(lambda fd: loop.stop() if len(handler.events) == 5 else None)
    loop.add(one.fileno(), READ, handler)
    other.send(b"x")
    looks = Looks(loop)
    loop.run()
    loop.close()

    assert looks.timeouts == [-1] * 5


# Closing


def test_a_descriptor_removed_earlier_in_the_batch_gets_no_event(loop: Loop, sockets: Pair) -> None:
    pairs = [sockets(), sockets()]
    handlers: list[Noted] = []

    def remove_the_others(fd: int) -> None:
        for one, _ in pairs:
            if one.fileno() != fd:
                loop.remove(one.fileno())

    for one, other in pairs:
        handlers.append(Noted(remove_the_others))
        loop.add(one.fileno(), READ, handlers[-1])
        other.send(b"x")
    one_batch(loop)
    assert sorted(len(each.events) for each in handlers) == [0, 1]


@pytest.mark.parametrize("shared", [False, True])
def test_a_descriptor_closed_earlier_in_the_batch_gets_no_event(
    loop: Loop, sockets: Pair, shared: bool
) -> None:
    pairs = [sockets() for _ in range(5)]
    handlers: list[Noted] = []

    def close_the_others(fd: int) -> None:
        for one, _ in pairs:
            if one.fileno() not in (fd, -1):
                loop.close_later(one, shared=shared)

    for one, other in pairs:
        handlers.append(Noted(close_the_others))
        loop.add(one.fileno(), READ, handlers[-1])
        other.send(b"x")
    one_batch(loop)
    assert sorted(len(each.events) for each in handlers) == [0, 0, 0, 0, 1]
    assert sorted(one.fileno() == -1 for one, _ in pairs) == [False, True, True, True, True]


def test_a_descriptor_number_is_not_reused_while_the_batch_may_hold_events_for_it(
    loop: Loop, sockets: Pair
) -> None:
    pairs = [sockets(), sockets()]
    quiet, _ = sockets()
    stranger = Noted()
    strangers: list[int] = []

    def close_the_other_and_try_for_its_number(fd: int) -> None:
        (other,) = (one for one, _ in pairs if one.fileno() != fd)
        number = other.fileno()
        loop.close_later(other)
        # The lowest free number from this one on: the same one, if it were closed by now.
        strangers.append(fcntl.fcntl(quiet, fcntl.F_DUPFD_CLOEXEC, number))
        loop.add(strangers[0], READ, stranger)
        loop.stop()

    for one, other in pairs:
        loop.add(one.fileno(), READ, Noted(close_the_other_and_try_for_its_number))
        other.send(b"x")
    loop.run()
    os.close(strangers[0])
    assert len(strangers) == 1
    assert stranger.events == []


def test_closing_happens_after_the_batch_and_before_the_next_wait(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    seen: list[bool] = []

    def close(fd: int) -> None:
        one.recv(1)
        loop.close_later(one)
        seen.append(one.fileno() == fd)
        loop.stop()

    loop.add(one.fileno(), READ, Noted(close))
    other.send(b"x")
    loop.run()
    assert seen == [True]
    assert one.fileno() == -1
    assert other.recv(1) == b""


def test_a_descriptor_that_a_timer_closes_is_closed_without_another_event(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    loop.add(one.fileno(), READ, Noted())
    loop.call_later(0, lambda: loop.close_later(one))
    run_until(loop, lambda: one.fileno() == -1)
    assert other.recv(1) == b""


def test_close_later_before_the_loop_runs_needs_no_event(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    loop.close_later(one)
    loop.add(other.fileno(), READ, Noted(lambda fd: loop.stop()))  # sees the end of file
    loop.run()
    assert one.fileno() == -1


def test_a_descriptor_is_closed_only_once(loop: Loop, sockets: Pair) -> None:
    one, _ = sockets()
    closed: list[int] = []

    class Closable:
        def fileno(self) -> int:
            return one.fileno()

        def close(self) -> None:
            closed.append(1)

    loop.close_later(Closable())
    one_batch(loop)
    one_batch(loop)
    assert closed == [1]


def test_a_descriptor_that_was_never_watched_can_be_closed_later(loop: Loop, sockets: Pair) -> None:
    one, _ = sockets()
    loop.close_later(one, shared=True)
    one_batch(loop)
    assert one.fileno() == -1


def test_a_shared_descriptor_is_forgotten_although_a_copy_stays_open(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    quiet, _ = sockets()
    copy = one.dup()
    handler = Noted()
    loop.add(one.fileno(), READ, handler)
    number = one.fileno()
    loop.close_later(one, shared=True)
    one_batch(loop)
    other.send(b"x")
    # The new descriptor with the old number must get no event of the copy.
    os.dup2(quiet.fileno(), number)
    stranger = Noted()
    loop.add(number, READ, stranger)
    one_batch(loop)
    loop.remove(number)
    os.close(number)
    copy.close()
    assert (handler.events, stranger.events) == ([], [])


# Timers


def test_timers_come_when_due_in_order_and_once(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_clock", lambda: now)  # however long these lines take
        loop.call_later(0.004, lambda: calls.append("third"))
        loop.call_later(0.000, lambda: calls.append("first"))
        loop.call_later(0.002, lambda: calls.append("second"))
        loop.call_later(0.006, loop.stop)
    loop.run()
    assert calls == ["first", "second", "third"]


def test_timers_of_one_moment_come_in_the_order_they_were_set(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_clock", lambda: 0.0)
        for number in range(20):
            loop.call_later(0, lambda number=number: calls.append(number))  # type: ignore[misc]  # no type
    one_batch(loop)
    assert calls == list(range(20))


def test_a_cancelled_timer_never_calls(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0, lambda: calls.append("cancelled")).cancel()
    # Also when another timer cancels it that is due at the same moment.
    loop.call_later(0, lambda: victim.cancel())  # noqa: PLW0108 - it does not exist yet
    victim = loop.call_later(0, lambda: calls.append("cancelled by another"))
    loop.call_later(0.001, loop.stop)
    loop.run()
    assert calls == []


def test_cancelling_after_the_call_is_harmless(loop: Loop) -> None:
    calls: list[str] = []
    timer = loop.call_later(0, lambda: calls.append("called"))
    one_batch(loop)
    timer.cancel()
    one_batch(loop)
    assert calls == ["called"]


def test_a_timer_that_is_not_due_does_not_call(loop: Loop) -> None:
    loop.call_later(3600, lambda: pytest.fail("an hour early"))
    one_batch(loop)


def test_a_timer_can_set_the_next(loop: Loop) -> None:
    calls: list[int] = []

    def again() -> None:
        calls.append(len(calls))
        if len(calls) < 5:
            loop.call_later(0, again)
        else:
            loop.stop()

    again()
    loop.run()
    assert calls == [0, 1, 2, 3, 4]


def test_a_busy_descriptor_does_not_starve_timers(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    loop.add(one.fileno(), READ, Noted())
    other.send(b"never read")
    loop.call_later(0.002, loop.stop)
    loop.run()


# Signals


@pytest.fixture
def usual_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
def test_the_call_for_a_signal_comes_from_the_loop_and_not_from_the_signal_handler(loop: Loop) -> None:
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append("signal"))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, ())  # the handler, if it does anything, has run by now
    assert calls == []
    run_until(loop, lambda: calls == ["signal"])


@pytest.mark.usefixtures("usual_signals")
def test_each_signal_has_its_own_call(loop: Loop) -> None:
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append("one"))
    loop.on_signal(signal.SIGUSR2, lambda: calls.append("two"))
    os.kill(os.getpid(), signal.SIGUSR2)
    run_until(loop, lambda: bool(calls))
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: len(calls) == 2)
    assert calls == ["two", "one"]


@pytest.mark.usefixtures("usual_signals")
def test_signals_that_come_together_all_arrive(loop: Loop) -> None:
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append("one"))
    loop.on_signal(signal.SIGUSR2, lambda: calls.append("two"))
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    run_until(loop, lambda: len(calls) == 2)
    assert sorted(calls) == ["one", "two"]


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_wakes_a_loop_that_has_no_timer(loop: Loop) -> None:
    loop.on_signal(signal.SIGUSR1, loop.stop)
    main = threading.main_thread().ident
    assert main is not None
    sender = threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGUSR1))
    sender.start()
    loop.run()
    sender.join()


@pytest.mark.usefixtures("usual_signals")
def test_thousands_of_signals_do_no_harm(loop: Loop) -> None:
    calls: list[int] = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append(1))
    for _ in range(3000):
        signal.raise_signal(signal.SIGUSR1)
    run_until(loop, lambda: len(calls) > 0)


# Ending


def test_stop_lets_the_rest_of_the_batch_be_handled(loop: Loop, sockets: Pair) -> None:
    handlers = []
    for _ in range(3):
        one, other = sockets()
        other.send(b"x")
        handlers.append(Noted(lambda fd: loop.stop()))
        loop.add(one.fileno(), READ, handlers[-1])
    loop.run()
    assert [len(each.events) for each in handlers] == [1, 1, 1]


def test_a_stopped_loop_can_run_again(loop: Loop) -> None:
    one_batch(loop)
    one_batch(loop)


@pytest.mark.usefixtures("usual_signals")
def test_close_leaves_no_descriptor_open_and_restores_the_wake_up_descriptor(sockets: Pair) -> None:
    one, _ = sockets()
    before = descriptors()
    loop = Loop()
    loop.on_signal(signal.SIGUSR1, lambda: None)
    pending, peer = socket.socketpair()
    loop.close_later(pending)
    loop.add(one.fileno(), READ, Noted())
    loop.close()
    peer.close()
    assert descriptors() == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_error_in_a_handler_ends_run(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()

    def fail(fd: int) -> None:
        raise ZeroDivisionError

    loop.add(one.fileno(), READ, Noted(fail))
    other.send(b"x")
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_hang_up_is_reported_although_the_mask_does_not_name_it(loop: Loop, sockets: Pair) -> None:
    one, other = sockets()
    handler = Noted(lambda fd: loop.stop())
    loop.add(one.fileno(), 0, handler)
    other.close()
    loop.run()
    assert handler.events[0][1] & select.EPOLLHUP


@pytest.mark.usefixtures("usual_signals")
def test_many_signals_of_one_kind_cause_one_call(loop: Loop) -> None:
    calls = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append("signal"))
    loop.on_signal(signal.SIGUSR2, loop.stop)
    for number in [signal.SIGUSR1] * 100 + [signal.SIGUSR2]:
        os.kill(os.getpid(), number)
    loop.run()
    assert calls == ["signal"]


def test_timers_are_due_by_the_clock_that_the_loop_was_given() -> None:
    now = 0.0
    loop = Loop(clock=lambda: now)
    calls = []

    def go_on() -> None:
        nonlocal now
        now += 1
        calls.append("clock")
        loop.call_later(0, go_on)

    loop.call_later(3600, lambda: calls.append("timer"))
    loop.call_later(3601, loop.stop)
    go_on()
    loop.run()
    loop.close()
    assert calls.index("timer") == 3600
