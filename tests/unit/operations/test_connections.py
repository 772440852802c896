"""Lists of connections: what a worker may say, and how rates follow from two looks."""

from __future__ import annotations

from typing import Any

import pytest

from tproxy.daemon.asking import Worker
from tproxy.operations.connections import FIELDS, SAID, Listing, row_of, with_rates

WORKER = Worker(17, False)


def line(**different: Any) -> dict[str, Any]:
    return {
        "id": "5f0c8a91d2e4-7",
        "protocol": "tcp",
        "state": "open",
        "draining": False,
        "age": 1.5,
        "bridge": "br0",
        "network": "blue",
        "service": "web:80",
        "route": "",
        "service_address": "169.254.16.9",
        "service_port": 80,
        "guest": "10.0.0.5",
        "guest_port": 41234,
        "mac": "02:00:00:00:00:01",
        "port": "vnet0",
        "endpoint": "10.11.12.13:8080",
        "bytes_to_endpoint": 100,
        "bytes_to_guest": 200,
        "guest_rtt": 85,
        "endpoint_rtt": None,
        "guest_retransmits": 0,
        "endpoint_retransmits": 0,
    } | different


def row(**different: Any) -> dict[str, Any]:
    found = row_of(WORKER, line(**different))
    assert found is not None
    return found


def test_a_connection_has_all_that_its_worker_says_and_the_pid_that_the_daemon_says() -> None:
    found = row(pid=1, worker=1, surplus="x")
    assert [*found] == [*FIELDS]
    assert {name: found[name] for name in SAID} == line()
    assert found["worker"] == 17


HOSTILE = {
    "text": (None, 7, ["x"], "x" * 5000),
    "MAC": (None, 7, "x", "02:00:00:00:00", "02:00:00:00:00:0G", "02:00:00:00:00:01\n"),
    "count": (None, -1, 1.5, True, "7", 1 << 64),
    "count or null": (-1, 1.5, True, "7", 1 << 64),
    "seconds": (None, -1, True, "7", float("inf"), float("nan")),
    "yes or no": (None, 0, "x"),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (kind, _) in SAID.items() for value in HOSTILE[kind]],
    ids=str,
)
def test_what_no_worker_of_ours_says_is_left_out(name: str, value: object) -> None:
    assert row_of(WORKER, line(**{name: value})) is None


@pytest.mark.parametrize(("name", "value"), [("state", "ajar"), ("protocol", "sctp")])
def test_a_state_or_a_protocol_that_there_is_not_is_left_out(name: str, value: str) -> None:
    assert row_of(WORKER, line(**{name: value})) is None


@pytest.mark.parametrize("name", SAID)
def test_a_line_that_lacks_something_is_left_out(name: str) -> None:
    cut = line()
    del cut[name]
    assert row_of(WORKER, cut) is None


def test_rates_are_what_was_moved_between_two_looks() -> None:
    before = Listing([row(age=10.0, bytes_to_guest=1000)], [])
    now = with_rates(Listing([row(age=12.0, bytes_to_guest=5000)], []), before)
    assert (now.rows[0]["rate_to_endpoint"], now.rows[0]["rate_to_guest"]) == (0.0, 2000.0)
    assert now.seconds == 2.0


def test_a_connection_that_is_new_has_moved_everything_since_it_began() -> None:
    now = with_rates(Listing([row(age=0.5, bytes_to_guest=5000)], []), Listing([], []))
    assert now.rows[0]["rate_to_guest"] == 10_000.0


@pytest.mark.parametrize("age", [10.0, 9.0])
def test_a_worker_that_lies_about_ages_gets_no_rate(age: float) -> None:
    now = with_rates(Listing([row(age=age)], []), Listing([row(age=10.0)], []))
    assert now.rows[0]["rate_to_guest"] is None
