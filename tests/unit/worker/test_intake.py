"""What a relay may pass on: connections of its bridge's guests to a service port, and nothing else."""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.unit.recorder import Recorder
from tests.unit.sockets import copies, reset, run_until, wait_for
from tproxy.datapath.connections import Connections
from tproxy.datapath.target import Target
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.model import Endpoint, Service, ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import Delivery, pair, send
from tproxy.relay.listening import BATCH
from tproxy.worker.admission import Admission
from tproxy.worker.intake import Intake

HERE = "127.0.0.1"  # in place of the service address, which only a bridge's namespace has


def key_here(port: int) -> ServiceKey:
    return ServiceKey(port, address=HERE)


class Worker:
    """The part of a worker that an intake needs, with the test as the relay of ``br0``."""

    def __init__(self, *, most: int = 1000, cookie: int | None = None) -> None:
        self.loop = Loop()
        self.log = Recorder()
        self.connections = Connections(self.loop, self.log)
        self.admission = Admission(self.loop, self.log, most, self.connections, self._poll)
        self.endpoint = socket.create_server((HERE, 0), backlog=1000)
        self.listener = socket.create_server((HERE, 0), backlog=1000)
        self.port = self.listener.getsockname()[1]
        self.target = Target("br0", Service(key_here(self.port), Endpoint(*self.endpoint.getsockname())))
        self.lost: list[Intake] = []
        self.opened: list[socket.socket] = []
        self.cookie = netns.cookie(self.listener) if cookie is None else cookie
        self.intakes: list[Intake] = []
        self.relays: list[socket.socket] = []
        self.add_intake()

    def _poll(self) -> None:
        for each in self.intakes:
            each.poll()

    def add_intake(self) -> socket.socket:
        near, far = pair()
        self.relays.append(far)
        self.intakes.append(
            Intake("br0", self.cookie, near, self.loop, self.log, self.connections, self.admission, self)
        )
        return far

    def find(self, bridge: str, key: ServiceKey) -> Target | None:
        return self.target if (bridge, key) == ("br0", key_here(self.port)) else None

    def dialled(self, intake: Intake, delivery: Delivery) -> None:
        raise AssertionError("nothing was asked for")

    def ended(self, intake: Intake) -> None:
        self.lost.append(intake)
        self.intakes.remove(intake)
        intake.close()

    def guest(self) -> tuple[socket.socket, socket.socket]:
        """Return a guest's connection: its own side, and the relay's."""
        far = socket.create_connection((HERE, self.port))
        self.opened.append(far)
        near, _ = self.listener.accept()
        return far, near

    def pass_on(self, *socks: socket.socket, relay: int = 0, port: int | None = None) -> None:
        """Pass sockets on, as a relay does, which closes its own copies."""
        send(
            self.relays[relay],
            wire.Accepted(key_here(port or self.port)),
            [each.fileno() for each in socks],
        )
        for each in socks:
            each.close()

    def turn(self) -> None:
        """Let the loop handle what is there."""
        run_until(self.loop, lambda: True)
        run_until(self.loop, lambda: True)

    def close(self) -> None:
        self.connections.abort_all("test over")
        for each in (*self.relays, *self.opened, self.endpoint, self.listener):
            each.close()
        for last in list(self.intakes):
            self.ended(last)
        self.loop.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_a_guest_is_connected_with_the_endpoint(worker: Worker) -> None:
    far, near = worker.guest()
    worker.pass_on(near)
    run_until(worker.loop, lambda: len(worker.connections) == 1)
    (connection,) = worker.connections
    assert connection.peer == far.getsockname()
    assert worker.log.warnings == []


def udp(worker: Worker) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HERE, worker.port))
    sock.connect((HERE, 9))
    return sock


def unix(worker: Worker) -> socket.socket:
    one, other = socket.socketpair()
    worker.opened.append(other)
    return one


def listening(worker: Worker) -> socket.socket:
    return worker.listener.dup()


def ipv6(worker: Worker) -> socket.socket:
    with socket.create_server(("::1", worker.port), family=socket.AF_INET6) as server:
        worker.opened.append(socket.create_connection(server.getsockname()[:2]))
        return server.accept()[0]


