"""Counters in shared memory: what a worker counts, the daemon reads, whatever becomes of either."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.child import in_child
from tproxy.datapath import counters, counts
from tproxy.datapath.counters import SIZE, Counters, View
from tproxy.datapath.counts import CAUSES, OPEN, TO_ENDPOINT, TO_GUEST, TOTAL, Counts, LoopTimes
from tproxy.errors import ProtocolError
from tproxy.model import ServiceKey


def test_the_daemon_reads_what_a_worker_counts() -> None:
    worker = Counters()
    view = View(worker.fd)
    assert view.read() == (0, {})
    one, other = worker.record("br0", ServiceKey(80)), worker.record("a-long-bridge-x", ServiceKey(65535))
    one.counts[OPEN], one.counts[TOTAL] = 2, 5
    one.counts[TO_ENDPOINT], one.counts[TO_GUEST] = 2**40, 2**63
    other.counts[OPEN] = 1
    before = time.time()
    other.failed("endpoint 10.0.0.1:80 refused")
    open_, found = view.read()
    assert open_ == 3
    assert found["br0", ServiceKey(80)] == Counts(2, 5, 2**40, 2**63) == one.read()
    counted = found["a-long-bridge-x", ServiceKey(65535)]
    assert counted[:5] == (1, 0, 0, 0, "endpoint 10.0.0.1:80 refused")
    assert before <= counted.last_error_at <= time.time()
    assert counted == other.read()


@given(st.text())
def test_any_reason_can_be_noted_and_is_cut_if_it_is_long(why: str) -> None:
    record = counters.unshared()
    record.failed(why)
    whole = why.encode(errors="replace")
    if len(whole) <= counters._ERROR_BYTES:
        assert record.read().last_error == whole.decode().rstrip("\0")
    else:
        assert whole.startswith(
            record.read().last_error.encode().removesuffix("\N{REPLACEMENT CHARACTER}".encode())
        )
    assert record.read()[:4] == (0, 0, 0, 0)


def test_the_counts_stay_readable_when_the_worker_has_ended() -> None:
    worker = Counters()
    record = worker.record("br0", ServiceKey(80))
    record.counts[TOTAL] = 7
    view = View(worker.fd)
    os.close(worker.fd)
    del worker, record
    assert view.read()[1] == {("br0", ServiceKey(80)): Counts(total=7)}


def test_counts_of_a_worker_process_are_read_while_it_counts() -> None:
    worker = Counters()
    record = worker.record("br0", ServiceKey(80))
    view = View(worker.fd)
    pid = os.fork()
    if pid == 0:
        record.counts[TOTAL] = 3
        record.failed("in another process")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    counts = view.read()[1]["br0", ServiceKey(80)]
    assert (counts.total, counts.last_error) == (3, "in another process")
    os.close(worker.fd)


def test_nobody_can_take_the_memory_away() -> None:
    worker = Counters()
    for change in (
        lambda: os.ftruncate(worker.fd, 0),
        lambda: os.ftruncate(worker.fd, 2 * SIZE),
        lambda: fcntl.fcntl(worker.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(OSError, match="Operation not permitted"):
            change()
    os.close(worker.fd)


def test_the_daemon_can_only_read() -> None:
    worker = Counters()
    view = View(worker.fd)
    memory = view._memory
    assert isinstance(memory, mmap.mmap)
    with pytest.raises(TypeError):
        memory[0] = 1
    os.close(worker.fd)


def memory(size: int, *, sealed: bool) -> int:
    fd = os.memfd_create("foreign", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, counters._SEALS)
    return fd


FOREIGN = {
    "not sealed": lambda: memory(SIZE, sealed=False),
    "too small": lambda: memory(4096, sealed=True),
    "too large": lambda: memory(2 * SIZE, sealed=True),
    "no memory": lambda: os.open("/dev/null", os.O_RDWR),
    "write only": lambda: os.open("/dev/null", os.O_WRONLY),
    "a process": lambda: os.pidfd_open(os.getpid()),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_memory_that_no_worker_makes_is_refused(kind: str) -> None:
    fd = FOREIGN[kind]()
    with pytest.raises(ProtocolError):
        View(fd)
    os.close(fd)


def test_a_hostile_worker_can_write_anything_and_the_daemon_reads_on() -> None:
    fd = memory(SIZE, sealed=True)
    view = View(fd)
    os.pwrite(fd, b"\xff" * 4096, 0)  # the number of records is far too large
    open_, found = view.read()
    assert open_ > 0
    assert not found  # of a protocol that there is not
    os.close(fd)


def test_where_no_file_may_grow_a_worker_counts_for_itself() -> None:
    def worker() -> list[object]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        counting = Counters()
        record = counting.record("br0", ServiceKey(80))
        record.counts[TOTAL] = 1
        return [record.read().total, View(counting.fd).read()]

    assert in_child(worker) == [1, [0, {}]]


# Records


def test_a_record_is_used_again_only_when_the_last_connection_of_its_service_has_ended() -> None:
    worker = Counters()
    view = View(worker.fd)
    gone = worker.record("br0", ServiceKey(80))
    gone.counts[OPEN], gone.counts[TOTAL] = 2, 9
    worker.give_back(gone)
    second = worker.record("br0", ServiceKey(80))
    assert view.read() == (2, {("br0", ServiceKey(80)): Counts()})  # its connections are open still
    gone.counts[OPEN] -= 1
    third = worker.record("br0", ServiceKey(81))
    gone.counts[OPEN] -= 1
    assert gone not in (second, third)
    fourth = worker.record("br1", ServiceKey(82))
    assert fourth is gone
    assert fourth.read() == Counts()
    assert view.read() == (
        0,
        {
            ("br0", ServiceKey(80)): Counts(),
            ("br0", ServiceKey(81)): Counts(),
            ("br1", ServiceKey(82)): Counts(),
        },
    )
    os.close(worker.fd)


def test_services_that_come_and_go_need_no_more_records() -> None:
    worker = Counters()
    for number in range(100):
        worker.give_back(worker.record("br0", ServiceKey(number)))
    assert worker._used == 1
    os.close(worker.fd)


def test_a_service_without_a_record_does_not_take_the_place_of_one_that_could_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counters, "MOST_RECORDS", 1)
    worker = Counters()
    view = View(worker.fd)
    shared = worker.record("br0", ServiceKey(80))
    alone = worker.record("br0", ServiceKey(81))
    alone.counts[TOTAL] = 1
    assert alone.read().total == 1
    assert set(view.read()[1]) == {("br0", ServiceKey(80))}
    # The next service gets the record that the daemon reads.
    worker.give_back(shared)
    worker.give_back(alone)
    worker.record("br0", ServiceKey(82)).counts[TOTAL] = 3
    assert view.read()[1] == {("br0", ServiceKey(82)): Counts(total=3)}
    os.close(worker.fd)


def test_each_connection_is_in_one_place_of_each_histogram() -> None:
    worker = Counters()
    record = worker.record("br0", ServiceKey(80))
    for seconds in (0.0, 0.001, 0.0011, 5.0, 6.0):
        record.connected(seconds)
    record.ended(counts.FINISHED, 0.002)
    record.ended(counts.RESET_BY_GUEST, 100_000.0)
    record.never_began(counts.LIMITED)
    record.dial_failed(counts.REFUSED)
    counted = View(worker.fd).read()[1]["br0", ServiceKey(80)]
    assert counted.connects == (2, 1, *[0] * 9, 1, 1)
    assert counted.connect_seconds == pytest.approx(11.0021)
    assert counted.durations == (1, *[0] * 10, 1)
    assert counted.seconds == pytest.approx(100_000.002)
    assert dict(zip(counts.OUTCOMES, counted.outcomes, strict=True)) == {
        **dict.fromkeys(counts.OUTCOMES, 0),
        "finished": 1,
        "reset_by_guest": 1,
        "limited": 1,
    }
    assert dict(zip(counts.REASONS, counted.dial_failures, strict=True)) == {
        **dict.fromkeys(counts.REASONS, 0),
        "refused": 1,
    }
    os.close(worker.fd)


def test_connections_that_were_open_in_a_lost_worker_have_ended() -> None:
    counted = Counts(open=3, total=10).of_lost_worker()
    assert counted.open == 0
    assert counted.outcomes[counts.WORKER_LOST] == 3


def test_the_times_of_the_loop_are_read_as_the_worker_noted_them() -> None:
    worker = Counters()
    view = View(worker.fd)
    assert view.loop() == LoopTimes()
    times = LoopTimes(7, 1.5, (1, 2, 3, 4, 5, 6, 7))
    worker.note_loop(times)
    assert view.loop() == times
    assert view.read() == (0, {})
    os.close(worker.fd)


def test_who_gets_a_view_of_the_counters_cannot_change_them() -> None:
    worker = Counters()
    worker.record("br0", ServiceKey(80)).counts[TOTAL] = 7
    fd = counters.read_only(worker.fd)
    assert View(fd).read()[1]["br0", ServiceKey(80)].total == 7
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, SIZE)
    os.close(fd)
    os.close(worker.fd)


@given(
    st.lists(
        st.builds(
            Counts,
            *[st.integers(0, 100)] * 4,
            st.text(max_size=5),
            st.floats(0, 100),
            st.tuples(*[st.integers(0, 100)] * len(CAUSES)),
            st.tuples(*[st.integers(0, 100)] * len(Counts().tallies)),
            st.integers(0, 100).map(float),
            st.integers(0, 100).map(float),
        ),
        max_size=5,
    )
)
def test_sums_do_not_depend_on_the_order_but_for_errors_of_one_moment(parts: list[Counts]) -> None:
    total = back = Counts()
    for each in parts:
        total = total.plus(each)
    for each in reversed(parts):
        back = back.plus(each)
    assert total[:4] == back[:4]
    assert total[6:] == back[6:]
    assert (
        total.last_error_at == back.last_error_at == max((each.last_error_at for each in parts), default=0.0)
    )


def test_a_reader_without_descriptors_says_so() -> None:
    with pytest.raises(ProtocolError, match=os.strerror(errno.EBADF)):
        View(-1)
