"""A soak: which losses a fault explains, what is a leak, and what both ends agree about."""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import replace
from itertools import islice

import pytest

from bench.soak import plan, report
from bench.soak.exchange import CHUNK, Damaged, Header, _Sender, answer, ask
from bench.soak.judgement import GROWTH, KEPT, Connection, Event, Judgement, Loss, Sample, judge

MINE = Connection("br0", "10.0.0.5", 4000)
LOSS = Loss("kept", MINE, 7001, began=10.0, ended=20.0, error="ECONNRESET")
NOTHING = Sample(0.0, {})


def judged(loss: Loss, *events: Event) -> Judgement:
    return judge([loss], events, NOTHING, [NOTHING], [])


def test_a_killed_worker_explains_the_reset_of_its_own_connections_only() -> None:
    kill = Event("kill worker", 19.0, 19.5, connections=frozenset([MINE]))
    assert judged(LOSS, kill).explained == {"kill worker": 1}
    others = replace(LOSS, connection=MINE._replace(port=4001))
    assert judged(others, kill).unexplained == [others]
    assert not judged(others, kill).well


@pytest.mark.parametrize("name", ["kill daemon", "kill relay", "kill spawner", "kill watcher", "restart"])
def test_nothing_may_be_lost_when_another_process_is_killed(name: str) -> None:
    assert judged(LOSS, Event(name, 19.0, 20.0)).unexplained == [LOSS]


def test_an_endpoint_that_is_away_explains_resets_of_its_own_service_at_that_time() -> None:
    away = Event("endpoint away", 19.0, 21.0, service=7001)
    assert judged(LOSS, away).well
    assert not judged(replace(LOSS, service=7002), away).well
    assert not judged(replace(LOSS, ended=18.0), away).well
    assert not judged(replace(LOSS, began=30.0, ended=31.0), away).well


def test_a_bridge_that_is_down_explains_what_its_own_guests_lose() -> None:
    down = Event("bridge down and up", 19.0, 21.0, bridge="br0")
    for error in ("ECONNRESET", "EHOSTUNREACH", "timeout"):
        assert judged(replace(LOSS, error=error), down).well
    assert not judged(replace(LOSS, connection=MINE._replace(bridge="br1")), down).well


def test_bytes_that_were_not_sent_are_never_explained() -> None:
    kill = Event("kill worker", 19.0, 19.5, connections=frozenset([MINE]))
    assert not judged(replace(LOSS, error="damaged: the end, 5 bytes too early"), kill).well


def test_what_is_there_at_the_end_and_was_not_at_the_beginning_is_a_leak() -> None:
    before = Sample(0.0, {"descriptors": 30, "private memory: a": 10.0})
    for figures in ({"descriptors": 31}, {"namespaces": 1}, {"private memory: a": 10.1 + KEPT}):
        assert not judge([], [], before, [before, Sample(1.0, figures)], []).well
    fewer = {"descriptors": 30, "private memory: a": 9.9 + KEPT}
    assert judge([], [], before, [Sample(1.0, fewer)], []).well


def test_memory_that_grows_under_an_even_load_is_a_leak() -> None:
    def grown(by: float) -> bool:
        samples = [Sample(n, {"private memory: a": 20 + by * n / 99, "descriptors": n}) for n in range(100)]
        return judge([], [], NOTHING, [NOTHING], samples).well

    assert grown(GROWTH)
    assert not grown(2 * GROWTH)


def test_the_plan_does_everything_once_before_it_repeats() -> None:
    length = len(plan.FAULTS)
    actions = list(islice(plan.actions(plan.FAULTS, 1), 2 * length))
    assert sorted(actions[:length]) == sorted(actions[length:]) == sorted(plan.FAULTS)
    assert actions[:length] != actions[length:]


def test_the_report_names_losses_and_the_action_before_each() -> None:
    events = [Event("restart", 18.0, 19.0), Event("reload", 30.0, 31.0)]
    judgement = judge([LOSS], events, NOTHING, [NOTHING], [])
    text = report.markdown(["a run"], {"bytes": 7}, events, judgement, NOTHING, [NOTHING])
    assert "**Not all went well.**" in text
    assert "10.0.0.5:4000, port 7001: ECONNRESET, after 10.000 s; 2.000 s after: restart" in text


@pytest.mark.parametrize(
    "header", [Header(0, 0, False), Header(100, 200_000, True), Header(200_000, 100_000, True)]
)
def test_both_ends_agree_about_what_was_sent(header: Header) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ending: list[bool] = []

        def serve() -> None:
            ending.append(answer(theirs))
            theirs.close()

        endpoint = threading.Thread(target=serve)
        endpoint.start()
        ask(ours, header)
        endpoint.join()
    assert ending == [not header.last]


def test_an_end_that_comes_too_early_is_damage() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"x" * 10)
        theirs.shutdown(socket.SHUT_WR)
        with theirs, pytest.raises(Damaged, match="90 bytes too early"):
            ask(ours, Header(0, 100, False))


def cut_short(reset: bool) -> Exception:
    """What the guest meets whose peer ends a stream both ways in the middle; it is sending at that time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        guest = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with guest, peer:

        def cut() -> None:
            peer.sendall(b"x" * CHUNK)
            peer.recv(1 << 20)
            if reset:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                peer.shutdown(socket.SHUT_WR)
            peer.close()

        endpoint = threading.Thread(target=cut)
        endpoint.start()
        with pytest.raises((Damaged, OSError)) as met:
            ask(guest, Header(30_000_000, 3_000_000, False), pause=0.02)
        endpoint.join()
    return met.value


def test_a_reset_that_only_the_sender_meets_is_no_end_of_file() -> None:
    error = cut_short(reset=True)
    assert isinstance(error, ConnectionResetError)


def test_a_reset_that_only_the_end_of_sending_meets_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as guest:
        guest.connect(server.getsockname())
        taken, _ = server.accept()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        taken.close()
        with pytest.raises(ConnectionResetError):
            _Sender(guest, 0, last=True).send()


def test_an_end_of_file_that_a_reset_follows_is_damage() -> None:
    error = cut_short(reset=False)
    assert isinstance(error, Damaged)


def test_nothing_explains_an_end_of_file_before_a_reset() -> None:
    kill = Event("kill worker", 19.0, 19.5, connections=frozenset([MINE]))
    assert not judged(replace(LOSS, error="EPIPE"), kill).well
