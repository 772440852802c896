"""Passing sockets on to workers: each guest has its worker, and one that is behind holds up no other."""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.child import in_child
from tests.unit.recorder import Recorder
from tests.unit.sockets import run_until, tcp_pair
from tproxy.kernel import privileges
from tproxy.kernel.loop import Loop
from tproxy.model import ServiceKey
from tproxy.relay import passing, wire
from tproxy.relay.channel import pair, receive
from tproxy.relay.listening import BATCH, Batch
from tproxy.relay.passing import Passing

MANY = 100  # messages: more than a small channel takes


class Setting:
    """A relay's data channels, with the test as all workers. Each socket is a file with its guest's name."""

    def __init__(self, workers: int = 0) -> None:
        self.loop = Loop()
        self.log = Recorder()
        self.rooms: list[bool] = []  # ``room`` whenever it may have changed
        self.behinds: list[int] = []
        self.passing = Passing(
            self.loop, self.log, lambda: self.rooms.append(self.passing.room), self.behinds.append
        )
        self.workers: list[socket.socket] = []
        self.use(workers)

    def use(self, count: int) -> None:
        """Give the relay new channels, whose other ends are ``workers`` then."""
        pairs = [pair() for _ in range(count)]
        self.workers = [far for _, far in pairs]
        for _, far in pairs:
            far.setblocking(False)
        if pairs:
            self.passing.use([near for near, _ in pairs])

    def accept(self, *guests: str, port: int = 80) -> None:
        """Accept one connection from each guest, in one batch."""
        fds = [os.memfd_create(guest) for guest in guests]
        self.passing.take(Batch(ServiceKey(port), tuple(map(socket.inet_aton, guests)), fds))

    def taken(self, place: int) -> list[str]:
        """Take all that a worker can get now; return the guests."""
        return [guest for _, guests in self.messages(place) for guest in guests]

    def messages(self, place: int) -> list[tuple[object, list[str]]]:
        found: list[tuple[object, list[str]]] = []
        while True:
            try:
                delivery = receive(self.workers[place])
            except BlockingIOError:
                return found
            if delivery is None:
                return found
            with delivery:
                names = [os.readlink(f"/proc/self/fd/{fd}") for fd in delivery.fds]
                guests = [name.removeprefix("/memfd:").removesuffix(" (deleted)") for name in names]
                found.append((delivery.message, guests))

    def close(self) -> None:
        for batch in self.passing.hand_over():
            batch.close()
        self.loop.close()
        for each in self.workers:
            each.close()


@pytest.fixture
def one() -> Iterator[Setting]:
    setting = Setting(1)
    yield setting
    setting.close()


@pytest.fixture
def two() -> Iterator[Setting]:
    setting = Setting(2)
    yield setting
    setting.close()


@given(st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=20), st.integers(1, 5))
def test_the_worker_of_a_guest_follows_from_its_address(guests: list[str], workers: int) -> None:
    setting = Setting(workers)
    try:
        setting.accept(*guests, port=5030)
        for place in range(workers):
            expected = [
                each for each in guests if int.from_bytes(socket.inet_aton(each), "big") % workers == place
            ]
            assert setting.messages(place) == (
                [(wire.Accepted(ServiceKey(5030)), expected)] if expected else []
            )
    finally:
        setting.close()


