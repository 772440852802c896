"""Relays, and the daemon that listens to them, when one of them is behind: every guest is served once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.netns.program import program
from tproxy.lab.hypervisor import Hypervisor


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        ("handed_over", [["Accepted"], []]),
        ("reported", [True, ["Report"]]),
        ("told_to_end", "reset"),
    ],
    ids=["a guest goes to the successor only", "a report waits", "a guest that waits is reset"],
)
def test_a_relay_whose_daemon_is_behind(hypervisor: Hypervisor, happens: str, expected: Any) -> None:
    done = hypervisor.run(*program("relay_behind", happens))
    assert json.loads(done.stdout) == expected


def test_a_taken_port_is_not_tried_more_often_after_many_reloads(hypervisor: Hypervisor) -> None:
    hypervisor.ip("netns add one_tproxy_br0")
    before, after = json.loads(hypervisor.run(*program("taken_port")).stdout)
    assert before >= 20
    assert 1 <= after <= 10


def test_relays_that_send_at_the_same_moment_are_heard_one_by_one_when_there_is_room_for_one(
    hypervisor: Hypervisor,
) -> None:
    hypervisor.ip(*(f"netns add one_tproxy_br{number}" for number in range(4)))
    assert json.loads(hypervisor.run(*program("crowded_relays")).stdout) == [1, 1, 1, 1]
