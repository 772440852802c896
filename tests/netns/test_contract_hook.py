"""docs/contract.md, sections Hook and What guests see: statements that no other test checks."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.netns.conftest import ENDPOINTS
from tests.netns.contract import FILE, furnish, hook, shell
from tests.netns.one_bridge import OneBridge
from tests.netns.operations.test_hook import CONFIG, ENDPOINT, assert_as_specified, assert_nothing_left, down
from tests.netns.program import program
from tests.netns.talk import Talk
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return furnish(hypervisor)


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


# Hook


def steps(host: Hypervisor, *arguments: str) -> int:
    """Carry out a command, and return how many calls of functions it takes."""
    return int(host.run(*program("kill_at", "0", *arguments)).stdout)


def kill_at(host: Hypervisor, number: int, *arguments: str) -> None:
    ended = host.run(*program("kill_at", str(number), *arguments), check=False)
    assert ended.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), f"{number}: {ended}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_hooks_killed_at_any_point_are_completed_by_the_next(host: Hypervisor, part: int) -> None:
    guest = host.add_guest("guest", "br0")
    arguments = ["--bridge", "br0", "--config", FILE]
    calls = {"up": steps(host, "hook", "up", *arguments)}
    calls["down"] = steps(host, "hook", "down", *arguments, "--force")
    for point in (part, part + 4):
        share = 0.2 + 0.1 * point  # earlier calls only read options and the configuration
        kill_at(host, int(calls["up"] * share), "hook", "up", *arguments)
        hook(host)
        assert_as_specified(host, "br0")
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
        kill_at(host, int(calls["down"] * share), "hook", "down", *arguments, "--force")
        down(host, "br0", "--force")
        assert_nothing_left(host)


def test_twelve_hooks_at_once_leave_each_bridge_whole_or_down(host: Hypervisor) -> None:
    bridges = ["br0", "br1", "br2"]
    for bridge in bridges[1:]:
        host.add_bridge(bridge)
    for _ in range(2):
        hooks = [
            host.popen(
                *(sys.executable, "-m", "tproxy", "hook", verb, "--bridge", bridge),
                *("--config", FILE),
                stderr=subprocess.PIPE,
            )
            for verb in ("up", "down", "up", "down")
            for bridge in bridges
        ]
        assert [(each.communicate()[1], each.returncode) for each in hooks] == [("", 0)] * 12
        up_now = {line.partition(":")[0] for line in host.tproxy("status").stdout.splitlines()}
        for bridge in bridges:
            # Whole or not at all, whichever hook was the last.
            if f"one_tproxy_{bridge}" in up_now:
                assert_as_specified(host, bridge)
            else:
                assert f"{bridge}b" not in host.run("ip", "-br", "link").stdout
                assert f"ch_{bridge}" not in host.run("nft", "list", "ruleset").stdout
    for bridge in bridges:
        down(host, bridge)
    assert_nothing_left(host)


def test_starting_a_guest_cuts_nobody_elses_connection(lab: OneBridge) -> None:
    lab.host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
    entries = f"{{remote_addr: {ENDPOINT}, remote_port: 8080, service_port: 5030}}"
    entries += f", {{remote_addr: {ENDPOINT}, remote_port: 9000}}"
    lab.host.write(FILE, f"tproxy: [{entries}]\n")
    hook(lab.host)
    conversation = Talk(lab.guest, 9000)
    pids = lab.pids()
    assert conversation.say("hello") == "hello"
    lab.host.add_guest("second", "br0", "10.0.0.6/24")
    hook(lab.host, "br0", "--network", "now-it-has-a-name")
    assert conversation.say("a guest on the same bridge") == "a guest on the same bridge"
    lab.host.add_bridge("br1")
    hook(lab.host, "br1")
    assert conversation.say("a guest on another bridge") == "a guest on another bridge"
    down(lab.host, "br1")
    assert conversation.say("that one has left") == "that one has left"
    for damage in ("nft flush ruleset", "nft delete map ip one_tproxy ep_br0"):
        shell(lab.host, damage)
        hook(lab.host)
        assert conversation.say(f"repaired after {damage}") == f"repaired after {damage}"
    lab.host.write(FILE, CONFIG)  # the port is gone, the connection goes on
    hook(lab.host)
    assert conversation.say("open connections go on") == "open connections go on"
    assert lab.pids() == pids


def test_down_with_an_emptied_configuration_leaves_a_bridge_with_guests_alone(host: Hypervisor) -> None:
    guest = host.add_guest("guest", "br0")
    hook(host)
    host.write(FILE, "tproxy: []\n")
    done = down(host, "br0", "--config", FILE, check=False)
    assert done.returncode == EXIT_IN_USE
    assert guest.port in done.stderr
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    host.ip(f"link delete {guest.port}")
    down(host, "br0", "--config", FILE)
    assert_nothing_left(host)


def test_down_of_a_bridge_that_never_was_up_does_nothing(host: Hypervisor) -> None:
    before = host.run("ip", "-br", "link").stdout
    for bridge in ("br0", "gone"):
        done = down(host, bridge)
        assert (done.stdout, done.stderr) == ("", "")
    assert host.run("ip", "-br", "link").stdout == before


# What guests see


def test_a_service_of_one_network_is_no_service_of_another(host: Hypervisor) -> None:
    host.add_endpoint(ENDPOINT, 8081, "green's own")
    green = CONFIG.split("tproxy:")[1].replace("503", "603").replace("8080", "8081") + "  networks: [green]\n"
    host.write(FILE, CONFIG + green)
    host.add_bridge("br1")
    guests = {name: host.add_guest(name, bridge) for name, bridge in (("blue", "br0"), ("green", "br1"))}
    for guest in guests.values():
        hook(host, guest.bridge, "--network", guest.name)
    assert guests["green"].get(SERVICE_ADDRESS, 6030) == "green's own"
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        guests["blue"].get(SERVICE_ADDRESS, 6030)
    assert guests["blue"].get(SERVICE_ADDRESS, 5030) == "hello"


def test_only_tcp_is_answered(host: Hypervisor) -> None:
    guest = host.add_guest("guest", "br0")
    hook(host)
    for port in ("53", "5030"):
        said = guest.run(*program("ask_by_udp", SERVICE_ADDRESS, port)).stdout
        assert said in ("ConnectionRefusedError\n", "TimeoutError\n")
    sockets = host.run("ss", "-Hanu", netns="one_tproxy_br0").stdout
    assert sockets == ""


def test_the_hypervisor_itself_has_no_way_into_the_namespace(host: Hypervisor) -> None:
    hook(host)
    with pytest.raises(ProcessError, match=r"ETIMEDOUT|ENETUNREACH|EHOSTUNREACH"):
        host.get(SERVICE_ADDRESS, 5030, timeout=0.5)
    assert "169.254" not in host.run("ip", "-4", "address").stdout
    assert host.run("sysctl", "-n", "net.ipv4.ip_forward", netns="one_tproxy_br0").stdout == "0\n"
