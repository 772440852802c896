"""A connection whose service leads to a UNIX socket, which the daemon dials, alone or beside others."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.datapath.test_connection import Far, Site
from tests.unit.sockets import descriptors, noise, reset
from tproxy.daemon.unix_dialing import UnixDialing
from tproxy.datapath import inspection
from tproxy.datapath.target import Target
from tproxy.datapath.unix_dials import LATER
from tproxy.model import Endpoint, Service, ServiceKey
from tproxy.proxy_protocol import SIGNATURE
from tproxy.worker import orders


class Daemon:
    """The daemon's part, in this process. It hears what workers say only while it is there."""

    def __init__(self, site: Unix) -> None:
        self.pid = os.getpid()
        self.gone = self.behind = False
        self.dialing = UnixDialing(site.loop, site.served)
        self.dialing.complete = True
        self._site = site
        self.room = 1000
        site.connections.dials.ask = self._ask
        site.connections.dials.hang_up = lambda number: self.dialing.hang_up(self, number)

    def _ask(self, number: int, seconds: float, path: str) -> bool:
        if not self.room:
            return False
        self.room -= 1
        said = orders.decode(orders.encode(orders.Dial(number, seconds, path)))
        assert isinstance(said, orders.Dial)
        self.dialing.dial(self, said)
        return True

    def tell(self, message: orders.Message, *fds: int) -> None:
        """Pass an answer on in a later turn of the loop, as a channel would."""
        assert isinstance(message, orders.Dialled)
        number, error = message
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        sock = socket.SocketType(socket.AF_UNIX, kind, 0, os.dup(fds[0])) if fds else None
        dials = self._site.connections.dials
        self._site.loop.call_later(0, lambda: dials.answered(number, sock, error))


class Unix(Site):
    """A service that leads to a UNIX socket; nothing listens there yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = str(folder / "x.sock")
        self.served: dict[str, list[Service]] = {}
        self.daemon = Daemon(self)
        self.serve(f"unix:{self.path}")

    def serve(self, *addresses: str, timeout: float = 5.0, proxy: str = "") -> None:
        key = ServiceKey(5030)
        port = self.server.getsockname()[1]
        service = Service(key, Endpoint(addresses[0], port), "", timeout, proxy_protocol=proxy)
        service = service.led_to(addresses, port)
        self.served["br0"] = [service]
        self.target = Target("br0", service)
        self.connections.serve("br0", [service])

    def serve_both(self, timeout: float = 5.0) -> None:
        self.serve(f"unix:{self.path}", "127.0.0.1", timeout=timeout)

    def listen(self, backlog: int = 16) -> None:
        """Listen at the UNIX socket."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(self.path)
        self.unix.listen(backlog)
        self.unix.setblocking(False)
        self.opened.append(self.unix)

    def fill(self) -> list[socket.socket]:
        """Fill the backlog."""
        found: list[socket.socket] = []
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            self.opened.append(sock)
            try:
                sock.connect(self.path)
            except BlockingIOError:
                return found
            found.append(sock)

    def accepted(self) -> Far:
        """Accept a connection at the UNIX socket."""
        found: list[socket.socket] = []

        def accept() -> bool:
            with suppress(BlockingIOError):
                found.append(self.unix.accept()[0])
            return bool(found)

        self.until(accept)
        self.opened += found
        return Far(found[0])

    def failed(self) -> dict[str, str]:
        health = self.connections.health
        return {str(each): health.state(each).why for each in health.failed}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Unix]:
    made = Unix(tmp_path)
    yield made
    made.close()


def test_request_and_answer_go_through_a_unix_socket(site: Unix) -> None:
    site.listen()
    guest = site.guest(first=b"early ")
    endpoint = site.accepted()
    guest.sock.send(b"late")
    site.until(lambda: endpoint.has(b"early late"))
    endpoint.sock.send(b"answer")
    site.until(lambda: guest.has(b"answer"))
    (connection,) = site.connections
    assert str(connection.dialed) == f"unix:{site.path}"


