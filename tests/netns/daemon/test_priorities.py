"""Priorities: those of a hook's caller are not for processes that serve all guests for months."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

import psutil
import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

# Each of these commands runs the rest of its arguments with what it sets.
CALLER = (
    *("chrt", "--idle", "0", "nice", "-n", "7"),
    *("ionice", "-c", "3", "taskset", "-c", "0", "choom", "-n", "600", "--"),
)
CONFIG = "tproxy_watch: true\ntproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n"


class Favour(NamedTuple):
    """How the kernel favours a process."""

    policy: int
    nice: int
    io_class: int
    processors: int
    oom_score_adj: int


OF_CALLER = Favour(os.SCHED_IDLE, 7, psutil.IOPRIO_CLASS_IDLE, 1, 600)
ORDINARY = Favour(os.SCHED_OTHER, 0, psutil.IOPRIO_CLASS_BE, len(os.sched_getaffinity(0)), 0)


def favours(host: Hypervisor) -> dict[str, Favour]:
    """Return how each process of tproxy is favoured, by title."""
    found = json.loads(host.run(*program("priorities")).stdout)
    return {title: Favour(*values) for title, values in found.items()}


def all_favours(host: Hypervisor) -> dict[str, Favour]:
    """As ``favours``, when all processes are there."""
    for _ in eventually():
        found = favours(host)
        if set(found) == {"one_tproxy", "one_tproxy_br0", "tproxy-spawner", "tproxy-watch", "tproxy-worker"}:
            break
    return found


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    hypervisor.write("/run/tproxy.yaml", CONFIG)
    hypervisor.add_bridge("br0")
    return hypervisor


def up(host: Hypervisor, *by: str) -> None:
    tproxy = (sys.executable, "-m", "tproxy")
    host.run(*by, *tproxy, "hook", "up", "--bridge", "br0", "--config", "/run/tproxy.yaml")


def test_all_processes_that_a_hook_starts_have_ordinary_priorities(host: Hypervisor) -> None:
    up(host, *CALLER)
    found = all_favours(host)
    relay = found.pop("one_tproxy_br0")
    assert relay == ORDINARY._replace(policy=os.SCHED_BATCH)  # its own choice
    assert found == dict.fromkeys(found, ORDINARY)


def test_a_service_keeps_the_priorities_that_its_manager_gives_it(host: Hypervisor) -> None:
    tproxy = (sys.executable, "-m", "tproxy")
    host.popen(*CALLER, *tproxy, "daemon", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    for _ in eventually():
        if "one_tproxy" in favours(host):
            break
    up(host)
    found = all_favours(host)
    relay = found.pop("one_tproxy_br0")
    assert relay == OF_CALLER._replace(policy=os.SCHED_BATCH)
    assert found == dict.fromkeys(found, OF_CALLER)
    host.tproxy("restart", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    assert favours(host)["one_tproxy"] == OF_CALLER
