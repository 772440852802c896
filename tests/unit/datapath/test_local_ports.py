"""Local ports of dials: after a dial that took long, the kernel is given a few ports at a time."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tproxy.datapath import local_ports
from tproxy.datapath.local_ports import IP_LOCAL_PORT_RANGE, LocalPorts
from tproxy.kernel.nameless import inside, namespace

PORTS = range(41000, 41010)  # a part of the range that the kernel chooses from by default


@pytest.fixture
def endpoint() -> Iterator[tuple[str, int]]:
    """An endpoint in a network namespace where nobody else takes ports; the test runs there."""
    with namespace() as fd, inside(fd):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield from listening()


def listening() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            listener.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0)
        except OSError:
            pytest.skip("Linux before 6.3 has no IP_LOCAL_PORT_RANGE")
        name: tuple[str, int] = listener.getsockname()
        yield name


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch, endpoint: tuple[str, int]) -> LocalPorts:
    """Local ports of which a dial has just taken long."""
    monkeypatch.setattr(local_ports, "PART", 4)
    monkeypatch.setattr(local_ports, "SLOW", -1.0)
    ports = LocalPorts(PORTS)
    with socket.socket() as sock:
        assert ports.connect(sock, endpoint) == 0
    return ports


def dial(ports: LocalPorts, endpoint: tuple[str, int]) -> tuple[int, int]:
    """Return the errno, and the local port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        return ports.connect(sock, endpoint), sock.getsockname()[1]


def test_ports_come_from_one_part_after_the_other(scarce: LocalPorts, endpoint: tuple[str, int]) -> None:
    found = [dial(scarce, endpoint) for _ in range(4)]
    assert [number for number, _ in found] == [0] * 4
    parts = [range(41000, 41004), range(41004, 41008), range(41008, 41010), range(41000, 41004)]
    assert [port in part for (_, port), part in zip(found, parts, strict=True)] == [True] * 4


def test_a_part_without_a_free_port_is_passed_over(scarce: LocalPorts, endpoint: tuple[str, int]) -> None:
    with ExitStack() as taken:
        for port in PORTS[:4]:
            taken.enter_context(socket.socket()).bind(("127.0.0.1", port))
        number, port = dial(scarce, endpoint)
    assert (number, port in PORTS[4:8]) == (0, True)


def test_where_no_port_is_free_that_is_said_after_a_few_attempts(
    scarce: LocalPorts, endpoint: tuple[str, int]
) -> None:
    with ExitStack() as taken:
        for port in PORTS:
            taken.enter_context(socket.socket()).bind(("127.0.0.1", port))
        assert dial(scarce, endpoint)[0] == errno.EADDRNOTAVAIL


def test_the_range_can_become_smaller(scarce: LocalPorts, endpoint: tuple[str, int]) -> None:
    dial(scarce, endpoint)
    scarce.use(PORTS[:2])
    assert [dial(scarce, endpoint)[1] in PORTS[:2] for _ in range(2)] == [True, True]


def test_a_dial_that_is_quick_leaves_the_choice_to_the_kernel(
    endpoint: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ports, "SLOW", 60.0)
    ports = LocalPorts(PORTS[:1])
    assert len({dial(ports, endpoint)[1] for _ in range(3)} - set(PORTS[:1])) > 1