def test_each_side_can_finish_first(site: Unix) -> None:
    site.listen()
    guest = site.guest(first=b"request")
    endpoint = site.accepted()
    guest.sock.shutdown(socket.SHUT_WR)
    site.until(lambda: endpoint.has(b"request") and endpoint.is_at_end())
    endpoint.sock.sendall(b"answer")
    endpoint.sock.close()
    site.until(lambda: guest.has(b"answer") and guest.is_at_end())
    site.until_over()
    other = site.guest()
    endpoint = site.accepted()
    endpoint.sock.sendall(b"greeting")
    endpoint.sock.shutdown(socket.SHUT_WR)
    site.until(lambda: other.has(b"greeting") and other.is_at_end())
    other.sock.sendall(b"answer")
    other.sock.close()
    site.until(lambda: endpoint.has(b"answer") and endpoint.is_at_end())
    site.until_over()


def test_bulk_both_ways_at_once_arrives_complete(site: Unix) -> None:
    site.listen()
    guest = site.guest()
    endpoint = site.accepted()
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
    assert (guest.arrived, endpoint.arrived) == (download, upload)
    site.until_over()
    assert site.connections.pipes.lent == 0


def test_a_guest_that_resets_ends_the_servers_stream(site: Unix) -> None:
    site.listen()
    guest = site.guest(first=b"request")
    endpoint = site.accepted()
    site.until(lambda: endpoint.has(b"request"))
    reset(guest.sock)
    site.until(endpoint.is_at_end)  # a UNIX socket knows no reset
    site.until_over()


def test_the_guest_is_reset_when_the_server_ends_with_bytes_unread(site: Unix) -> None:
    site.listen()
    guest = site.guest(first=b"request")
    endpoint = site.accepted()
    guest.sock.sendall(b"more")
    (connection,) = site.connections
    site.until(lambda: connection.to_endpoint.moved == len(b"requestmore"))
    endpoint.sock.close()
    site.until(guest.is_reset)
    site.until_over()


def test_the_header_comes_before_what_the_guest_has_sent(site: Unix) -> None:
    site.listen()
    site.serve(f"unix:{site.path}", proxy="v2")
    site.guest(first=b"request")
    endpoint = site.accepted()

    def whole() -> bool:
        endpoint.read()
        return endpoint.arrived.endswith(b"request")

    site.until(whole)
    assert endpoint.arrived.startswith(SIGNATURE)
    assert endpoint.arrived.count(b"request") == 1


def test_the_guest_is_reset_where_there_is_no_socket(site: Unix) -> None:
    before = len(descriptors())
    guest = site.guest()
    site.until(guest.is_reset)
    site.until_over()
    assert site.target.read().last_error == f"endpoint unix:{site.path} missing"
    guest.sock.close()
    assert len(descriptors()) <= before


def test_after_a_server_that_has_stopped_the_next_endpoint_is_dialled_and_it_is_back_by_itself(
    site: Unix,
) -> None:
    site.serve_both()
    site.listen()
    site.unix.close()  # its file stays
    guest = site.guest(first=b"request")
    endpoint = site.endpoint()
    site.until(lambda: endpoint.has(b"request"))
    endpoint.sock.sendall(b"answer")
    site.until(lambda: guest.has(b"answer"))
    assert site.failed() == {f"unix:{site.path}": "refused"}
    site.listen()
    site.until(lambda: not site.failed())
    assert site.accepted().is_at_end()  # the check
    site.guest(first=b"again")
    endpoint = site.accepted()
    site.until(lambda: endpoint.has(b"again"))


def test_a_unix_socket_can_stand_behind_other_endpoints(site: Unix) -> None:
    site.serve("127.0.0.1", f"unix:{site.path}")
    site.server.close()
    site.listen()
    site.guest(first=b"request")
    endpoint = site.accepted()
    site.until(lambda: endpoint.has(b"request"))
    assert [*site.failed().values()] == ["refused"]


def test_while_a_servers_backlog_is_full_a_dial_waits_for_room(site: Unix) -> None:
    site.listen(backlog=0)
    waiting = site.fill()
    guest = site.guest(first=b"request")
    (connection,) = site.connections
    turns = iter(range(10))
    site.until(lambda: next(turns, None) is None)
    assert connection.dialing
    for _ in waiting:
        site.accepted()
    endpoint = site.accepted()
    site.until(lambda: endpoint.has(b"request"))
    endpoint.sock.sendall(b"answer")
    site.until(lambda: guest.has(b"answer"))