def test_neighbours_have_different_workers(two: Setting) -> None:
    two.accept("10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert (two.taken(0), two.taken(1)) == (["10.0.0.2"], ["10.0.0.1", "10.0.0.3"])


def test_a_guest_whose_address_nobody_knows_has_the_first_worker(two: Setting) -> None:
    two.passing.take(Batch(ServiceKey(80), (b"",), [os.memfd_create("unknown")]))
    assert two.taken(0) == ["unknown"]


def test_while_one_worker_is_behind_the_guests_of_others_are_served(two: Setting) -> None:
    for _ in range(MANY):
        two.accept("10.0.0.0")
    for _ in range(3):
        two.accept("10.0.0.1")
        assert two.taken(1) == ["10.0.0.1"]


def test_a_worker_that_goes_on_gets_all_that_waited_in_order(one: Setting) -> None:
    guests = [f"10.0.0.{number}" for number in range(MANY)]
    for guest in guests:
        one.accept(guest)
    found: list[str] = []

    def all_taken() -> bool:
        found.extend(one.taken(0))
        return len(found) == len(guests)

    run_until(one.loop, all_taken)
    assert found == guests
    assert one.behinds == []


def test_guests_that_wait_take_turns(one: Setting) -> None:
    for _ in range(MANY):
        one.accept(*["10.0.0.1"] * 10)
    one.accept("10.0.0.2", "10.0.0.3")
    one.accept("10.0.0.2", port=81)
    found: list[tuple[object, list[str]]] = []

    def all_taken() -> bool:
        found.extend(one.messages(0))
        return sum(len(guests) for _, guests in found) == 10 * MANY + 3

    run_until(one.loop, all_taken)
    sent_before = next(number for number, (_, guests) in enumerate(found) if "10.0.0.2" in guests)
    assert sum(len(guests) for _, guests in found[:sent_before]) < 10 * MANY / 2
    assert {"10.0.0.1", "10.0.0.2", "10.0.0.3"} == set(found[sent_before][1])
    others = [(message, guest) for message, guests in found for guest in guests if guest != "10.0.0.1"]
    first, second = wire.Accepted(ServiceKey(80)), wire.Accepted(ServiceKey(81))
    assert others == [(first, "10.0.0.2"), (first, "10.0.0.3"), (second, "10.0.0.2")]
    assert all(len(guests) <= BATCH for _, guests in found)


class Bridge:
    """Guests of 127.0.0.0/8 with real connections, and a worker that takes none until it is asked to."""

    def __init__(self, most: int, workers: int = 1) -> None:
        self.setting = Setting(workers)
        self.setting.passing._most = most
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.connections: dict[str, list[socket.socket]] = {}

    def connect(self, guest: str, count: int = 1) -> None:
        """Connect so often, and have the relay accept it."""
        for _ in range(count):
            connection = socket.create_connection(self._listener.getsockname(), source_address=(guest, 0))
            self.connections.setdefault(guest, []).append(connection)
            fd, (address, _) = self._listener._accept()  # type: ignore[attr-defined]
            self.setting.passing.take(Batch(ServiceKey(80), (socket.inet_aton(address),), [fd]))

    def was_reset(self, guest: str) -> list[bool]:
        """Return for each connection of a guest whether it was reset."""
        found = []
        for connection in self.connections[guest]:
            connection.setblocking(False)
            try:
                connection.recv(1)
                found.append(True)  # the kernel reports an error once, and the end of file from then on
            except BlockingIOError:
                found.append(False)
            except ConnectionResetError:
                found.append(True)
        return found

    def close(self) -> None:
        self.setting.close()
        self._listener.close()
        for connections in self.connections.values():
            for each in connections:
                each.close()


def test_when_too_many_wait_the_guest_with_most_of_them_is_reset_and_all_others_wait() -> None:
    bridge = Bridge(most=40)
    bridge.connect("127.0.0.2", 100)
    greedy = bridge.was_reset("127.0.0.2")
    assert not any(greedy[:40])
    assert any(greedy)
    bridge.connect("127.0.0.3", 10)
    bridge.connect("127.0.0.4", 5)
    assert bridge.was_reset("127.0.0.3") == [False] * 10
    assert bridge.was_reset("127.0.0.4") == [False] * 5
    assert sum(bridge.was_reset("127.0.0.2")) == sum(greedy) + 15
    assert bridge.setting.passing.room  # nobody has to wait in the backlog
    (warning,) = bridge.setting.log.warnings
    assert warning.startswith(
        "40 connections wait for workers; 1 were reset, the last one of guest 127.0.0.2,"
    )
    bridge.close()


def test_when_too_many_wait_no_guest_gets_more_than_its_part() -> None:
    bridge = Bridge(most=40)
    bridge.connect("127.0.0.2", 60)
    bridge.connect("127.0.0.3", 60)
    waiting = [sum(not each for each in bridge.was_reset(guest)) for guest in bridge.connections]
    in_the_channel = waiting[0] - 20
    assert 0 < in_the_channel < 20
    assert waiting[1] in (19, 20)  # one more of the other guest may be the next to be sent
    bridge.close()


def test_a_worker_that_takes_nothing_costs_the_guests_of_others_no_room() -> None:
    bridge = Bridge(most=10, workers=2)
    bridge.connect("127.0.0.2", 60)
    assert any(bridge.was_reset("127.0.0.2"))
    bridge.connect("127.0.0.3", 60)
    waiting = sum(not each for each in bridge.was_reset("127.0.0.3"))
    assert waiting > 5  # what the channel takes, and its part
    bridge.close()


def test_without_workers_nothing_is_accepted() -> None:
    setting = Setting(0)
    assert not setting.passing.room
    setting.use(1)
    assert setting.passing.room
    assert setting.rooms == [True]
    setting.close()


def test_guests_of_a_worker_without_a_reader_go_to_the_next_one(two: Setting) -> None:
    two.workers[0].close()
    two.accept("10.0.0.0", "10.0.0.1", "10.0.0.2")
    assert sorted(two.taken(1)) == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    two.accept("10.0.0.4")
    assert two.taken(1) == ["10.0.0.4"]
    assert two.log.warnings == ["worker 0 is gone: Broken pipe"]
    assert two.passing.room


def test_what_waited_for_a_worker_that_has_gone_goes_to_the_next_one(two: Setting) -> None:
    for _ in range(MANY):
        two.accept("10.0.0.0")
    before = len(two.taken(0))
    two.workers[0].close()
    found = 0

    def all_taken() -> bool:
        nonlocal found
        found += len(two.taken(1))
        return before + found == MANY

    run_until(two.loop, all_taken)


def test_while_the_daemon_has_a_copy_sockets_wait_for_the_worker_to_come(two: Setting) -> None:
    copy = two.workers[0].dup()
    two.workers[0].close()
    two.accept("10.0.0.0")
    assert two.taken(1) == []
    two.workers[0] = copy
    assert two.taken(0) == ["10.0.0.0"]
    assert two.log.warnings == []


def test_when_no_worker_is_left_guests_wait_for_other_channels(two: Setting) -> None:
    for each in two.workers:
        each.close()
    two.accept("10.0.0.0", "10.0.0.1")
    assert not two.passing.room
    assert two.rooms[-1] is False
    two.use(1)
    assert sorted(two.taken(0)) == ["10.0.0.0", "10.0.0.1"]
    assert two.passing.room


def test_what_waited_goes_to_the_channels_that_come(one: Setting) -> None:
    for number in range(MANY):
        one.accept(f"10.0.0.{number}")
    in_the_channel = one.taken(0)
    one.workers[0].close()
    one.use(2)
    found = [one.taken(0), one.taken(1)]
    assert in_the_channel + found[0]
    assert sorted(in_the_channel + found[0] + found[1]) == sorted(f"10.0.0.{n}" for n in range(MANY))
    assert all(int(each.rpartition(".")[2]) % 2 == 0 for each in found[0])


def test_the_channels_before_are_closed(one: Setting) -> None:
    (before,) = one.workers
    before.setblocking(True)
    one.use(1)
    one.loop.call_later(0, one.loop.stop)
    one.loop.run()  # a channel is closed after the batch of events
    assert before.recv(1) == b""
    before.close()


def test_guests_that_wait_are_handed_over_and_sent_to_nobody(one: Setting) -> None:
    for _ in range(MANY):
        one.accept("10.0.0.1", "10.0.0.1")
    batches = one.passing.hand_over()
    sent = len(one.taken(0))
    run_until(one.loop, lambda: True)
    assert one.taken(0) == []
    assert sent + sum(len(batch.fds) for batch in batches) == 2 * MANY
    assert {(batch.key.port, *batch.guests) for batch in batches if len(batch.fds) == 2} <= {
        (80, *[socket.inet_aton("10.0.0.1")] * 2)
    }
    for batch in batches:
        batch.close()


def test_giving_up_resets_the_guests_that_wait() -> None:
    setting = Setting(0)
    far, near = tcp_pair()
    setting.passing.take(Batch(ServiceKey(80), (b"",), [near.detach()]))
    setting.passing.give_up()
    with far, pytest.raises(ConnectionResetError):
        far.recv(1)
    setting.close()


def test_the_daemon_hears_of_a_worker_that_takes_nothing_until_it_does(
    two: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "BEHIND", 0.01)
    for _ in range(MANY):
        two.accept("10.0.0.1")
    run_until(two.loop, lambda: len(two.behinds) >= 2)
    assert set(two.behinds) == {1}
    found = 0

    def all_taken() -> bool:
        nonlocal found
        found += len(two.taken(1))
        return found == MANY

    run_until(two.loop, all_taken)
    run_until(two.loop, lambda: not two.loop._timers or len(two.loop._timers) == 1)
    told = len(two.behinds)
    two.accept("10.0.0.1")
    run_until(two.loop, lambda: bool(two.taken(1)))
    assert len(two.behinds) == told


# The kernel refuses to have more descriptors in flight than one user may have open (unix(7)).

MOST = 64


def without_privileges(workers: int) -> Setting:
    """Return a setting in a process that may have few descriptors in flight, as a relay may."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST, MOST))
    if os.geteuid() == 0:
        privileges._change_user()
    setting = Setting()
    setting.passing._most = 2 * MOST
    setting.use(workers)
    return setting


def test_too_many_descriptors_in_flight_is_no_end_of_a_worker_and_is_tried_again() -> None:
    def relay() -> list[object]:
        setting = without_privileges(2)
        refused: list[int] = []
        before = setting.passing._refused

        def refuse(outlet: passing.Outlet, error: OSError) -> None:
            refused.append(error.errno or 0)
            before(outlet, error)

        setting.passing._refused = refuse  # type: ignore[method-assign]
        accepted = 0
        while not refused:
            setting.accept(*[f"10.0.0.{accepted % 2}"] * 9)
            accepted += 9
        found = 0

        def all_taken() -> bool:
            nonlocal found
            found += len(setting.taken(0)) + len(setting.taken(1))
            return found == accepted

        run_until(setting.loop, all_taken)
        return [sorted(set(refused)), setting.log.messages]

    assert in_child(relay) == [[errno.ETOOMANYREFS], []]


def test_a_channel_with_room_is_not_polled_while_too_many_descriptors_are_in_flight() -> None:
    """The kernel would report the room again and again, and the relay would use the processor for that."""

    def relay() -> list[int]:
        setting = without_privileges(3)
        of_place = [str(ipaddress.IPv4Address(3 * 10**8 + place)) for place in range(3)]
        for _ in range(20):
            setting.accept(of_place[0])  # more than the small channel takes, so that it is polled
        for _ in range(MOST // 8):
            setting.accept(*[of_place[1]] * 8)
        assert setting.taken(0)
        setting.accept(*[of_place[2]] * 16)  # now all that may be in flight is for the other workers
        events = retries = 0
        on_event, retry = setting.passing.on_event, setting.passing._retry

        def note_event(fd: int, mask: int) -> None:
            nonlocal events
            events += 1
            on_event(fd, mask)

        def note_retry(outlet: passing.Outlet) -> None:
            nonlocal retries
            retries += 1
            retry(outlet)

        setting.passing.on_event = note_event  # type: ignore[method-assign]
        setting.passing._retry = note_retry  # type: ignore[method-assign]
        run_until(setting.loop, lambda: retries >= 9)
        return [events]

    assert in_child(relay)[0] <= 1