def ipv4_in_ipv6(worker: Worker) -> socket.socket:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        worker.opened.append(socket.create_connection((HERE, server.getsockname()[1])))
        return server.accept()[0]


def another_port(worker: Worker) -> socket.socket:
    with socket.create_server((HERE, 0)) as server:
        worker.opened.append(socket.create_connection(server.getsockname()))
        return server.accept()[0]


def another_address(worker: Worker) -> socket.socket:
    with socket.create_server(("127.0.0.2", worker.port)) as server:
        worker.opened.append(socket.create_connection(server.getsockname()))
        return server.accept()[0]


def the_guests_side(worker: Worker) -> socket.socket:
    far, near = worker.guest()
    worker.opened.append(near)
    return far.dup()


FOREIGN: dict[str, Callable[[Worker], socket.socket]] = {
    "UDP": udp,
    "UNIX": unix,
    "listening": listening,
    "IPv6": ipv6,
    "IPv4 in IPv6": ipv4_in_ipv6,
    "another port": another_port,
    "another address": another_address,
    "the guest's side": the_guests_side,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_socket_that_no_guest_has_is_refused_and_closed(worker: Worker, kind: str) -> None:
    sock = FOREIGN[kind](worker)
    with sock.dup() as kept:
        before = copies(kept.fileno())
        _, near = worker.guest()
        worker.pass_on(sock, near)
        run_until(worker.loop, lambda: len(worker.connections) == 1)  # the guest behind it is served
        worker.turn()
        assert copies(kept.fileno()) == before - 1
    (warning,) = worker.log.warnings
    assert warning.startswith(
        f"bridge br0: connection to port {key_here(worker.port).in_words} reset: it is "
    )
    assert worker.lost == []
    assert worker.target.read().total == 1


def test_a_socket_of_another_namespace_is_refused() -> None:
    worker = Worker(cookie=(netns.cookie(socket.socket()) or 0) + 1)
    far, near = worker.guest()
    worker.pass_on(near)
    run_until(worker.loop, lambda: bool(worker.log.warnings))
    assert worker.log.warnings == [
        f"bridge br0: connection to port {key_here(worker.port).in_words} reset: it is of another namespace"
    ]
    assert not worker.connections
    with pytest.raises(ConnectionResetError):
        far.recv(1)
    worker.close()


def test_where_the_kernel_has_no_cookies_the_channel_alone_proves_the_bridge(worker: Worker) -> None:
    worker.ended(worker.intakes[0])
    worker.cookie = None
    worker.add_intake()
    _, near = worker.guest()
    worker.pass_on(near, relay=1)
    run_until(worker.loop, lambda: len(worker.connections) == 1)


def test_a_socket_that_is_not_connected_is_closed(worker: Worker) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    worker.listener.close()
    sock.bind((HERE, worker.port))
    with sock.dup() as kept:
        worker.pass_on(sock)
        wait_for(lambda: bool(select.select([worker.intakes[0]._channel], [], [], 0)[0]))
        worker.turn()
        assert copies(kept.fileno()) == 1
    assert worker.target.read().total == 0


def test_a_guest_that_has_reset_its_connection_meanwhile_is_nothing_to_warn_of(worker: Worker) -> None:
    far, near = worker.guest()
    reset(far)
    wait_for(lambda: bool(select.select([near], [], [], 0)[0]))
    _, later = worker.guest()
    worker.pass_on(near, later)
    run_until(worker.loop, lambda: len(worker.connections) == 1)
    worker.turn()
    assert worker.log.warnings == []
    assert len(worker.connections) == 1


def test_a_port_without_a_service_resets_the_guest(worker: Worker) -> None:
    far, near = worker.guest()
    worker.pass_on(near, port=1)
    run_until(worker.loop, lambda: bool(worker.log.warnings))
    assert worker.log.warnings == [
        "bridge br0: connection to port 127.0.0.1:1 reset: there is no such service"
    ]
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_a_descriptor_that_is_no_socket_is_closed_and_the_worker_goes_on(worker: Worker) -> None:
    file = os.memfd_create("no socket")
    send(worker.relays[0], wire.Accepted(key_here(worker.port)), [file, file])
    run_until(worker.loop, lambda: bool(worker.log.warnings))
    worker.turn()
    assert copies(file) == 1
    os.close(file)
    _, near = worker.guest()
    worker.pass_on(near)
    run_until(worker.loop, lambda: len(worker.connections) == 1)


def test_a_hostile_relay_cannot_fill_the_log(worker: Worker) -> None:
    for _ in range(5):
        worker.pass_on(*(socket.socket(socket.AF_UNIX) for _ in range(10)))
    worker.turn()
    assert len(worker.log.warnings) == 10


def test_an_unexpected_message_is_left_out(worker: Worker) -> None:
    file = worker.listener.fileno()
    send(worker.relays[0], wire.Listeners((ServiceKey(80),)), [file])
    _, near = worker.guest()
    worker.pass_on(near)
    run_until(worker.loop, lambda: len(worker.connections) == 1)
    assert worker.log.warnings == ["bridge br0: unexpected Listeners from the relay"]
    assert copies(file) == 1


def test_guests_behind_a_message_that_cannot_be_read_are_served(worker: Worker) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [worker.listener.fileno()]))]
    worker.relays[0].sendmsg([b"?"], rights)
    worker.pass_on(worker.guest()[1])
    run_until(worker.loop, lambda: bool(worker.connections))
    assert worker.log.warnings == [
        "bridge br0: a message of the relay is left out: a message of unknown kind b'?'"
    ]
    assert copies(worker.listener.fileno()) == 1
    assert not worker.lost


