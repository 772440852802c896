"""The daemon dials UNIX sockets for workers: only those of services, and never so that it has to wait."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sockets import run_until
from tproxy.daemon import unix_dialing
from tproxy.daemon.unix_dialing import UnixDialing
from tproxy.kernel.loop import Loop
from tproxy.kernel.privileges import uid_of
from tproxy.model import Endpoint, Service, ServiceKey
from tproxy.worker import orders


class Asking:
    """A worker that asks, and the answers that it got."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self.gone = self.behind = False
        self.errors: dict[int, int] = {}
        self.socks: list[socket.socket] = []
        self.loop = Loop()
        self.path = str(folder / "x.sock")
        self.services: dict[str, list[Service]] = {
            "br0": [Service(ServiceKey(80), Endpoint("10.0.0.1", 80))],
            "br1": [Service(ServiceKey(80), Endpoint(f"unix:{self.path}", 0))],
        }
        self.dialing = UnixDialing(self.loop, self.services)
        self.dialing.complete = True
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)

    def tell(self, message: orders.Message, *fds: int) -> None:
        assert isinstance(message, orders.Dialled)
        self.errors[message.number] = message.error
        self.socks += [socket.socket(fileno=os.dup(fd)) for fd in fds]

    def ask(self, number: int, path: str = "", seconds: float = 5.0) -> None:
        self.dialing.dial(self, orders.Dial(number, seconds, path or self.path))

    def until_answered(self, number: int) -> int:
        run_until(self.loop, lambda: number in self.errors)
        return self.errors[number]

    def close(self) -> None:
        self.gone = True
        for each in (self.server, *self.socks):
            each.close()
        self.loop.close()


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    made = Asking(tmp_path)
    yield made
    made.close()


def test_a_worker_gets_a_connected_socket_that_never_blocks(asking: Asking) -> None:
    asking.server.listen()
    asking.ask(7)
    assert asking.errors == {7: 0}
    (sock,) = asking.socks
    assert not os.get_blocking(sock.fileno())
    with asking.server.accept()[0] as accepted:
        accepted.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, group = struct.unpack("3i", credentials)
    if os.geteuid() == 0 and os.access("/proc/self/uid_map", os.R_OK):
        mapped = uid_of(os.getpid()) if _is_mapped(uid_of(os.getpid())) else 0
        assert (user, group) == (mapped, mapped)
    assert (os.geteuid(), os.getegid()) == (os.getuid(), os.getgid())


def _is_mapped(user: int) -> bool:
    with open("/proc/self/uid_map") as file:
        rows = [[int(each) for each in line.split()] for line in file]
    return any(first <= user < first + count for first, _, count in rows)


def test_what_is_no_endpoint_is_refused_and_logged_some_times(
    asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    asking.server.listen()
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            asking.ask(number, "/run/dbus/system_bus_socket\n2026 forged")
    assert set(asking.errors.values()) == {errno.EACCES}
    assert len(caplog.records) == 10
    assert "\n" not in caplog.records[0].getMessage()
    asking.services["br1"] = []
    asking.ask(99)
    assert asking.errors[99] == errno.EACCES


def test_an_endpoint_counts_as_soon_as_a_service_has_it(asking: Asking) -> None:
    asking.server.listen()
    asking.services["br1"] = []
    asking.ask(1)
    asking.services["br1"] = [Service(ServiceKey(80), Endpoint("10.0.0.1", 80)).led_to([
        "10.0.0.1", f"unix:{asking.path}",
    ])]  # fmt: skip
    asking.ask(2)
    assert asking.errors == {1: errno.EACCES, 2: 0}


def test_until_all_maps_are_known_a_path_waits_for_its_service(asking: Asking) -> None:
    asking.server.listen()
    asking.dialing.complete = False
    served, asking.services["br1"] = asking.services["br1"], []
    asking.ask(1, seconds=60)
    asking.ask(2, "/run/dbus/system_bus_socket", seconds=60)
    turns = iter(range(5))
    run_until(asking.loop, lambda: next(turns, None) is None)
    assert asking.errors == {}
    asking.services["br1"] = served
    assert asking.until_answered(1) == 0
    asking.dialing.complete = True
    assert asking.until_answered(2) == errno.EACCES


def test_errors_are_passed_on(asking: Asking) -> None:
    asking.ask(1)
    os.unlink(asking.path)
    asking.ask(2)
    assert asking.errors == {1: errno.ECONNREFUSED, 2: errno.ENOENT}


def test_a_full_backlog_is_tried_again_until_the_time_is_over(asking: Asking) -> None:
    asking.server.listen(0)
    asking.ask(1)
    asking.ask(2, seconds=60)
    asking.ask(3, seconds=0.05)
    assert asking.errors == {1: 0}
    assert asking.until_answered(3) == errno.ETIMEDOUT
    asking.server.accept()[0].close()
    assert asking.until_answered(2) == 0


def test_a_dial_that_is_not_wanted_any_more_is_not_tried_again(asking: Asking) -> None:
    asking.server.listen(0)
    asking.ask(1)
    asking.ask(2, seconds=60)
    asking.dialing.hang_up(asking, 2)
    asking.server.accept()[0].close()
    asking.ask(3)
    asking.ask(4, seconds=0.2)
    assert asking.until_answered(4) == errno.ETIMEDOUT
    assert asking.errors == {1: 0, 3: 0, 4: errno.ETIMEDOUT}


def test_nothing_is_done_for_a_worker_that_is_gone_or_takes_no_answers(asking: Asking) -> None:
    asking.server.listen(0)
    asking.ask(1)
    asking.ask(2, seconds=60)
    asking.gone = True
    asking.server.accept()[0].close()
    turns = iter(range(20))
    run_until(asking.loop, lambda: next(turns, None) is None)
    asking.gone, asking.behind = False, True
    asking.ask(3)
    assert asking.errors == {1: 0}


def test_the_dials_of_a_worker_that_wait_are_limited(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_dialing, "MOST_WAITING", 3)
    asking.server.listen(0)
    asking.ask(0)
    for number in range(1, 6):
        asking.ask(number, seconds=60)
    assert asking.errors == {0: 0, 4: errno.EAGAIN, 5: errno.EAGAIN}