def test_beside_a_server_whose_backlog_is_full_the_next_endpoint_is_dialled(site: Unix) -> None:
    site.serve_both()
    site.listen(backlog=0)
    waiting = site.fill()
    site.guest(first=b"request")
    endpoint = site.endpoint()
    site.until(lambda: endpoint.has(b"request"))
    assert site.failed() == {f"unix:{site.path}": "silent"}
    # The other dial is over: only the check waits for room.
    for _ in waiting:
        site.accepted()
    site.until(lambda: not site.failed())
    assert site.accepted().is_at_end()
    turns = iter(range(10))
    site.until(lambda: next(turns, None) is None)
    with pytest.raises(BlockingIOError):
        site.unix.accept()


def test_the_guest_is_reset_after_the_connect_timeout(site: Unix) -> None:
    site.serve(f"unix:{site.path}", timeout=0.3)
    site.listen(backlog=0)
    site.fill()
    guest = site.guest()
    site.until(guest.is_reset)
    site.until_over()
    assert site.target.read().last_error == f"endpoint unix:{site.path} timed out"


def test_dials_wait_for_the_next_daemon(site: Unix) -> None:
    site.listen()
    dials = site.connections.dials
    dials.ask = lambda *asked: True  # nobody hears it
    site.guest(first=b"request")
    turns = iter(range(3))
    site.until(lambda: next(turns, None) is None)
    site.daemon = Daemon(site)
    dials.ask_again()
    endpoint = site.accepted()
    site.until(lambda: endpoint.has(b"request"))


def test_dials_for_which_the_daemon_has_no_room_are_asked_for_later(site: Unix) -> None:
    site.listen()
    site.daemon.room = 0
    guests = [site.guest(first=b"request") for _ in range(3)]
    site.loop.call_later(3 * LATER, lambda: setattr(site.daemon, "room", 1000))
    for _ in guests:
        endpoint = site.accepted()
        site.until(lambda endpoint=endpoint: endpoint.has(b"request"))  # type: ignore[misc]


def test_a_connection_that_ends_takes_its_dial_with_it(site: Unix) -> None:
    site.listen(backlog=0)
    waiting = site.fill()
    guest = site.guest()
    site.connections.abort_all("stopped")
    site.until(guest.is_reset)
    for _ in waiting:
        site.accepted()
    turns = iter(range(10))
    site.until(lambda: next(turns, None) is None)
    with pytest.raises(BlockingIOError):
        site.unix.accept()


def test_an_operator_sees_the_connection_and_the_sweep_leaves_it_alone(site: Unix) -> None:
    site.listen(backlog=0)
    waiting = site.fill()
    guest = site.guest(first=b"request")
    (connection,) = site.connections
    known = site.connections.introductions

    def shown() -> dict[str, object]:
        line = inspection.line(connection, known, "", time.monotonic(), draining=False)
        found: dict[str, object] = json.loads(line)
        return found

    assert shown()["state"] == inspection.DIALLING
    connection.sweep(time.monotonic(), None)
    for _ in waiting:
        site.accepted()
    endpoint = site.accepted()
    site.until(lambda: endpoint.has(b"request"))
    connection.sweep(time.monotonic(), None)
    found = shown()
    assert (found["state"], found["endpoint"]) == (inspection.OPEN, f"unix:{site.path}")
    assert found["endpoint_rtt"] is found["endpoint_retransmits"] is None
    endpoint.sock.sendall(b"answer")
    site.until(lambda: guest.has(b"answer"))


def test_a_socket_that_comes_too_late_is_closed(site: Unix) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        site.connections.dials.answered(99, socket.SocketType(fileno=theirs.detach()), 0)
        assert ours.recv(1) == b""


def test_a_limit_for_each_endpoint_holds_for_unix_sockets(site: Unix) -> None:
    site.listen()
    key = ServiceKey(5030)
    port = site.server.getsockname()[1]
    service = Service(key, Endpoint("127.0.0.1", port), max_connections_to_endpoint=1)
    service = service.led_to([f"unix:{site.path}", "127.0.0.1"])
    site.served["br0"] = [service]
    site.connections.serve("br0", [service])
    target = Target("br0", service)
    site.guest(target)
    site.accepted()
    site.guest(target)
    site.endpoint()
    site.until(site.guest(target).is_reset)
