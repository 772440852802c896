"""A worker in a process of its own, with the test as daemon, relay, guests and endpoint."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.sockets import wait_for
from tests.unit.worker.test_intake import key_here
from tproxy.datapath import connections
from tproxy.datapath.counters import View
from tproxy.datapath.counts import Counts
from tproxy.kernel import netns
from tproxy.log.file import Log
from tproxy.model import Endpoint, Service
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send, send_bytes
from tproxy.worker import orders
from tproxy.worker.worker import Worker

HERE = "127.0.0.1"  # in place of the service address, which only a bridge's namespace has


class Host:
    """A worker's process, and all that it has to do with."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "meeting")
        self.log = directory / "log"
        self.endpoint = socket.create_server((HERE, 0))
        self.listener = socket.create_server((HERE, 0))
        self.port = self.listener.getsockname()[1]
        self.opened: list[socket.socket] = [self.endpoint, self.listener]
        self.synced = 0
        self.daemon, theirs = pair()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as meeting:
            meeting.bind(self.path)
            meeting.listen()
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    for each in (*self.opened, self.daemon):
                        each.close()
                    log = Log()
                    log.use(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
                    Worker(meeting, log).serve(theirs)
                finally:
                    os._exit(0)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.counters = self.hear_ready()

    def hear_ready(self, *, draining: bool = False) -> View:
        delivery = receive(self.daemon, orders.decode)
        assert delivery is not None
        with delivery:
            assert delivery.message == orders.Ready(orders.VERSION, draining)
            return View(delivery.fds[0])

    def tell(self, message: orders.Message, *fds: int) -> None:
        send_bytes(self.daemon, orders.encode(message), fds)

    def sync(self, *, counting: bool = False) -> None:
        """Return when all has taken effect that the worker was told."""
        self.synced += 1
        self.tell(orders.Sync(self.synced, counting))
        delivery = receive(self.daemon, orders.decode)
        assert delivery is not None
        assert delivery.message == orders.Synced(self.synced)

    def serve(self, *ports: int, bridge: str = "br0") -> None:
        services = tuple(Service(key_here(port), Endpoint(*self.endpoint.getsockname())) for port in ports)
        self.tell(orders.Services(bridge, True, True, services))

    def relay(self, bridge: str = "br0") -> socket.socket:
        """Return a data channel to the worker."""
        near, far = pair()
        self.tell(orders.Bridge(bridge, netns.cookie(self.listener)), far.fileno())
        far.close()
        self.opened.append(near)
        return near

    def guest(self, relay: socket.socket) -> socket.socket:
        """Return a guest whose connection was passed on."""
        guest = socket.create_connection((HERE, self.port))
        self.opened.append(guest)
        with self.listener.accept()[0] as accepted:
            send(relay, wire.Accepted(key_here(self.port)), [accepted.fileno()])
        return guest

    def talk(self, guest: socket.socket) -> socket.socket:
        """Let a guest ask for something and get an answer; return the endpoint's side."""
        guest.sendall(b"question")
        endpoint, _ = self.endpoint.accept()
        self.opened.append(endpoint)
        assert endpoint.recv(100) == b"question"
        endpoint.sendall(b"answer")
        assert guest.recv(100) == b"answer"
        return endpoint

    def lose_daemon(self) -> None:
        self.daemon.close()

    def new_daemon(self) -> None:
        self.daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon.connect(self.path)

    def has_ended(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        for each in (*self.opened, self.daemon):
            each.close()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def test_a_guest_talks_with_the_endpoint_and_is_counted(host: Host) -> None:
    host.serve(host.port)
    host.talk(host.guest(host.relay()))
    host.sync(counting=True)
    open_, counts = host.counters.read()
    key = "br0", key_here(host.port)
    assert (open_, counts[key][:4]) == (1, Counts(1, 1, 8, 6)[:4])
    assert sum(counts[key].connects) == 1
    assert host.counters.loop().turns > 0


def test_a_relay_can_be_faster_than_the_daemon(host: Host) -> None:
    relay = host.relay()
    host.sync()
    os.kill(host.pid, signal.SIGSTOP)
    guest = host.guest(relay)
    host.serve(host.port)  # both wait for the worker when it goes on
    os.kill(host.pid, signal.SIGCONT)
    host.talk(guest)


def test_bytes_are_counted_a_few_connections_at_a_time_and_answered_when_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "COUNTED_AT_ONCE", 1)
    host = Host(tmp_path)
    host.serve(host.port)
    relay = host.relay()
    for _ in range(5):
        host.talk(host.guest(relay))
    for number, counting in ((1, True), (2, False), (3, True)):
        host.tell(orders.Sync(number, counting))
    answered = 0
    while answered < 3:  # one answer may be for several
        delivery = receive(host.daemon, orders.decode)
        assert delivery is not None
        assert isinstance(delivery.message, orders.Synced)
        assert delivery.message.number > answered
        answered = delivery.message.number
    assert host.counters.read()[1]["br0", key_here(host.port)][:4] == (5, 5, 5 * 8, 5 * 6)
    host.close()


def test_a_port_that_stays_keeps_its_counts_and_one_that_comes_again_begins_anew(host: Host) -> None:
    host.serve(host.port)
    relay = host.relay()
    host.talk(host.guest(relay))
    host.serve(host.port, 90)
    host.sync()
    counts = host.counters.read()[1]
    assert (
        counts["br0", key_here(host.port)].total,
        counts["br0", key_here(90)].total,
    ) == (1, 0)
    host.serve(90)
    host.serve(host.port, 90)
    host.sync()
    open_, counts = host.counters.read()
    assert (open_, counts["br0", key_here(host.port)].total) == (1, 0)  # its connection goes on


def test_a_long_list_that_comes_in_parts_is_one_list(host: Host) -> None:
    endpoint = Endpoint(*host.endpoint.getsockname())
    host.tell(orders.Services("br0", True, False, (Service(key_here(host.port), endpoint),)))
    host.tell(orders.Services("br0", False, False, (Service(key_here(90), endpoint),)))
    host.tell(orders.Services("br0", False, True, (Service(key_here(91), endpoint),)))
    host.sync()
    assert set(host.counters.read()[1]) == {("br0", key_here(port)) for port in (host.port, 90, 91)}


def test_a_bridge_that_is_forgotten_resets_its_guests_and_no_others(host: Host) -> None:
    host.serve(host.port)
    host.serve(host.port, bridge="br1")
    gone, stays = host.guest(host.relay()), host.guest(host.relay("br1"))
    host.talk(gone)
    endpoint = host.talk(stays)
    host.tell(orders.Forget("br0"))
    with pytest.raises(ConnectionResetError):
        gone.recv(1)
    stays.sendall(b"still here")
    assert endpoint.recv(100) == b"still here"
    host.tell(orders.Forget("br7"))  # which it has never heard of
    host.sync()
    assert set(host.counters.read()[1]) == {("br1", key_here(host.port))}


def test_connections_at_an_address_that_the_bridge_has_no_longer_are_reset(host: Host) -> None:
    host.serve(host.port)
    relay = host.relay()
    guest = host.guest(relay)
    endpoint = host.talk(guest)
    host.tell(orders.Addresses("br0", (HERE, "10.0.0.1")))
    guest.sendall(b"still here")
    assert endpoint.recv(100) == b"still here"
    host.tell(orders.Addresses("br0", ("10.0.0.1",)))
    for side in (guest, endpoint):
        with pytest.raises(ConnectionResetError):
            side.recv(1)
    late = host.guest(relay)
    with pytest.raises(ConnectionResetError):
        late.recv(1)
    assert "end=address_removed" in host.log.read_text()


def test_a_level_and_another_file_for_the_log(host: Host, tmp_path: Path) -> None:
    host.tell(orders.Settings(20, 4, (32768, 60999)))
    fd = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
    host.tell(orders.LogFile(), fd)
    os.close(fd)
    host.serve(host.port)
    guest = host.guest(host.relay())
    endpoint = host.talk(guest)
    guest.close()
    endpoint.close()
    wait_for(lambda: "end=finished" in (tmp_path / "new").read_text())
    assert "end=" not in host.log.read_text()


# Without a daemon, and with another one


def test_without_a_daemon_guests_are_served_as_before_and_a_new_one_is_followed(host: Host) -> None:
    host.serve(host.port)
    relay = host.relay()
    first = host.guest(relay)
    endpoint = host.talk(first)
    host.lose_daemon()
    host.talk(host.guest(relay))
    host.new_daemon()
    assert host.hear_ready().read()[1]["br0", key_here(host.port)].total == 2
    host.synced = 0
    host.sync()
    host.tell(orders.Forget("br0"))
    with pytest.raises(ConnectionResetError):
        endpoint.recv(1)


def test_a_new_daemon_takes_the_place_of_one_that_hangs(host: Host) -> None:
    former = host.daemon
    host.new_daemon()
    host.hear_ready()
    assert receive(former) is None
    former.close()
    host.sync()


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("follower", [False, True])
def test_guests_in_a_channel_that_a_daemon_named_before_it_ended_are_served(
    host: Host, unread: bool, follower: bool
) -> None:
    if unread:  # then the worker meets a reset before what was said
        host.tell(orders.Sync(1, False))
        assert select.select([host.daemon], [], [], 30)[0]
    os.kill(host.pid, signal.SIGSTOP)
    host.serve(host.port)
    guest = host.guest(host.relay())
    host.lose_daemon()
    if follower:
        host.new_daemon()
    os.kill(host.pid, signal.SIGCONT)
    host.talk(guest)


def test_guests_in_a_channel_of_a_daemon_that_ends_before_the_worker_greets_it_are_served(host: Host) -> None:
    host.relay()
    host.sync()
    os.kill(host.pid, signal.SIGSTOP)
    host.new_daemon()
    host.serve(host.port)
    guest = host.guest(host.relay())
    host.lose_daemon()
    os.kill(host.pid, signal.SIGCONT)
    host.talk(guest)


@pytest.mark.parametrize(
    "message",
    [b"?", orders.encode(orders.Bridge("br0", 1)), orders.encode(orders.Synced(1)), b"P\x00"],
    ids=["unknown", "without a channel", "what only daemons get", "cut"],
)
def test_what_a_worker_does_not_understand_ends_the_daemons_channel_and_no_connection(
    host: Host, message: bytes
) -> None:
    host.serve(host.port)
    relay = host.relay()
    host.talk(host.guest(relay))
    host.daemon.send(message)
    assert receive(host.daemon) is None
    host.talk(host.guest(relay))


def test_a_worker_without_a_daemon_ends_when_nothing_is_left(host: Host) -> None:
    host.serve(host.port)
    relay = host.relay()
    guest = host.guest(relay)
    endpoint = host.talk(guest)
    host.lose_daemon()
    relay.close()
    wait_for(lambda: "daemon lost" in host.log.read_text())
    guest.sendall(b"question")
    assert endpoint.recv(100) == b"question"
    assert not host.has_ended()
    guest.close()
    endpoint.close()
    wait_for(host.has_ended)


# Finishing


def test_a_worker_that_is_told_to_finish_takes_what_relays_pass_on_and_ends_with_the_last_connection(
    host: Host,
) -> None:
    host.serve(host.port)
    relay = host.relay()
    host.tell(orders.Drain())
    guest = host.guest(relay)
    endpoint = host.talk(guest)
    relay.close()
    host.sync()
    assert not host.has_ended()
    guest.close()
    endpoint.close()
    wait_for(host.has_ended)


def test_a_worker_that_finishes_says_so_to_a_new_daemon(host: Host) -> None:
    host.serve(host.port)
    host.talk(host.guest(host.relay()))
    host.tell(orders.Drain())
    host.sync()
    host.lose_daemon()
    host.new_daemon()
    host.hear_ready(draining=True)


def test_a_worker_with_nothing_to_finish_ends_at_once(host: Host) -> None:
    host.tell(orders.Drain())
    wait_for(host.has_ended)


def test_a_signal_resets_all_guests_and_ends_the_worker(host: Host) -> None:
    host.serve(host.port)
    guest = host.guest(host.relay())
    endpoint = host.talk(guest)
    os.kill(host.pid, signal.SIGTERM)
    for each in (guest, endpoint):
        with pytest.raises(ConnectionResetError):
            each.recv(1)
    wait_for(host.has_ended)
    assert "end=stopped" in host.log.read_text()