def test_the_end_of_the_channel_comes_after_the_guests_that_were_passed_on(worker: Worker) -> None:
    for _ in range(2):
        worker.pass_on(worker.guest()[1])
    worker.relays[0].close()
    run_until(worker.loop, lambda: bool(worker.lost))
    assert len(worker.connections) == 2


# Room


def test_relays_that_send_at_the_same_moment_are_heard_one_by_one_when_there_is_room_for_one() -> None:
    worker = Worker(most=BATCH + 1)
    for _ in range(3):
        worker.add_intake()
    for relay in range(4):
        worker.pass_on(*(worker.guest()[1] for _ in range(BATCH)), relay=relay)
    taken = []
    for _ in range(4):
        run_until(worker.loop, lambda: len(worker.connections) > 0)
        worker.turn()
        taken.append(len(worker.connections))
        worker.connections.abort_all("ended")
    assert taken == [BATCH] * 4
    worker.close()


def test_without_room_the_end_of_a_channel_costs_no_events_and_is_noticed_after_the_guests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(most=BATCH)
    worker.pass_on(worker.guest()[1])
    run_until(worker.loop, lambda: worker.admission.full)
    worker.pass_on(worker.guest()[1])
    worker.relays[0].close()
    events = 0
    handle = Intake.on_event

    def note(each: Intake, fd: int, mask: int) -> None:
        nonlocal events
        events += 1
        handle(each, fd, mask)

    monkeypatch.setattr(Intake, "on_event", note)
    for _ in range(10):
        worker.turn()
    assert events <= 1
    assert worker.lost == []
    worker.connections.abort_all("ended")
    run_until(worker.loop, lambda: bool(worker.lost))
    assert worker.target.read().total == 2
    worker.close()


def test_what_a_worker_has_not_received_is_for_the_one_after_it(worker: Worker) -> None:
    """The daemon has a copy of the worker's end."""
    copy = worker.intakes[0]._channel.dup()
    worker.ended(worker.intakes[0])
    worker.pass_on(worker.guest()[1])
    worker.turn()
    assert not worker.connections
    worker.intakes.append(
        Intake(
            "br0", worker.cookie, copy, worker.loop, worker.log, worker.connections, worker.admission, worker
        )
    )
    run_until(worker.loop, lambda: len(worker.connections) == 1)
    with suppress(OSError):
        worker.relays[0].shutdown(socket.SHUT_WR)
    run_until(worker.loop, lambda: len(worker.lost) == 2)
