"""The life of relays: what guests see when one dies, hangs, or loses its namespace."""

from __future__ import annotations

import re

import pytest

from tests.netns.asking import Asking
from tests.netns.bridge.test_wall import NAMESPACE, add_foreign_namespace
from tests.netns.one_bridge import ECHO, OneBridge
from tests.netns.talk import Talk
from tests.netns.waiting import await_equal, eventually
from tproxy.lab.hypervisor import Hypervisor

RELAY = "one_tproxy_br0"


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def await_another_relay(lab: OneBridge, before: int) -> int:
    for _ in eventually():
        pid = lab.pids().get(RELAY, before)
        if pid != before:
            break
    return pid


def copies(lab: OneBridge, listeners: dict[str, str]) -> list[str]:
    """The ports of those listening sockets of which the daemon has a descriptor."""
    shown = lab.host.run("ls", "-l", f"/proc/{lab.pids()['one_tproxy']}/fd").stdout
    held = set(re.findall(r"socket:\[(\d+)\]", shown))
    return sorted(port for port, each in listeners.items() if held & set(re.findall(r"ino:(\d+)", each)))


def test_a_relay_that_is_killed_again_and_again_refuses_nobody(lab: OneBridge) -> None:
    lab.add_echo()
    guests = [lab.guest, *(lab.host.add_guest(f"guest{each}", "br0", f"10.0.0.{each}/24") for each in (6, 7))]
    before = lab.listeners()
    asking = [Asking(guest, ECHO) for guest in guests]
    relay = lab.pids()[RELAY]
    for _ in range(4):
        lab.host.run("kill", "-9", str(relay))
        relay = await_another_relay(lab, relay)  # and the next time at once
    for each in asking:
        each.go_on(10)
    failed = [failure for each in asking for failure in each.end()]
    # Connections that the relay had accepted, and not passed on, die with it.
    assert [each for each in failed if "ConnectionResetError" not in each] == []
    assert lab.listeners() == before


def test_a_relay_that_is_killed_together_with_its_daemon_is_replaced(lab: OneBridge) -> None:
    before = lab.pids()
    lab.host.run("kill", "-9", str(before["one_tproxy"]), str(before[RELAY]))
    lab.host.tproxy("start")
    assert lab.ask() == "one"
    assert copies(lab, lab.listeners()) == ["5030"]


def test_a_new_daemon_gets_copies_from_the_relay_that_it_finds(lab: OneBridge) -> None:
    listeners = lab.listeners()
    lab.host.run("kill", "-9", str(lab.pids()["one_tproxy"]))
    lab.host.tproxy("start")
    assert copies(lab, listeners) == ["5030"]
    lab.host.tproxy("restart")
    assert copies(lab, listeners) == ["5030"]


def test_copies_go_with_the_port_also_while_there_is_no_relay(lab: OneBridge) -> None:
    lab.add_echo()
    lab.nft(lab.element("add", 5031, 8081))
    lab.host.tproxy("reload")
    listeners = lab.listeners()
    assert copies(lab, listeners) == ["5030", "5031", str(ECHO)]
    lab.nft(lab.element("delete", 5031, 8081))
    lab.host.tproxy("reload")
    assert copies(lab, listeners) == ["5030", str(ECHO)]
    lab.host.run("kill", "-9", str(lab.pids()[RELAY]))
    lab.nft(lab.element("delete", ECHO, 9000))
    lab.host.tproxy("reload")
    assert copies(lab, listeners) == ["5030"]
    await_equal(lambda: list(lab.listeners()), ["5030"])
    assert lab.ask() == "one"


def test_a_deleted_namespace_ends_its_relay_and_its_connections(lab: OneBridge) -> None:
    """The veth pair goes when nothing of ours keeps the namespace alive any more."""
    lab.add_echo()
    lab.add_bridge("br1")
    talk = Talk(lab.guest, ECHO)
    talk.say("hello")
    lab.host.ip(f"netns del {NAMESPACE}")
    for _ in eventually():
        if "br0b" not in lab.host.run("ip", "-o", "link").stdout:
            break
    await_equal(lambda: set(lab.pids()), {"one_tproxy", "one_tproxy_br1"})
    established = ("ss", "-Htn", "state", "established", "dport", "=", ":9000")
    await_equal(lambda: lab.host.run(*established).stdout, "")
    lab.await_in_log("namespace one_tproxy_br0 does not exist")
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    assert lab.ask() == "one"


def test_a_namespace_that_another_program_makes_anew_gets_a_relay(lab: OneBridge) -> None:
    before = lab.pids()
    lab.host.ip(f"netns del {NAMESPACE}")
    for _ in eventually():
        if "br0b" not in lab.host.run("ip", "-o", "link").stdout:
            break
    add_foreign_namespace(lab.host)
    await_another_relay(lab, before[RELAY])
    for _ in eventually():
        if lab.listeners():
            break
    assert lab.ask() == "one"
    assert lab.pids()["one_tproxy"] == before["one_tproxy"]


def test_a_relay_that_does_not_report_is_replaced_and_refuses_nobody(lab: OneBridge) -> None:
    lab.add_echo()
    lab.host.add_bridge("br1")
    before, listeners = lab.pids(), lab.listeners()
    asking = Asking(lab.guest, ECHO)
    lab.host.run("kill", "-STOP", str(before[RELAY]))
    lab.nft(lab.element("add", 5031, 8081))
    lab.host.tproxy("reload")
    lab.await_in_log("bridge br0: relay does not report; killed")
    assert lab.ask(5031) == "two"
    asking.go_on(1)
    assert [each for each in asking.end() if "ConnectionResetError" not in each] == []
    assert lab.pids()[RELAY] != before[RELAY]
    assert lab.listeners().items() >= listeners.items()
