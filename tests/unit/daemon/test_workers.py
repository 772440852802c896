"""The workers: each is told everything, one that ends is replaced, and a new daemon finds those of before."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from tests.unit.daemon.standins import StandIn, StandInSpawner
from tests.unit.sockets import copies, run_until
from tproxy.daemon import workers as module
from tproxy.daemon.spawner import Spawner
from tproxy.daemon.workers import Workers, wanted_workers
from tproxy.datapath.counts import OPEN, OUTCOMES, TO_GUEST, TOTAL, Counts
from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint, Service, ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import send
from tproxy.worker import orders, packing


def services(*ports: int) -> tuple[Service, ...]:
    return tuple(Service(ServiceKey(port), Endpoint("192.0.2.1", port)) for port in ports)


class Daemon:
    """The part of a daemon that has workers."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.spawner = StandInSpawner()
        self.changes = self.regroups = 0
        self.workers = Workers(
            self.loop, cast(Spawner, self.spawner), str(directory), self._changed, self._regroup
        )

    def _changed(self) -> None:
        self.changes += 1

    def _regroup(self) -> None:
        self.regroups += 1

    def stand_in(self, number: int) -> StandIn:
        """Return the stand-in that was started as this one, once it is."""
        self.until(lambda: len(self.spawner.workers) > number)
        return self.spawner.workers[number]

    def until(self, condition: Callable[[], bool]) -> None:
        run_until(self.loop, condition)

    def start(self, count: int) -> None:
        """Have so many workers that have started and heard all."""
        self.workers.keep(count)
        for number in range(count):
            worker = self.stand_in(number)
            worker.start()
            worker.answer()
        self.until(lambda: self.workers.settled)

    def pass_on(self, channels: list[socket.socket]) -> None:
        """Pass a guest on by each channel, as a relay does: the port tells the place in its list."""
        with socket.socket() as guest:
            for place, channel in enumerate(channels):
                send(channel, wire.Accepted(ServiceKey(place)), [guest.fileno()])

    def close(self) -> None:
        self.loop.close()
        self.spawner.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_the_default_is_a_worker_for_each_core_but_not_more_than_four() -> None:
    cores = len(os.sched_getaffinity(0))
    assert wanted_workers(None) == wanted_workers(0) == min(cores, 4)
    assert wanted_workers(64) == 64


# What workers are told


def test_a_worker_is_told_everything_at_its_start(daemon: Daemon) -> None:
    daemon.workers.serve("br0", services(80, 81))
    daemon.workers.serve("br1", services())
    daemon.workers.keep(1)
    (channel,) = daemon.workers.channels("br0", 7)
    told = daemon.stand_in(0).hear()
    assert [type(each) for each in told] == [
        orders.Settings,
        orders.Services,
        orders.Services,
        orders.Sync,
        orders.Bridge,
    ]
    assert isinstance(told[0], orders.Settings)
    assert told[0].workers == 1
    assert told[1:3] == [
        orders.Services("br0", True, True, services(80, 81)),
        orders.Services("br1", True, True, ()),
    ]
    assert told[4] == orders.Bridge("br0", 7)
    daemon.pass_on([channel])
    assert daemon.stand_in(0).passed("br0") == [0]


