"""The log of the daemon."""

from __future__ import annotations

import re

import pytest

from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def test_the_log_has_a_line_for_each_connection_and_is_reopened(lab: OneBridge) -> None:
    log = lab.host.path("/var/log/one_tproxy.log")
    lab.ask()
    pattern = (
        rf"bridge=br0 guest={lab.guest.address}:\d+ port=5030 endpoint={ENDPOINT}:8080 "
        r"to_endpoint=\d+ to_guest=\d+ seconds=[\d.]+ end=finished"
    )
    for _ in eventually():
        if re.search(pattern, log.read_text()):
            break
    log.rename(log.with_suffix(".1"))
    lab.host.run("kill", "-HUP", str(lab.pids()["one_tproxy"]))
    for _ in eventually():
        if log.exists():
            break
    lab.ask()
    for _ in eventually():
        if re.search(pattern, log.read_text()):
            break
    assert lab.host.path("/var/log/one_tproxy_br0.log").exists()


def test_the_log_level_follows_the_configuration(lab: OneBridge) -> None:
    lab.host.write("/run/tproxy.yaml", "tproxy_debug_level: 1\n")
    lab.host.tproxy("reload", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    lab.ask()
    lab.ask()
    assert "to_guest" not in lab.host.path("/var/log/one_tproxy.log").read_text()
