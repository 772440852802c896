"""Daemon and relays when descriptors are short: what can be served is served, and the rest is named."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from tests.netns.conftest import StartEndpoint
from tests.netns.one_bridge import ECHO, ENDPOINT, OneBridge
from tests.netns.program import program
from tests.netns.talk import Talk
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

# A service port, and the options with which its guests may take all that there is.
NO_LIMITS = '5030 comment "max_connections_per_guest=0 max_connections_per_bridge=1000000"'


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


@pytest.fixture
def echo(lab: OneBridge) -> OneBridge:
    lab.add_echo()
    return lab


def test_more_ports_than_descriptors_are_named_and_the_others_are_served(lab: OneBridge) -> None:
    lab.host.tproxy("stop")
    ports = range(5030, 7130)
    elements = ", ".join(f"{port} : {ENDPOINT} . 8080" for port in ports)
    lab.nft("flush map ip one_tproxy ep_br0", f"add element ip one_tproxy ep_br0 {{ {elements} }}")
    start = "ulimit -n 2000; exec python3 -m tproxy start".replace("python3", sys.executable)

    done = lab.host.run("sh", "-c", start, check=False)

    assert done.returncode == 1
    lines = done.stderr.splitlines()
    named = {int(re.findall(r"port (\d+) cannot listen: Too many open files", line)[0]) for line in lines}
    listening = set(map(int, lab.listeners()))
    assert named == set(ports) - listening
    assert 5030 in listening
    assert lab.ask() == "one"


@pytest.mark.parametrize("descriptors", [512, 1024])
def test_with_few_descriptors_guests_are_served_all_the_same(lab: OneBridge, descriptors: int) -> None:
    lab.host.run("sh", "-c", f"ulimit -n {descriptors}; exec {sys.executable} -m tproxy restart")
    for _ in range(3):
        assert lab.ask() == "one"


def test_a_daemon_that_has_no_descriptor_left_for_a_while_goes_on(echo: OneBridge) -> None:
    # Somebody's watcher, so that the daemon keeps looking whether there is one.
    config = echo.host.write("/run/tproxy.yaml", "tproxy_watch: true\n")
    echo.host.popen(sys.executable, "-m", "tproxy", "watch", "--config", config)
    echo.await_in_log("watching bridges")
    echo.host.tproxy("reload", env={"TPROXY_CONFIG": config})
    talk = Talk(echo.guest, ECHO)
    before = echo.pids()
    prlimit = ("prlimit", "--pid", str(before["one_tproxy"]))
    echo.host.run(*prlimit, "--nofile=3:")
    asked = echo.host.popen(sys.executable, "-m", "tproxy", "status", "--json", stdout=subprocess.PIPE)
    echo.await_in_log("no request can be accepted for now: Too many open files")
    echo.host.add_guest("second", "br0", "10.0.0.6/24")
    echo.await_in_log("guards of br0 could not be kept current")
    time.sleep(2.5)  # in this time the daemon looks for the watcher once (LOOK), and says nothing of it
    assert talk.say("still here") == "still here"
    echo.host.run(*prlimit, "--nofile=1000:")
    asked.communicate()
    assert echo.ask() == "one"
    assert echo.pids() == before


def test_bridges_come_and_go_while_one_guest_has_all_connections_that_may_be_open(
    lab: OneBridge, start_endpoint: StartEndpoint
) -> None:
    start_endpoint("sink", ENDPOINT, 8082)
    lab.nft(lab.element("delete", 5030), lab.element("add", 5030, 8082).replace("5030 :", f"{NO_LIMITS} :"))
    lab.host.run("sh", "-c", f"ulimit -n 2000; exec {sys.executable} -m tproxy restart")
    holder = lab.guest.popen(
        *program("holder", SERVICE_ADDRESS, "5030", "800"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    lab.await_in_log("connections are open: no more are accepted")
    lab.add_bridge("br1")
    assert "one_tproxy_br1" in lab.pids()
    lab.host.tproxy("hook", "down", "--bridge", "br1", "--force")
    lab.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert lab.pids() == {}