def test_a_worker_in_the_place_of_another_is_told_everything_and_gets_what_that_one_had_not_received(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.start(2)
    daemon.workers.serve("br0", services(80))
    channels = daemon.workers.channels("br0", 7)
    daemon.pass_on(channels)
    daemon.stand_in(0).die()
    successor = daemon.stand_in(2)
    told = successor.hear()
    assert [type(each) for each in told] == [orders.Settings, orders.Services, orders.Bridge, orders.Sync]
    daemon.pass_on(channels)
    assert successor.passed("br0") == [0, 0]
    daemon.stand_in(1).hear()
    assert daemon.stand_in(1).passed("br0") == [1, 1]
    assert sum("is lost" in line for line in caplog.messages) == 1
    assert daemon.regroups == 1  # relays keep their channels


def test_only_what_has_changed_is_told_again(daemon: Daemon) -> None:
    daemon.start(1)
    worker = daemon.stand_in(0)
    daemon.workers.serve("br0", services(80))
    daemon.workers.serve("br0", services(80))
    assert worker.hear() == [orders.Services("br0", True, True, services(80))]
    daemon.workers.serve("br0", services(80, 81))
    daemon.workers.forget("br0")
    daemon.workers.forget("br0")
    assert worker.hear() == [orders.Services("br0", True, True, services(80, 81)), orders.Forget("br0")]


def test_a_long_list_of_services_comes_in_parts(daemon: Daemon) -> None:
    daemon.start(1)
    one_part = len(packing.parts(services(*range(1, 1 << 16)))[0])
    many = services(*range(1, 2 * one_part + 2))
    daemon.workers.serve("br0", many)
    parts = [each for each in daemon.stand_in(0).hear() if isinstance(each, orders.Services)]
    assert [(each.first, each.last) for each in parts] == [(True, False), (False, False), (False, True)]
    assert [service for each in parts for service in each.services] == list(many)


def test_the_workers_have_settled_when_each_has_answered(daemon: Daemon) -> None:
    daemon.start(2)
    daemon.workers.sync()
    assert not daemon.workers.settled
    daemon.stand_in(0).answer()
    changes = daemon.changes
    daemon.until(lambda: daemon.changes > changes)
    assert not daemon.workers.settled
    daemon.stand_in(1).answer()
    daemon.until(lambda: daemon.workers.settled)


# Channels


def test_the_first_worker_differs_from_bridge_to_bridge(daemon: Daemon) -> None:
    daemon.start(3)
    for bridge in ("br0", "br1", "br2", "br3"):
        daemon.pass_on(daemon.workers.channels(bridge, None))
    for number in range(3):
        daemon.stand_in(number).hear()
    places = [
        [daemon.stand_in(n).passed(bridge) for n in range(3)] for bridge in ("br0", "br1", "br2", "br3")
    ]
    assert places == [[[0], [1], [2]], [[2], [0], [1]], [[1], [2], [0]], [[0], [1], [2]]]


def test_a_relay_that_says_that_a_worker_is_behind_names_it_by_its_place_in_that_relays_list(
    daemon: Daemon,
) -> None:
    daemon.start(3)
    daemon.workers.channels("br0", None)
    daemon.workers.channels("br1", None)
    for number in range(3):
        daemon.stand_in(number).hear()
    daemon.workers.behind(2, "br1")  # the last one of its list is the first of all
    assert [len(daemon.stand_in(number).hear()) for number in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("place", [0, 3, 65535])
def test_any_place_that_a_relay_names_does_no_harm(daemon: Daemon, place: int) -> None:
    daemon.workers.behind(place, "br0")
    daemon.start(3)
    daemon.workers.behind(place, "br0")
    daemon.workers.channels("br0", None)
    daemon.workers.behind(place, "br0")


def test_other_channels_take_the_place_of_those_before(daemon: Daemon) -> None:
    daemon.start(1)
    (before,) = daemon.workers.channels("br0", None)
    daemon.workers.channels("br0", None)
    daemon.stand_in(0).hear()
    with pytest.raises(BrokenPipeError):
        send(before, wire.Quit())


def test_without_workers_a_relay_gets_no_channels(daemon: Daemon) -> None:
    """As in the last moments of a daemon that has made room for its successor."""
    assert daemon.workers.channels("br0", None) == []
    daemon.start(1)
    daemon.workers.drain()
    assert daemon.workers.channels("br0", None) == []


def test_guests_of_a_relay_of_version_1_go_to_a_worker(daemon: Daemon) -> None:
    daemon.start(1)
    with socket.socket() as guest:
        daemon.workers.deliver("br0", 7, wire.Accepted(ServiceKey(80)), [guest.fileno()])
        assert copies(guest.fileno()) == 1
    assert daemon.stand_in(0).hear() == [orders.Bridge("br0", 7)]
    assert daemon.stand_in(0).passed("br0") == [80]


# How many, and which ones


def test_workers_that_are_too_many_finish_what_they_have(daemon: Daemon) -> None:
    daemon.start(3)
    daemon.workers.keep(1)
    assert [daemon.stand_in(number).hear() for number in range(3)] == [[], [orders.Drain()], [orders.Drain()]]
    assert daemon.regroups == 2
    assert [each["draining"] for each in daemon.workers.report()].count(True) == 2
    daemon.stand_in(2).die()
    daemon.until(lambda: len(daemon.workers.report()) == 2)
    assert len(daemon.spawner.workers) == 3  # nobody takes its place
    assert len(daemon.workers.channels("br0", None)) == 1


def test_a_worker_that_finishes_still_gets_settings_logs_and_the_end_of_a_bridge(daemon: Daemon) -> None:
    daemon.start(2)
    daemon.workers.serve("br0", services(80))
    daemon.workers.keep(1)
    worker = daemon.stand_in(1)
    worker.hear()
    daemon.workers.set()
    daemon.workers.reopen_logs()
    daemon.workers.serve("br1", services(80))
    daemon.workers.forget("br0")
    assert [type(each) for each in worker.hear()] == [orders.Settings, orders.LogFile, orders.Forget]


def test_the_delay_doubles_while_a_worker_dies_at_its_start(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.001)
    monkeypatch.setattr(module, "RETRY_MOST", 0.004)
    delays: list[float] = []
    call_later = daemon.loop.call_later
    daemon.workers.keep(1)
    for number in range(5):
        daemon.stand_in(number).die()
        daemon.until(lambda number=number: len(daemon.spawner.workers) > number + 1)  # type: ignore[misc]
        delays.append(daemon.workers._retries[0][0])
    assert delays == [0.001, 0.002, 0.004, 0.004, 0.004]
    assert daemon.loop.call_later == call_later
    # One that lived for longer is replaced at once, and the delay begins anew.
    monkeypatch.setattr(module, "SETTLED", 0.0)
    daemon.stand_in(5).die()
    daemon.stand_in(6)
    assert daemon.workers._retries == {}


def test_a_spawner_that_fails_is_asked_again_and_leaves_no_meeting_point(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.001)
    daemon.spawner.failing = True
    daemon.workers.keep(1)
    daemon.until(lambda: len(caplog.messages) >= 3)
    assert list((tmp_path / "workers").iterdir()) == []
    daemon.spawner.failing = False
    daemon.stand_in(0)
    assert daemon.workers.settled is False
    assert set(caplog.messages) == {"cannot start a worker: Resource temporarily unavailable"}


def test_a_place_that_is_wanted_again_before_its_next_attempt_gets_one_worker(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 1.0)  # not before this test goes on, on a busy machine
    daemon.start(2)
    daemon.stand_in(1).die()
    daemon.until(lambda: 1 in daemon.workers._retries)
    daemon.workers.keep(1)
    daemon.workers.keep(2)
    assert len(daemon.spawner.workers) == 3
    done: list[bool] = []
    daemon.loop.call_later(1.2, lambda: done.append(True))  # the attempt is due before
    daemon.until(lambda: bool(done))
    assert len(daemon.spawner.workers) == 3


def test_a_worker_of_another_version_finishes_and_another_one_is_started(daemon: Daemon) -> None:
    daemon.workers.keep(1)
    old = daemon.stand_in(0)
    old.born()
    old.ready(orders.VERSION + 1)
    daemon.stand_in(1)
    assert old.hear()[-1] == orders.Drain()


def test_workers_that_end_when_a_successor_takes_over_are_not_replaced(daemon: Daemon) -> None:
    daemon.start(2)
    daemon.workers.drain()
    assert [daemon.stand_in(number).hear() for number in range(2)] == [[orders.Drain()]] * 2
    daemon.stand_in(0).die()
    changes = daemon.changes
    daemon.until(lambda: daemon.changes > changes)
    done: list[bool] = []
    daemon.loop.call_later(2 * module.RETRY_FIRST, lambda: done.append(True))
    daemon.until(lambda: bool(done))
    assert len(daemon.spawner.workers) == 2


# Counts


def count(worker: StandIn, port: int, *, open_: int, total: int) -> None:
    record = worker.counters.record("br0", ServiceKey(port))
    record.counts[OPEN], record.counts[TOTAL], record.counts[TO_GUEST] = open_, total, 10 * total


def test_counts_are_those_of_all_workers_and_those_of_the_dead_stay(daemon: Daemon) -> None:
    daemon.start(2)
    daemon.workers.serve("br0", services(80, 81))
    count(daemon.stand_in(0), 80, open_=1, total=5)
    count(daemon.stand_in(1), 80, open_=2, total=7)
    assert daemon.workers.counts() == {("br0", ServiceKey(80)): Counts(open=3, total=12, to_guest=120)}
    daemon.stand_in(0).die()
    daemon.stand_in(2)
    counted = daemon.workers.counts()["br0", ServiceKey(80)]
    assert counted[:4] == Counts(open=2, total=12, to_guest=120)[:4]
    assert dict(zip(OUTCOMES, counted.outcomes, strict=True))["worker_lost"] == 1
    assert daemon.workers.restarts == 1
    report = {each["pid"]: (each["open"], each["bridges"]) for each in daemon.workers.report()}
    assert report[daemon.stand_in(1).pid] == (2, [{"bridge": "br0", "open": 2}])
    # A service that is gone and comes again counts from 0.
    daemon.workers.serve("br0", services(81))
    assert daemon.workers._ended == {}


def test_counts_of_a_bridge_that_is_gone_are_forgotten(daemon: Daemon) -> None:
    daemon.start(1)
    daemon.workers.serve("br0", services(80))
    count(daemon.stand_in(0), 80, open_=0, total=1)
    daemon.stand_in(0).die()
    daemon.stand_in(1)
    assert daemon.workers.counts() == {("br0", ServiceKey(80)): Counts(total=1, to_guest=10)}
    daemon.workers.forget("br0")
    assert daemon.workers.counts() == {}


# A daemon that starts finds the workers of the one before


@pytest.fixture
def successor(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that starts after ``daemon``, which had two workers, was killed."""
    daemon.start(2)
    for each in daemon.spawner.workers:
        assert each.meeting is not None
        each.meeting.listen()
        count(each, 80, open_=1, total=4)
    made = Daemon(tmp_path)
    yield made
    made.close()


def has_heard(worker: StandIn, count: int) -> bool:
    """Hear all that the daemon has said; return whether it was so much in all."""
    worker.hear()
    return len(worker.heard) == count


def follow(daemon: Daemon) -> list[StandIn]:
    """Let the workers of a daemon answer its successor; return them as that one has them."""
    found = []
    for each in daemon.spawner.workers:
        assert each.meeting is not None
        channel, _ = each.meeting.accept()
        new = StandIn(channel)
        new.counters = each.counters
        new.ready()
        found.append(new)
    return found


def test_workers_of_the_daemon_before_go_on_and_are_told_everything(
    daemon: Daemon, successor: Daemon
) -> None:
    successor.workers.keep(2)
    workers = follow(daemon)
    successor.until(lambda: successor.workers.counts() != {})
    assert successor.spawner.workers == []
    assert successor.workers.counts() == {("br0", ServiceKey(80)): Counts(open=2, total=8, to_guest=80)}
    successor.workers.serve("br1", services(90))
    successor.pass_on(successor.workers.channels("br1", None))
    for each in workers:
        successor.until(partial(has_heard, each, 5))
        assert [type(message) for message in each.heard] == [
            orders.LogFile,
            orders.Settings,
            orders.Sync,
            orders.Services,
            orders.Bridge,
        ]
    assert [each.passed("br1") for each in workers] == [[0], [1]]


def test_a_bridge_that_went_while_there_was_no_daemon_is_forgotten_when_all_maps_were_read(
    daemon: Daemon, successor: Daemon
) -> None:
    successor.workers.keep(2)
    workers = follow(daemon)
    successor.until(lambda: successor.workers.counts() != {})
    successor.workers.serve("br1", services(90))
    assert not any(isinstance(each, orders.Forget) for worker in workers for each in worker.hear())
    successor.workers.complete()
    assert [worker.hear() for worker in workers] == [[orders.Forget("br0")]] * 2


def test_a_restart_lets_the_workers_that_are_there_finish(daemon: Daemon, successor: Daemon) -> None:
    successor.workers.keep(2, replace=True)
    workers = follow(daemon)
    assert len(successor.spawner.workers) == 2
    assert all(worker.hear()[-1] == orders.Drain() for worker in workers)
    successor.until(lambda: sum(each["open"] for each in successor.workers.report()) == 2)
    assert [each["draining"] for each in successor.workers.report()].count(True) == 2
    assert len(successor.workers.channels("br0", None)) == 2


def test_a_worker_of_another_version_is_told_only_what_each_version_understands(
    daemon: Daemon, successor: Daemon
) -> None:
    successor.workers.keep(1)
    meeting = daemon.spawner.workers[0].meeting
    assert meeting is not None
    old = StandIn(meeting.accept()[0])
    successor.workers.serve("br0", services(80))
    successor.workers.serve("br1", services(80))
    assert [type(each) for each in old.hear()] == [orders.LogFile]  # it has not said its version yet
    old.ready(orders.VERSION + 1)
    successor.stand_in(0)
    successor.workers.forget("br1")
    successor.workers.set()
    successor.workers.sync(count=True)
    successor.workers.reopen_logs()
    successor.until(partial(has_heard, old, 4))
    assert [type(each) for each in old.heard[1:]] == [orders.Drain, orders.Forget, orders.LogFile]
    assert successor.workers.report()[-1]["draining"]


def test_a_worker_that_was_only_finishing_goes_on_with_that_beside_another_one(
    daemon: Daemon, successor: Daemon
) -> None:
    successor.workers.keep(2)
    first, second = (each.meeting.accept()[0] for each in daemon.spawner.workers if each.meeting)
    StandIn(first).ready()
    StandIn(second).ready(draining=True)
    successor.stand_in(0)
    assert [each["draining"] for each in successor.workers.report()].count(True) == 1


def test_more_workers_than_wanted_finish_and_too_few_are_joined_by_new_ones(
    daemon: Daemon, successor: Daemon
) -> None:
    successor.workers.keep(1)
    stays, goes = follow(daemon)
    assert orders.Drain in map(type, goes.hear())
    successor.until(lambda: orders.Sync(1, False) in stays.hear())
    assert orders.Drain not in map(type, stays.heard)
    successor.workers.keep(3)
    assert len(successor.spawner.workers) == 2


def test_a_meeting_point_at_which_nobody_waits_is_removed(daemon: Daemon, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        (tmp_path / "workers").mkdir()
        dead.bind(str(tmp_path / "workers/1"))
        dead.listen()
    daemon.workers.keep(1)
    assert not (tmp_path / "workers/1").exists()
    assert len(daemon.spawner.workers) == 1


def test_the_meeting_point_of_a_worker_that_has_ended_is_removed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(2)
    daemon.workers.drain()
    for number in range(2):
        daemon.stand_in(number).die()
    daemon.until(lambda: list((tmp_path / "workers").iterdir()) == [])
