"""Relays whose daemon is behind, and relays that cannot have a port."""

from __future__ import annotations

import json

from tests.netns.program import program
from tproxy.lab.hypervisor import Hypervisor


def test_a_report_waits_while_the_daemon_is_behind(hypervisor: Hypervisor) -> None:
    done = hypervisor.run(*program("relay_behind"))
    assert json.loads(done.stdout) == [True, ["Report"]]


def test_a_taken_port_is_not_tried_more_often_after_many_reloads(hypervisor: Hypervisor) -> None:
    hypervisor.ip("netns add one_tproxy_br0")
    before, after = json.loads(hypervisor.run(*program("taken_port")).stdout)
    assert before >= 20
    assert 1 <= after <= 10
