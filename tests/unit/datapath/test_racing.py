"""A connection whose service has several endpoints: which of them gets it, and what reaches it."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.unit.datapath.test_connection import Far, Site
from tests.unit.sockets import descriptors, reset
from tproxy.datapath.endpoints import SILENCE
from tproxy.datapath.target import Target
from tproxy.model import Endpoint, Service, ServiceKey

HOSTS = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]


class Several(Site):
    """A service with an endpoint at each of HOSTS, all at one port. At first, all refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.port = self.server.getsockname()[1]
        self.serve()

    def serve(self, hosts: list[str] = HOSTS, timeout: float = 5.0, most: int = 0) -> None:
        service = Service(
            ServiceKey(5030),
            Endpoint(hosts[0], self.port),
            connect_timeout=timeout,
            max_connections_to_endpoint=most,
        ).led_to(hosts)
        self.several = Target("br0", service)
        self.connections.serve("br0", [service])

    def listen(self, host: str) -> socket.socket:
        server = socket.create_server((host, self.port))
        server.setblocking(False)
        self.opened.append(server)
        return server

    def silent(self, host: str) -> socket.socket:
        """Return a server whose backlog is full: it answers no more dials."""
        server = socket.create_server((host, self.port), backlog=0)
        server.setblocking(False)
        self.opened.append(server)
        for _ in range(8):
            dial = socket.socket()
            dial.setblocking(False)
            dial.connect_ex((host, self.port))
            try:
                dial.getpeername()
                self.opened.append(dial)
            except OSError:  # it waits for room, and would take it before the connection of the test
                dial.close()
        return server

    def accepted(self, server: socket.socket) -> Far:
        found: list[socket.socket] = []

        def accept() -> bool:
            with suppress(BlockingIOError):
                found.append(server.accept()[0])
            return bool(found)

        self.until(accept)
        self.opened += found
        return Far(found[0])

    def failed(self) -> set[str]:
        return {each.address for each in self.connections.health.failed}


@pytest.fixture
def site() -> Iterator[Several]:
    made = Several()
    yield made
    made.close()


def test_after_an_endpoint_that_refuses_the_next_one_is_dialled_at_once(site: Several) -> None:
    server = site.listen(HOSTS[2])
    guest = site.guest(site.several, first=b"request")
    endpoint = site.accepted(server)
    site.until(lambda: endpoint.has(b"request"))
    endpoint.sock.sendall(b"answer")
    site.until(lambda: guest.has(b"answer"))
    assert site.failed() == {*HOSTS[:2]}
    (connection,) = site.connections
    assert connection.dialed.address == HOSTS[2]


def test_beside_an_endpoint_that_is_silent_the_next_one_is_dialled(site: Several) -> None:
    quiet = site.silent(HOSTS[0])
    server = site.listen(HOSTS[1])
    before = time.monotonic()
    guest = site.guest(site.several, first=b"request")
    endpoint = site.accepted(server)
    assert time.monotonic() - before >= SILENCE
    site.until(lambda: endpoint.has(b"request"))
    assert site.failed() == {HOSTS[0]}
    # The other dial is over: when the silent endpoint accepts again, this one is not among them.
    for _ in range(2):
        with suppress(BlockingIOError):
            assert Far(quiet.accept()[0]).arrived == b""
    guest.sock.sendall(b" more")
    site.until(lambda: endpoint.has(b"request more"))


def test_the_first_endpoint_wins_if_it_answers_while_another_one_is_silent_too(site: Several) -> None:
    quiet = site.silent(HOSTS[0])
    site.silent(HOSTS[1])
    site.silent(HOSTS[2])
    site.guest(site.several, first=b"request")
    (connection,) = site.connections
    site.until(lambda: connection.dialed.address == HOSTS[2])
    with suppress(BlockingIOError):
        while True:  # the kernel repeats the SYN, and has room for it now
            site.opened.append(quiet.accept()[0])
    site.until(lambda: not connection.dialing)
    assert connection.dialed.address == HOSTS[0]
    assert HOSTS[0] not in site.failed()


def test_the_guest_is_reset_when_all_endpoints_refuse_and_nothing_is_left(site: Several) -> None:
    guest = site.guest(site.several, first=b"request")
    site.until(guest.is_reset)
    assert not site.connections
    assert site.several.read().last_error == f"endpoint {HOSTS[2]}:{site.port} refused"
    before = descriptors()
    again = site.guest(site.several)
    site.until(again.is_reset)
    site.until_over()
    assert len(descriptors()) == len(before) + 1  # the guest's far end


def test_the_guest_is_reset_after_the_connect_timeout_when_all_endpoints_are_silent(site: Several) -> None:
    for each in HOSTS:
        site.silent(each)
    site.serve(timeout=1.0)
    before = time.monotonic()
    guest = site.guest(site.several)
    site.until(guest.is_reset)
    assert time.monotonic() - before >= 1.0
    assert site.failed() == {*HOSTS}
    assert not site.connections


def test_a_dial_that_was_answered_is_not_repeated(site: Several) -> None:
    first, second = site.listen(HOSTS[0]), site.listen(HOSTS[1])
    guest = site.guest(site.several, first=b"request")
    reset(site.accepted(first).sock)
    site.until(guest.is_reset)
    with pytest.raises(BlockingIOError):
        second.accept()
    assert not site.failed()


def test_a_failed_endpoint_is_tried_last_until_a_check_finds_that_it_is_back(site: Several) -> None:
    second = site.listen(HOSTS[1])
    site.guest(site.several)
    site.accepted(second)
    assert site.failed() == {HOSTS[0]}
    first = site.listen(HOSTS[0])
    site.guest(site.several)
    site.accepted(second)
    site.until(lambda: not site.failed())
    site.guest(site.several, first=b"request")
    site.accepted(first)  # the check
    endpoint = site.accepted(first)
    site.until(lambda: endpoint.has(b"request"))


def test_an_endpoint_that_has_its_connections_is_passed_over(site: Several) -> None:
    site.serve(most=1)
    servers = [site.listen(each) for each in HOSTS[:2]]
    site.serve(HOSTS[:2], most=1)
    site.guest(site.several)
    site.guest(site.several)
    for each in servers:
        site.accepted(each)
    assert not site.failed()
    site.until(site.guest(site.several).is_reset)
    assert site.several.read().total == 3


def test_an_error_of_this_host_is_no_failure_of_an_endpoint(site: Several) -> None:
    site.connections.dial_failed(site.several.service.endpoint, errno.EADDRNOTAVAIL)
    assert not site.failed()


def test_no_check_is_made_any_more_while_the_worker_finishes(site: Several) -> None:
    second = site.listen(HOSTS[1])
    site.guest(site.several)
    site.accepted(second)
    site.connections.drain()
    first = site.listen(HOSTS[0])
    deadline = time.monotonic() + 1.5
    site.until(lambda: time.monotonic() > deadline)
    with pytest.raises(BlockingIOError):
        first.accept()
