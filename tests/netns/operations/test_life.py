"""``tproxy start``, ``stop``, ``restart`` and ``reload``: docs/contract.md, Commands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.netns.asking import Asking
from tests.netns.daemonless import kill_daemon
from tests.netns.one_bridge import ECHO, ENDPOINT, OneBridge
from tests.netns.program import program
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy import __version__
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


@pytest.fixture
def echo(lab: OneBridge) -> OneBridge:
    lab.add_echo()
    return lab


def test_start_with_no_map_is_quiet_and_stops_everything(lab: OneBridge) -> None:
    lab.nft("delete map ip one_tproxy ep_br0")
    done = lab.host.tproxy("start")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert lab.host.tproxy("status").stdout == ""
    assert lab.host.tproxy("start").returncode == 0


def test_a_program_that_only_loads_maps_gets_its_service(lab: OneBridge) -> None:
    lab.host.tproxy("stop")
    lab.host.run("nft", "flush", "ruleset")
    for command in (
        "add table ip one_tproxy",
        "add map ip one_tproxy ep_br0 { type inet_service : ipv4_addr . inet_service; }",
        f"add element ip one_tproxy ep_br0 {{ 5055 : {ENDPOINT} . 8081 }}",
    ):
        lab.host.run("nft", command)
    for verb in ("start", "reload"):
        lab.host.tproxy(verb)
        assert lab.ask(5055) == "two"
        lab.host.tproxy("stop")


def test_start_is_idempotent_and_starts_only_what_is_missing(lab: OneBridge) -> None:
    before = lab.pids()
    lab.host.tproxy("start")
    assert lab.pids() == before
    lab.host.run("kill", "-9", str(before["one_tproxy"]))
    lab.host.tproxy("start")
    after = lab.pids()
    assert after["one_tproxy_br0"] == before["one_tproxy_br0"]
    assert after["one_tproxy"] != before["one_tproxy"]
    assert lab.ask() == "one"


def test_start_ends_relays_whose_map_is_gone(lab: OneBridge) -> None:
    lab.add_bridge("br1")
    lab.nft("delete map ip one_tproxy ep_br0")
    lab.host.tproxy("start")
    assert set(lab.pids()) == {"one_tproxy", "one_tproxy_br1"}


def test_start_names_a_map_without_a_namespace_and_serves_the_others(lab: OneBridge) -> None:
    lab.nft(
        "add map ip one_tproxy ep_nons { type inet_service : ipv4_addr . inet_service; }",
        f"add element ip one_tproxy ep_nons {{ 80 : {ENDPOINT} . 8080 }}",
        lab.element("add", 5031, 8081),
    )
    done = lab.host.tproxy("start", check=False)
    assert done.returncode == 1
    assert "nons" in done.stderr
    assert done.stderr.count("\n") == 1
    assert lab.ask(5031) == "two"


def test_reload_does_not_touch_listeners_and_connections_that_stay(echo: OneBridge) -> None:
    talk = Talk(echo.guest, ECHO)
    assert talk.say("hello") == "hello"
    pids, listeners = echo.pids(), echo.listeners()
    echo.nft(echo.element("add", 5031, 8081))
    echo.host.tproxy("reload")
    assert echo.pids() == pids
    assert listeners.items() <= echo.listeners().items()
    assert echo.ask(5031) == "two"
    assert talk.say("still here") == "still here"


def test_reload_dials_a_changed_endpoint_and_keeps_open_connections(echo: OneBridge) -> None:
    talk = Talk(echo.guest, ECHO)
    assert talk.say("hello") == "hello"
    echo.nft(echo.element("delete", 7, 9000), echo.element("add", 7, 8081))
    echo.nft(echo.element("delete", 5030), echo.element("add", 5030, 8081))
    echo.host.tproxy("reload")
    assert echo.ask(5030) == "two"
    assert echo.ask(7) == "two"
    assert talk.say("the old one") == "the old one"


def test_reload_closes_the_ports_that_are_gone_from_a_map(echo: OneBridge) -> None:
    talk = Talk(echo.guest, ECHO)
    echo.nft(echo.element("delete", 5030))
    echo.host.tproxy("reload")
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        echo.ask(5030)
    echo.nft("flush map ip one_tproxy ep_br0")
    echo.host.tproxy("reload")
    assert echo.listeners() == {}
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        echo.ask(7)
    assert talk.say("open connections go on") == "open connections go on"


def test_a_removed_port_is_closed_when_reload_returns_even_if_the_relay_is_slow(
    echo: OneBridge,
) -> None:
    relay = str(echo.pids()["one_tproxy_br0"])
    slow = ("-e", "trace=close", "-e", "inject=close:delay_enter=3000000")
    tracer = echo.host.popen("strace", "-o", "/dev/null", "-p", relay, *slow, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    echo.nft(echo.element("delete", 5030))
    echo.host.tproxy("reload")
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        echo.ask(5030)
    assert set(echo.listeners()) == {"7"}
    tracer.terminate()


def test_restart_replaces_every_process_and_cuts_no_connection(echo: OneBridge) -> None:
    talk = Talk(echo.guest, ECHO)
    assert talk.say("before") == "before"
    for _ in range(3):
        before = echo.pids()
        echo.host.tproxy("restart")
        after = echo.pids()
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())
        assert echo.ask() == "one"
        assert talk.say("after") == "after"
    echo.host.tproxy("stop")
    assert echo.titles() == []


def test_when_a_restart_returns_the_daemon_before_has_ended(lab: OneBridge) -> None:
    directory = lab.host.run("readlink", f"/proc/{lab.pids()['one_tproxy']}/cwd").stdout.strip()
    kill_daemon(lab.host)
    lab.host.popen("sh", "-c", f"cd {directory}; exec {' '.join(program('lingering_daemon'))}")
    lab.await_in_log(f"daemon {__version__} started\n", times=2)
    lab.host.tproxy("restart")
    assert re.fullmatch(r"one_tproxy: \d+\none_tproxy_br0: \d+\n", lab.host.tproxy("status").stdout)
    assert lab.ask() == "one"


def test_a_connection_from_before_a_restart_ends_when_its_bridge_goes(echo: OneBridge) -> None:
    echo.host.add_bridge("br1")  # the daemon stays for another one
    echo.host.tproxy("hook", "up", "--bridge", "br1", "--config", echo.config)
    talk = Talk(echo.guest, ECHO)
    echo.host.tproxy("restart")
    assert talk.say("after") == "after"
    echo.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    for _ in eventually():
        if echo.host.run("ss", "-Htn", "dport = :9000").stdout == "":
            break


def test_no_guest_is_refused_while_tproxy_restarts(echo: OneBridge) -> None:
    asking = Asking(echo.guest, ECHO)
    for _ in range(3):
        asking.go_on(7)
        echo.host.tproxy("restart")
    asking.go_on(7)
    assert asking.end() == []


def test_stop_ends_everything_and_start_brings_it_back(lab: OneBridge) -> None:
    pids = lab.pids()
    lab.host.tproxy("stop")
    assert lab.host.tproxy("status").stdout == ""
    for pid in map(str, pids.values()):
        assert "one_tproxy" not in lab.host.run("ps", "-o", "args=", "-p", pid, check=False).stdout
    lab.host.tproxy("stop")
    lab.host.tproxy("start")
    assert lab.ask() == "one"


def test_commands_that_run_at_the_same_time_leave_a_working_state(lab: OneBridge) -> None:
    commands = ["start", "reload", "restart", "status", "stop", "start", "restart", "reload"]
    running = [
        lab.host.popen(sys.executable, "-m", "tproxy", each, stderr=subprocess.PIPE) for each in commands
    ]
    assert [each.communicate()[1] for each in running] == [""] * len(commands)
    lab.host.tproxy("start")
    assert set(lab.pids()) == {"one_tproxy", "one_tproxy_br0"}
    assert lab.ask() == "one"


def test_a_broken_configuration_does_not_keep_start_from_starting(lab: OneBridge) -> None:
    lab.host.write("/run/tproxy.yaml", "tproxy: [")
    done = lab.host.tproxy("start", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    assert "/run/tproxy.yaml" in done.stderr
    assert lab.ask() == "one"
