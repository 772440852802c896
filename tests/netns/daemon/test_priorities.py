"""Priorities: those of a hook's caller are not for processes that serve all guests for months."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

import psutil
import pytest

from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.lab.hypervisor import Hypervisor

# Each of these commands runs the rest of its arguments with what it sets. (Not chrt --idle: on a busy machine
# nothing would ever run.)
CALLER = (
    *("chrt", "--batch", "0", "nice", "-n", "7"),
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


OF_CALLER = Favour(os.SCHED_BATCH, 7, psutil.IOPRIO_CLASS_IDLE, 1, 600)
ORDINARY = Favour(os.SCHED_OTHER, 0, psutil.IOPRIO_CLASS_BE, len(os.sched_getaffinity(0)), 0)


def favours(host: Hypervisor) -> dict[str, Favour]:
    """Return how each process of tproxy is favoured, by title."""
    found = json.loads(host.run(*program("priorities")).stdout)
    return {title: Favour(*values) for title, values in found.items()}


def await_favours(host: Hypervisor, usual: Favour) -> None:
    """Wait until all processes are there, and favoured so."""
    titles = ("one_tproxy", "tproxy-spawner", "tproxy-watch", "tproxy-worker")
    relay = usual._replace(policy=os.SCHED_BATCH)  # its own choice
    await_equal(lambda: favours(host), dict.fromkeys(titles, usual) | {"one_tproxy_br0": relay})


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
    await_favours(host, ORDINARY)


def test_a_service_keeps_the_priorities_that_its_manager_gives_it(host: Hypervisor) -> None:
    tproxy = (sys.executable, "-m", "tproxy")
    host.popen(*CALLER, *tproxy, "daemon", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    for _ in eventually():
        if "one_tproxy" in favours(host):
            break
    up(host)
    await_favours(host, OF_CALLER)
    host.tproxy("restart", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    await_favours(host, OF_CALLER)
