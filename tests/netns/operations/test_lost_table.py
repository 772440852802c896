"""Somebody flushed all of nftables: no command ends services because of it, and hooks restore everything."""

from __future__ import annotations

import json
import sys

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.ruleset import await_guarded
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

COMMANDS = [["start"], ["reload"], ["restart"], ["refresh", "--config", "/run/tproxy.yaml"]]

# Of the hook for br1.
BR1 = ("--network", "a blue one", "--network-id", "7", "--uplink", "up1", "--mac", "02:00:0a:00:00:05")


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


@pytest.fixture
def two(lab: OneBridge) -> OneBridge:
    """The host has another bridge, br1, for a network with a name and with a named uplink."""
    lab.host.add_bridge("br1")
    lab.host.ip("link add up1 type veth peer name far1", "link set up1 master br1 up", "link set far1 up")
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config, *BR1)
    return lab


def flush(lab: OneBridge) -> None:
    lab.host.run("nft", "flush", "ruleset")


def ruleset(lab: OneBridge) -> list[str]:
    """All objects of nftables, sorted, because their order does not matter."""
    lines = []
    for item in json.loads(lab.host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]:
        ((kind, found),) = item.items()
        found.pop("handle", None)
        elements = found.pop("elem", [])
        if "timeout" in found:
            elements = []  # they depend on what guests have just sent
        lines += [f"{kind} {json.dumps(each)}" for each in (found, *elements) if kind != "metainfo"]
    return sorted(lines)


def add_guest(lab: OneBridge, bridge: str) -> Guest:
    """Return a new guest whose port the daemon knows by now, and so the guards."""
    guest = lab.host.add_guest(f"guest-{bridge}", bridge)
    await_guarded(lab.host, guest)
    assert guest.get(SERVICE_ADDRESS, 5030) == "one"
    return guest


@pytest.mark.parametrize("command", COMMANDS, ids=[each[0] for each in COMMANDS])
def test_a_command_changes_nothing_and_says_what_restores_the_table(
    two: OneBridge, command: list[str]
) -> None:
    before = two.pids()
    flush(two)
    done = two.host.tproxy(*command, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "tproxy: the nftables table ip one_tproxy is gone, but bridges br0, br1 are still served: "
        "nothing was changed; the next hook or `tproxy watch` restores it\n"
    )
    assert two.pids() == before
    assert ruleset(two) == []
    assert two.ask() == "one"


def test_a_reload_reopens_logs_all_the_same(lab: OneBridge) -> None:
    flush(lab)
    log = lab.host.path("/var/log/one_tproxy.log")
    log.rename(log.with_suffix(".1"))
    assert lab.host.tproxy("reload", check=False).returncode == 1
    lab.ask()
    lab.await_in_log("bridge=br0 ")  # in the new file


def test_a_deleted_map_ends_the_service_of_its_bridge_only(two: OneBridge) -> None:
    two.nft("delete map ip one_tproxy ep_br0")
    assert two.host.tproxy("reload").stderr == ""
    assert set(two.pids()) == {"one_tproxy", "one_tproxy_br1"}
    two.nft("delete map ip one_tproxy ep_br1")
    assert two.host.tproxy("reload").stderr == ""
    assert two.titles() == []


def test_a_table_that_went_with_the_last_bridge_of_a_hook_ends_no_service_of_a_deleted_map(
    two: OneBridge,
) -> None:
    two.nft("delete map ip one_tproxy ep_br0")
    two.host.tproxy("hook", "down", "--bridge", "br1", "--force")
    assert two.host.tproxy("reload").stderr == ""
    assert two.titles() == []
    two.host.tproxy("hook", "up", "--bridge", "br1", "--config", two.config)
    assert set(two.pids()) == {"one_tproxy", "one_tproxy_br1"}


def test_start_ends_everything_when_the_bridges_are_gone_with_the_table(two: OneBridge) -> None:
    flush(two)
    for bridge in ("br0", "br1"):
        two.host.ip(f"netns del one_tproxy_{bridge}")
    assert two.host.tproxy("start").stderr == ""
    assert two.titles() == []


