"""The files in etc/ that configure other programs of a host, as those programs read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import PORT_MAC, SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor
from tproxy.names import BridgeNames

SOURCE = Path(__file__).parents[2]
ETC = SOURCE / "etc"
NETWORKD = "/lib/systemd/systemd-networkd"
CONFIG = "tproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n"

# A file that matches any veth, as an operator's file for containers might.
GREEDY = """
[Match]
Driver=veth
[Network]
Address=10.66.0.1/24
LinkLocalAddressing=no
"""


def needs(program: str, package: str) -> None:
    """Skip where the program is not installed; in CI that is a failure, or it would never be noticed."""
    if shutil.which(program) is None:
        reason = f"needs {program} (package {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def up(host: Hypervisor, bridge: str) -> None:
    host.write("/run/tproxy.yaml", CONFIG)
    host.tproxy("hook", "up", "--bridge", bridge, "--config", "/run/tproxy.yaml")


def address_of(host: Hypervisor, link: str) -> str:
    (shown,) = json.loads(host.run("ip", "-j", "link", "show", "dev", link).stdout)
    return str(shown["address"])


@pytest.mark.parametrize("bridge", ["br0", "fifteen.bytes-x"])
def test_our_port_has_its_fixed_mac_and_the_bridge_keeps_its_own(hypervisor: Hypervisor, bridge: str) -> None:
    hypervisor.add_bridge(bridge)
    hypervisor.add_guest("guest", bridge)
    before = address_of(hypervisor, bridge)
    up(hypervisor, bridge)
    assert address_of(hypervisor, BridgeNames(bridge).veth_bridge) == PORT_MAC
    assert address_of(hypervisor, bridge) == before


@pytest.mark.parametrize(
    "file",
    ["systemd/network/05-tproxy.network", "systemd/network/05-tproxy.link", "udev/rules.d/84-tproxy.rules"],
)
def test_the_files_match_our_port_by_its_mac(file: str) -> None:
    rules = [line for line in (ETC / file).read_text().splitlines() if not line.startswith("#")]
    assert PORT_MAC in "\n".join(rules)


def test_networkd_leaves_our_port_alone_and_no_other_link(hypervisor: Hypervisor) -> None:
    needs(NETWORKD, "systemd")
    for bridge in ("br0", "fifteen.bytes-x"):
        hypervisor.add_bridge(bridge)
        up(hypervisor, bridge)
    hypervisor.ip("link add webb type veth peer name weba", "link set webb up", "link set weba up")
    ours = (ETC / "systemd/network/05-tproxy.network").read_text()
    hypervisor.write("/run/systemd/network/05-tproxy.network", ours)
    hypervisor.write("/run/systemd/network/20-greedy.network", GREEDY)
    # networkd waits until udevd has seen each link, sd_device_get_is_initialized(3): this says so.
    for link in json.loads(hypervisor.run("ip", "-j", "link").stdout):
        hypervisor.write(f"/run/udev/data/n{link['ifindex']}", "I:1\n")
    hypervisor.popen(NETWORKD, stderr=subprocess.DEVNULL)

    def states() -> dict[str, str]:
        found: dict[str, str] = {}
        for link in json.loads(hypervisor.run("ip", "-j", "link").stdout):
            path = hypervisor.path(f"/run/systemd/netif/links/{link['ifindex']}")
            told = dict(line.partition("=")[::2] for line in path.read_text().splitlines())
            found[link["ifname"]] = told["ADMIN_STATE"]
        return found

    for _ in eventually():
        with suppress(FileNotFoundError, KeyError):
            if states()["webb"] == states()["weba"] == "configured":
                break
    ports = ("br0b", BridgeNames("fifteen.bytes-x").veth_bridge)
    await_equal(lambda: [states()[each] for each in ports], ["unmanaged"] * 2)
    shown = json.loads(hypervisor.run("ip", "-j", "-4", "address").stdout)
    assert {each["ifname"] for each in shown} == {"lo", "webb", "weba"}


@pytest.fixture
def rotate(hypervisor: Hypervisor) -> str:
    """Return the command that rotates the logs at once."""
    needs("/usr/sbin/logrotate", "logrotate")
    hypervisor.path("/run/bin").mkdir()
    hypervisor.run("mount", "-t", "tmpfs", "tmpfs", "/run/bin")  # /run itself is mounted noexec
    hypervisor.write("/run/bin/tproxy", f'#!/bin/sh\nexec {sys.executable} -m tproxy "$@"\n')
    hypervisor.path("/run/bin/tproxy").chmod(0o755)
    snippet = hypervisor.write("/run/logrotate", (ETC / "logrotate.d/tproxy").read_text())
    return f"PATH=/run/bin:$PATH /usr/sbin/logrotate --force --state /run/logrotate.state {snippet}"


def test_processes_write_to_new_log_files_after_a_rotation(hypervisor: Hypervisor, rotate: str) -> None:
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint("10.11.12.13", 80, "hello")
    up(hypervisor, "br0")
    relay_log = hypervisor.path("/var/log/one_tproxy_br0.log")
    assert relay_log.stat().st_size
    before = hypervisor.tproxy("status").stdout

    hypervisor.run("sh", "-c", rotate)
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    for name in ("one_tproxy.log", "one_tproxy_br0.log"):
        assert hypervisor.path(f"/var/log/{name}.1").exists()
    for _ in eventually():
        if "bridge=br0 " in hypervisor.path("/var/log/one_tproxy.log").read_text():
            break
    assert hypervisor.tproxy("status").stdout == before  # the same processes

    held = hypervisor.run("sh", "-c", "ls -l /proc/[0-9]*/fd 2>/dev/null", check=False).stdout
    assert "one_tproxy_br0.log" in held
    assert ".log.1" not in held


def test_a_rotation_after_nftables_was_flushed_ends_no_service(hypervisor: Hypervisor, rotate: str) -> None:
    hypervisor.add_bridge("br0")
    guest = hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint("10.11.12.13", 80, "hello")
    up(hypervisor, "br0")
    before = hypervisor.tproxy("status").stdout
    hypervisor.run("nft", "flush", "ruleset")
    hypervisor.run("sh", "-c", rotate)
    assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    assert hypervisor.tproxy("status").stdout == before


def test_a_rotation_starts_no_process_that_was_stopped(hypervisor: Hypervisor, rotate: str) -> None:
    hypervisor.add_bridge("br0")
    up(hypervisor, "br0")
    hypervisor.tproxy("stop")
    hypervisor.run("sh", "-c", rotate)
    assert hypervisor.path("/var/log/one_tproxy.log.1").exists()
    assert hypervisor.tproxy("status").stdout == ""
