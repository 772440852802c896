"""The log of the daemon."""

from __future__ import annotations

import re
import time

import pytest

from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.datapath.target import LINE_INTERVAL, LINES_AT_ONCE
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


@pytest.mark.parametrize("level", ["2", "3"])
def test_a_guest_cannot_fill_the_log_with_connections_and_all_are_counted(lab: OneBridge, level: str) -> None:
    lab.host.write(
        "/run/tproxy.yaml",
        f"tproxy_debug_level: {level}\n"
        "tproxy: [{service_port: 5030, remote_addr: 127.0.0.1, remote_port: 9}]\n",
    )
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    log = lab.host.path("/var/log/one_tproxy.log")
    before, start = log.stat().st_size, time.monotonic()
    lab.guest.run(*program("storm", "--connections", "1000", SERVICE_ADDRESS, "5030"), timeout=100)
    lab.host.tproxy("stop")
    written = sum(" guest=" in line for line in lab.log().splitlines())
    assert written <= LINES_AT_ONCE + (time.monotonic() - start) / LINE_INTERVAL
    assert log.stat().st_size - before < 250 * (written + 10)
    left_out = sum(map(int, re.findall(r"bridge=br0 port=5030 (\d+) more like this", lab.log())))
    assert written + left_out == 1000