@pytest.mark.parametrize("bridge", ["br0", "br1", "br2"])
def test_a_hook_of_any_bridge_restores_maps_and_guards_of_all(two: OneBridge, bridge: str) -> None:
    two.nft(
        "add element ip one_tproxy ep_br1 { "
        f'99 comment "connect_timeout=2.5 name=spare" : {ENDPOINT} . 8081 }}'
    )
    two.host.tproxy("reload")
    guest = add_guest(two, "br1")
    before, pids = ruleset(two), two.pids()
    up: tuple[str, ...] = ("hook", "up", "--bridge", bridge, "--config", two.config)
    if bridge == "br1":
        up = (*up, *BR1)
        before = [line for line in before if "spare" not in line]  # the hook makes the map what the file says
    elif bridge == "br2":
        two.host.add_bridge("br2")
        two.host.tproxy(*up)
        before = ruleset(two)
        pids = two.pids()
    flush(two)
    restored = [line for line in two.host.tproxy(*up, "--dry-run").stdout.splitlines() if "remembers" in line]
    assert [line.split()[6].strip(",") for line in restored] == sorted({"br0", "br1"} - {bridge})
    assert ruleset(two) == []
    two.host.tproxy(*up)
    await_equal(lambda: ruleset(two), before)
    assert two.host.tproxy("reload").stderr == ""
    assert two.pids() == pids
    assert guest.get(SERVICE_ADDRESS, 5030) == two.ask() == "one"


@pytest.mark.parametrize("bridge", ["br0", "br1", "other"])
def test_a_hook_that_takes_a_bridge_down_restores_the_others(two: OneBridge, bridge: str) -> None:
    guest = add_guest(two, "br1")
    flush(two)
    done = two.host.tproxy("hook", "down", "--bridge", bridge, check=False)
    assert ("left alone" in done.stderr) == (bridge != "other")  # it has a guest
    assert two.host.tproxy("reload").stderr == ""
    assert set(two.pids()) == {"one_tproxy", "one_tproxy_br0", "one_tproxy_br1"}
    two.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    flush(two)
    two.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert two.host.tproxy("reload").stderr == ""
    assert set(two.pids()) == {"one_tproxy", "one_tproxy_br1"}
    assert guest.get(SERVICE_ADDRESS, 5030) == "one"


def test_a_map_of_another_program_is_restored_without_guards(two: OneBridge) -> None:
    two.host.add_bridge("br9")
    names = "one_tproxy_br9"
    two.host.ip(f"netns add {names}", f"link add br9b type veth peer name br9a netns {names}")
    two.nft(
        "add map ip one_tproxy ep_br9 { type inet_service : ipv4_addr . inet_service; }",
        f"add element ip one_tproxy ep_br9 {{ 5055 : {ENDPOINT} . 8081 }}",
    )
    two.host.tproxy("start")
    before = ruleset(two)
    flush(two)
    two.host.tproxy("hook", "up", "--bridge", "br0", "--config", two.config)
    await_equal(lambda: ruleset(two), before)
    assert "one_tproxy_br9" in two.pids()


def test_without_an_answer_of_the_daemon_a_hook_restores_its_own_bridge(two: OneBridge) -> None:
    kill_daemon(two.host)
    flush(two)
    two.host.tproxy("hook", "up", "--bridge", "br0", "--config", two.config)
    assert two.ask() == "one"
    listed = two.host.run("nft", "list", "table", "ip", "one_tproxy").stdout
    assert ("ep_br0" in listed, "ep_br1" in listed) == (True, False)


def test_a_daemon_for_a_service_manager_takes_over_with_all_bridges(two: OneBridge) -> None:
    guest = add_guest(two, "br1")
    before = ruleset(two)
    old = two.pids()
    flush(two)
    two.host.popen(sys.executable, "-m", "tproxy", "daemon")
    for _ in eventually():
        now = two.pids()
        if set(now) == set(old) and not set(now.values()) & set(old.values()):
            break
    assert guest.get(SERVICE_ADDRESS, 5030) == two.ask() == "one"
    await_equal(lambda: ruleset(two), before)


def test_a_daemon_for_a_service_manager_ends_no_relay_when_nobody_knows_the_maps(two: OneBridge) -> None:
    old = two.pids()
    kill_daemon(two.host)
    flush(two)
    two.host.popen(sys.executable, "-m", "tproxy", "daemon")
    for _ in eventually():
        if two.pids().get("one_tproxy", old["one_tproxy"]) != old["one_tproxy"]:
            break
    two.host.run("flock", "/run/tproxy/lock", "true")  # the child that applies the maps has finished
    now = two.pids()
    assert now.pop("one_tproxy") != old.pop("one_tproxy")
    assert now == old
