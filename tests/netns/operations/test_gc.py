"""``tproxy gc`` shows and removes what hooks built for bridges that nobody needs, and nothing else."""

from __future__ import annotations

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.ruleset import await_guarded, lasting
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    hypervisor.add_endpoint(ENDPOINT, 8080, "one")
    hypervisor.write(
        CONFIG,
        "tproxy_watch_grace: 0\n"
        "tproxy_bridges: [{bridge: 'named*', uplinks: [up0]}]\n"
        f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n",
    )
    return hypervisor


def up(host: Hypervisor, *bridges: str) -> None:
    for bridge in bridges:
        host.add_bridge(bridge)
        host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG)


def gc(host: Hypervisor, *options: str) -> list[str]:
    done = host.tproxy("gc", "--config", CONFIG, *options)
    assert done.stderr == ""
    return done.stdout.splitlines()


def about(lines: list[str], bridge: str) -> list[str]:
    """The lines that name the bridge, without process numbers."""
    return [line.partition(", process")[0] for line in lines if bridge in line]


def removal(bridge: str, *, links: bool = True) -> list[str]:
    return [
        f"delete map and guards of {bridge}",
        f"end relay one_tproxy_{bridge}",
        *([f"delete link {bridge}b"] if links else []),
        f"remove namespace one_tproxy_{bridge}",
    ]


def left(host: Hypervisor) -> str:
    # Without the state of links, which the kernel determines a little later.
    commands = (
        "nft list ruleset; ip -o link | sed 's/ state [A-Z]*//'; ip netns list; find /run/tproxy | sort"
    )
    return lasting(host.run("sh", "-c", commands).stdout) + host.tproxy("status").stdout


def test_gc_removes_bridges_without_guests_and_nothing_else(host: Hypervisor) -> None:
    up(host, "used0", "gone0", "empty0", "named0")
    guest = host.add_guest("guest", "used0")
    host.ip("link add up0 type veth peer name far", "link set up0 master named0 up", "link del gone0")
    # Not ours: the namespace and the map of another program, a file, and an unrelated namespace.
    host.add_bridge("other0")
    host.ip("netns add one_tproxy_other0", "netns add one_tproxy_none0", "netns add red")
    host.write("/run/netns/one_tproxy_x;y", "")
    host.run("nft", "add map ip one_tproxy ep_other0 { type inet_service : ipv4_addr . inet_service; }")
    # The daemon adds new ports to the guards a little later. When the last one is there, all are.
    await_guarded(host, host.add_guest("last", "used0", "10.0.0.6/24"))

    before = left(host)
    shown = gc(host, "--dry-run")
    assert left(host) == before
    removed = gc(host)
    assert removed == shown
    for bridge in ("gone0", "empty0", "named0"):
        assert about(removed, bridge) == removal(bridge)
        assert bridge not in host.run("sh", "-c", "nft list ruleset; ip netns list").stdout
    assert len(removed) == 12
    assert guest.get(SERVICE_ADDRESS, 5030) == "one"
    for name in ("one_tproxy_other0", "one_tproxy_none0", "red", "one_tproxy_x;y"):
        assert host.path(f"/run/netns/{name}").exists()
    assert "ep_other0" in host.run("nft", "list ruleset").stdout

    assert gc(host) == []


def test_a_bridge_for_which_a_hook_just_ran_is_left_alone(host: Hypervisor) -> None:
    up(host, "br0")
    assert gc(host, "--grace", "60") == []
    for _ in eventually():
        if gc(host, "--grace", "0.5"):
            break
    assert host.tproxy("status").stdout == ""
    assert "one_tproxy" not in host.run("nft", "list", "ruleset").stdout


def test_gc_removes_the_rest_after_nftables_was_flushed_and_the_daemon_killed(host: Hypervisor) -> None:
    up(host, "br0")
    host.run("nft", "flush", "ruleset")
    kill_daemon(host)
    assert about(gc(host), "br0") == removal("br0")[1:]
    assert host.tproxy("status").stdout == ""
    assert "one_tproxy" not in host.run("ip", "netns", "list").stdout


def test_a_bridge_that_cannot_be_read_does_not_stop_gc(host: Hypervisor) -> None:
    up(host, "aa0", "zz0")
    host.run("nft", "delete map ip one_tproxy ep_aa0")
    host.run("nft", "add map ip one_tproxy ep_aa0 { type ipv4_addr : inet_service; }")
    done = host.tproxy("gc", "--config", CONFIG, check=False)
    assert done.returncode == 1
    assert "tproxy: bridge aa0: map ep_aa0 is not of type" in done.stderr
    assert about(done.stdout.splitlines(), "zz0") == removal("zz0")
    assert "one_tproxy_zz0" not in host.run("ip", "netns", "list").stdout


def test_with_a_broken_configuration_nothing_is_removed(host: Hypervisor) -> None:
    up(host, "br0")
    before = left(host)
    host.write(CONFIG, "tproxy: {")
    done = host.tproxy("gc", "--config", CONFIG, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not YAML" in done.stderr
    assert left(host) == before
