"""A worker as the daemon sees it: it gets all that it is told, in order, and is killed if it is silent."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.daemon.standins import StandIn, end, paused_process
from tests.unit.sockets import copies, descriptors, run_until, wait_for
from tproxy.daemon import worker_link
from tproxy.daemon.unix_dialing import UnixDialing
from tproxy.daemon.worker_link import WorkerLink
from tproxy.datapath.counts import OPEN, TOTAL, Counts
from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint, Service, ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import pair, send
from tproxy.worker import orders


class Setting:
    """A link, its owner, and a stand-in for the worker."""

    def __init__(self, meeting: str) -> None:
        self.loop = Loop()
        self.services: dict[str, list[Service]] = {}
        self.dialing = UnixDialing(self.loop, self.services)
        self.dialing.complete = True
        self.versions: list[int] = []
        self.changes = 0
        self.ends: list[str] = []
        near, far = pair()
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)  # the kernel's minimum
        self.worker = StandIn(far)
        self.link = WorkerLink(self.loop, near, meeting, self)

    def greeted(self, worker: WorkerLink, version: int) -> None:
        self.versions.append(version)

    def cannot_reach(self, bridge: str, key: ServiceKey, seconds: float) -> None:
        pass

    def found_absent(self, bridge: str, number: int) -> None:
        pass

    def found_inlet(self, inlet: socket.socket) -> None:
        inlet.close()

    def changed(self) -> None:
        self.changes += 1

    def ended(self, worker: WorkerLink, reason: str) -> None:
        self.ends.append(reason)
        worker.close()

    def start(self) -> None:
        self.worker.start()
        run_until(self.loop, lambda: self.link.ready)

    def until_ended(self) -> str:
        run_until(self.loop, lambda: bool(self.ends))
        run_until(self.loop, lambda: True)  # what was to be closed is closed
        (reason,) = self.ends
        return reason


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(str(tmp_path / "meeting"))
    yield made
    if not made.ends:
        made.link.close()
    made.loop.close()
    made.worker.die()


def ended(pid: int) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)


def test_a_worker_is_known_from_its_birth_and_ready_with_its_counters(setting: Setting) -> None:
    assert setting.link.read() == (0, {})
    record = setting.worker.counters.record("br0", ServiceKey(80))
    record.counts[OPEN], record.counts[TOTAL] = 1, 3
    setting.start()
    assert setting.link.pid == setting.worker.pid
    assert setting.versions == [orders.VERSION]
    assert not setting.link.draining
    assert setting.link.read() == (1, {("br0", ServiceKey(80)): Counts(open=1, total=3)})
    assert setting.link.cpu_seconds >= 0


def test_what_a_worker_cannot_take_yet_waits_with_its_descriptors_and_arrives_in_order(
    setting: Setting,
) -> None:
    with socket.socket() as sock:
        names = [f"br{number}" for number in range(100)]
        for name in names:
            setting.link.tell(orders.Bridge(name, 1), sock.fileno())
            setting.link.tell(orders.Forget(name))
        run_until(setting.loop, lambda: setting.worker.hear() == [] and len(setting.worker.heard) == 200)
        assert [message for name in names for message in (orders.Bridge(name, 1), orders.Forget(name))] == (
            setting.worker.heard
        )
        assert setting.worker.descriptors == [1, 0] * 100
        for each in setting.worker.data.values():
            each.close()
        setting.worker.data.clear()
        assert copies(sock.fileno()) == 1


def test_while_nothing_waits_the_channel_is_not_polled_for_room(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        setting.link.tell(orders.LogFile())
    run_until(setting.loop, lambda: setting.worker.hear() == [] and len(setting.worker.heard) == 100)
    events: list[int] = []
    monkeypatch.setattr(WorkerLink, "on_event", lambda self, fd, mask: events.append(mask))
    run_until(setting.loop, lambda: True)
    assert events == []


def test_what_waits_for_a_worker_that_ends_is_closed(setting: Setting) -> None:
    with socket.socket() as sock:
        for _ in range(100):
            setting.link.tell(orders.LogFile(), sock.fileno())
        setting.worker.die()
        assert setting.until_ended() in ("it has ended", "[Errno 104] Connection reset by peer")
        assert copies(sock.fileno()) == 1
        setting.link.tell(orders.LogFile(), sock.fileno())  # to nobody
        assert copies(sock.fileno()) == 1


def test_all_that_was_told_has_taken_effect_when_the_last_sync_is_answered(setting: Setting) -> None:
    setting.start()
    assert setting.link.settled
    setting.link.sync()
    setting.link.sync(count=True)
    assert setting.worker.hear() == [orders.Sync(1, False), orders.Sync(2, True)]
    setting.worker.say(orders.Synced(1))
    run_until(setting.loop, lambda: setting.changes == 1)
    assert not setting.link.settled
    setting.worker.say(orders.Synced(2))
    run_until(setting.loop, lambda: setting.changes == 2)
    assert setting.link.settled


def test_a_worker_gets_sockets_that_are_connected_to_endpoints_and_no_others(
    setting: Setting, tmp_path: Path
) -> None:
    path = str(tmp_path / "x.sock")
    setting.services["br0"] = [Service(ServiceKey(80), Endpoint(f"unix:{path}", 0))]
    setting.start()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        setting.worker.say(orders.Dial(1, 5.0, path))
        setting.worker.say(orders.Dial(2, 5.0, "/run/dbus/system_bus_socket"))
        run_until(setting.loop, lambda: setting.worker.hear() == [] and len(setting.worker.heard) == 2)
        assert setting.worker.heard == [orders.Dialled(1, 0), orders.Dialled(2, errno.EACCES)]
        assert setting.worker.descriptors == [1, 0]
        server.accept()[0].close()


def test_a_worker_that_takes_no_answers_gets_no_more_sockets(setting: Setting, tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    setting.services["br0"] = [Service(ServiceKey(80), Endpoint(f"unix:{path}", 0))]
    setting.start()
    for number in range(worker_link.MOST_OUTGOING):
        setting.link.tell(orders.Forget(f"br{number}"))
    while not setting.link.behind:
        setting.link.tell(orders.Forget("br0"))
    before = len(descriptors())
    for number in range(10):
        setting.link.tell(orders.Forget("br0"))
        setting.dialing.dial(setting.link, orders.Dial(number, 5.0, path))
    assert len(descriptors()) == before
    run_until(setting.loop, lambda: setting.worker.hear() == [] and not setting.link.behind)
    assert not any(isinstance(each, orders.Dialled) for each in setting.worker.heard)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_dial_for_no_time_ends_the_worker(setting: Setting, seconds: float) -> None:
    setting.start()
    setting.worker.say(orders.Dial(1, seconds, "/run/x.sock"))
    assert setting.until_ended() == "unexpected Dial"
    wait_for(lambda: ended(setting.worker.pid))


@pytest.mark.parametrize("number", [0, 2, 2**32 - 1])
def test_an_answer_to_nothing_ends_the_worker(setting: Setting, number: int) -> None:
    setting.start()
    setting.link.sync()
    setting.worker.say(orders.Synced(number))
    assert setting.until_ended() == "unexpected Synced"
    wait_for(lambda: ended(setting.worker.pid))


def test_a_worker_that_does_not_answer_is_killed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "PATIENCE", 0.01)
    setting.start()
    setting.link.sync()
    assert setting.until_ended() == "it did not answer"
    wait_for(lambda: ended(setting.worker.pid))


def test_a_worker_that_answers_is_not_killed_although_it_is_asked_again(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "PATIENCE", 0.2)
    setting.start()
    for _ in range(5):
        before = setting.changes
        setting.link.sync()
        setting.worker.answer()
        run_until(setting.loop, lambda before=before: setting.changes > before)  # type: ignore[misc]
    # After the last answer the link looks once more, and then no timer is left.
    run_until(setting.loop, lambda: setting.link._timer is None)
    assert setting.ends == []


def test_a_worker_that_starts_slowly_has_more_time(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "PATIENCE", 0.01)
    setting.worker.born()
    setting.link.sync()
    judged = []
    judge = setting.link._judge

    def note(asked: int) -> None:
        judged.append(asked)
        judge(asked)

    monkeypatch.setattr(setting.link, "_judge", note)
    run_until(setting.loop, lambda: len(judged) >= 3)
    assert setting.ends == []
    monkeypatch.setattr(worker_link, "GREETING", 0.0)
    assert setting.until_ended() == "it did not answer"
    wait_for(lambda: ended(setting.worker.pid))


def test_the_process_that_is_killed_is_the_one_of_the_pidfd_that_came_first(setting: Setting) -> None:
    other = paused_process()
    setting.start()
    pidfd = os.pidfd_open(other)
    send(setting.worker.channel, wire.Born(other), [pidfd])
    os.close(pidfd)
    assert setting.until_ended() == "unexpected Born"
    wait_for(lambda: ended(setting.worker.pid))
    assert not ended(other)
    end(other)


UNEXPECTED: dict[str, tuple[wire.Born | orders.Message, int]] = {
    "Ready before Born": (orders.Ready(orders.VERSION, False), 1),
    "Ready without counters": (orders.Ready(orders.VERSION, False), 0),
    "Born without a pidfd": (wire.Born(1), 0),
    "an answer before a question": (orders.Synced(1), 0),
    "what only workers hear": (orders.Drain(), 2),
}


@pytest.mark.parametrize("case", UNEXPECTED)
def test_an_unexpected_message_ends_the_link_and_leaves_no_descriptor(setting: Setting, case: str) -> None:
    message, count = UNEXPECTED[case]
    with socket.socket() as sock:
        if isinstance(message, wire.Born):
            send(setting.worker.channel, message, [sock.fileno()] * count)
        else:
            setting.worker.say(message, *[sock.fileno()] * count)
        assert setting.until_ended() == f"unexpected {type(message).__name__}"
        assert copies(sock.fileno()) == 1


def test_counters_that_are_no_sealed_memory_end_the_worker(setting: Setting) -> None:
    setting.worker.born()
    file = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    setting.worker.say(orders.Ready(orders.VERSION, False), file)
    assert setting.until_ended() == "its counters are not sealed"
    assert copies(file) == 1
    os.close(file)
    wait_for(lambda: ended(setting.worker.pid))


def test_a_worker_that_is_adopted_is_known_from_the_kernel(tmp_path: Path, setting: Setting) -> None:
    """Which process listened at the meeting point, and not what it says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as meeting:
        meeting.bind(str(tmp_path / "other"))
        meeting.listen()
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.connect(str(tmp_path / "other"))
        link = WorkerLink(setting.loop, channel, str(tmp_path / "other"), setting)
        link.adopt()
        assert link.pid == os.getpid()
        link.close()
        link.remove_meeting()
        link.remove_meeting()
    assert not (tmp_path / "other").exists()
