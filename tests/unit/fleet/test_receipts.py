"""Receipts as hosts write and operators read them, and the waits between attempts."""

from __future__ import annotations

import json

import pytest

from tproxy.config.services import Problem
from tproxy.fleet import receipts
from tproxy.fleet.backoff import MOST, Backoff
from tproxy.fleet.judging import Refusal, Verdict
from tproxy.fleet.presence import Guest, from_json, together
from tproxy.fleet.receipts import Effect, Offered
from tproxy.model import Network

GUEST = Guest("blue", "7", "02::", "br0", "vnet0", 10.5)


def made(offered: Offered, effect: Effect) -> str:
    return receipts.make("node1", 100.0, None, offered, effect, [GUEST], {"connections": 3}, "")


def test_what_a_host_writes_an_operator_reads() -> None:
    refused = Offered(
        Verdict.REFUSED, "capacity: x", 4, 9, "sum", (Problem(2, "bad"),), (Refusal("capacity", "r", "x"),)
    )
    found = receipts.read(made(refused, Effect("applied")))
    assert found is not None
    assert (found.host, found.time, found.verdict, found.sum) == ("node1", 100.0, "refused", "sum")
    assert (found.guests, found.refusals) == ((GUEST,), (Refusal("capacity", "r", "x"),))
    assert found.errors == (":2: bad",)
    assert found.fault == "refused: capacity: x"


@pytest.mark.parametrize(
    ("effect", "fault"),
    [
        (Effect("applied"), ""),
        (Effect("expired"), ""),
        (Effect("failed", ("br0: no",)), "failed: br0: no"),
        (Effect("applied", errors=(Problem(3, "taken", "/d"),)), "/d:3: taken"),
    ],
)
def test_the_first_thing_that_is_wrong_is_the_fault(effect: Effect, fault: str) -> None:
    found = receipts.read(made(Offered(Verdict.ACCEPTED, serial=1), effect))
    assert found is not None
    assert found.fault == fault


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "no JSON", '{"host": 1}', '{"document": [], "offered": {}}']
)
def test_what_is_no_receipt_is_none(text: str) -> None:
    assert receipts.read(text) is None


def test_a_damaged_receipt_is_none() -> None:
    good = json.loads(made(Offered(), Effect()))
    for key in good:
        if key not in ("version", "host", "software", "bridges", "store"):
            assert receipts.read(json.dumps({**good, key: None})) is None


def test_waits_are_spread_and_bounded() -> None:
    longest = Backoff(chance=lambda: 1.0)
    assert [longest.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, MOST, MOST]
    longest.reset()
    assert longest.next() == 1
    waits = [Backoff().next() for _ in range(200)]
    assert all(0 <= each <= 1 for each in waits)
    assert max(waits) - min(waits) > 0.5
    many = Backoff(chance=lambda: 1.0)
    assert [many.next() for _ in range(5000)][-1] == MOST


# Guests that were seen


def test_a_silent_guest_stays_while_its_port_is_there_and_knows_since_when() -> None:
    blue = Network("blue", "7")
    ports = {"br0": {"vnet0", "vnet1"}}
    first = together([], {"br0": [("02::", "vnet0", blue)]}, ports, 10.5)
    assert first == [GUEST]
    assert together(first, {"br0": []}, ports, 20.0) == [GUEST]
    moved = together(first, {"br0": [("02::", "vnet1", blue)]}, ports, 20.0)
    assert moved == [GUEST._replace(port="vnet1", since=20.0)]
    assert together(first, {"br0": []}, {"br0": {"vnet1"}}, 20.0) == []
    assert together(first, {}, {}, 20.0) == []


def test_notes_about_guests_that_are_damaged_are_none() -> None:
    assert from_json([GUEST._asdict()]) == [GUEST]
    for damaged in (None, 7, [7], [{"mac": "02::"}], "x"):
        assert from_json(damaged) == []
