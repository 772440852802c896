"""docs/contract.md, Ownership: what another program has under our names is used or left alone."""

from __future__ import annotations

import subprocess

import pytest

from tests.contract import table
from tests.netns.contract import FILE, furnish, hook, shell
from tests.netns.operations.test_hook import ENDPOINT, assert_as_specified
from tests.netns.ruleset import lasting
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

NAMESPACE = "ip netns add one_tproxy_br0"
PAIR = """
ip link add br0b type veth peer name br0a netns one_tproxy_br0
ip link set br0b master br0 up"""
ADDRESS = """
ip -n one_tproxy_br0 link set br0a up
ip -n one_tproxy_br0 address add 169.254.16.9/32 dev br0a
ip -n one_tproxy_br0 route add default dev br0a scope link"""
MAP = f"""
nft add table ip one_tproxy
nft add map ip one_tproxy ep_br0 '{{ type inet_service : ipv4_addr . inet_service; }}'
nft add element ip one_tproxy ep_br0 '{{ 5030 : {ENDPOINT} . 8080 }}'"""
TABLE = "nft add table bridge one_tproxy; "
# As OpenNebula's own driver has it.
CHAIN = (
    TABLE + "nft add chain bridge one_tproxy ch_br0 '{ type filter hook forward priority filter; }';"
    "nft add rule bridge one_tproxy ch_br0 arp daddr ip 169.254.16.9 oifname != br0b drop"
)
GUARD = (
    TABLE + "nft add chain bridge one_tproxy guard_forward '{ type filter hook forward priority filter; }';"
    "nft add rule bridge one_tproxy guard_forward counter"
)
BR9 = "ip link add br9 type bridge; ip link set br9 up; "
LEFT = "tproxy: bridge br0: tproxy did not make {}: left alone\n"

# By case: the object's row in the contract, what another program does, why `up` fails, and what `down` says
# that it leaves.
REFUSED = {
    "a guest's port of another bridge": (
        "<bridge>b",
        f"{BR9} ip link add br0b type veth peer name far; ip link set br0b master br9 up",
        "link br0b belongs to another program",
        "link br0b",
    ),
    "a container's link, whose peer has the index that ours has": (
        "<bridge>b",
        f"ip netns add red; ip link add br0b type veth peer name eth0 netns red; {NAMESPACE}"
        "; ip -n one_tproxy_br0 link add br0a type veth peer name other",
        "link br0b belongs to another program",
        "link br0b, namespace one_tproxy_br0",
    ),
    "a port of the bridge that leads elsewhere": (
        "<bridge>b",
        "ip link add br0b type veth peer name far; ip link set br0b master br0 up",
        "link br0b belongs to another program",
        "a guest",
    ),
    "a link of another kind": (
        "<bridge>b",
        "ip link add br0b type bridge",
        "link br0b is not a veth",
        "link br0b",
    ),
    "an alternative name": (
        "",
        "ip link add other type veth peer name far; ip link property add dev other altname br0b",
        "br0b is an alternative name of link other",
        "",
    ),
    "a link in its namespace that leads elsewhere": (
        "`<bridge>a` in the namespace",
        f"{NAMESPACE}; ip -n one_tproxy_br0 link add br0a type veth peer name other",
        "link br0a in namespace one_tproxy_br0 belongs to another program",
        "namespace one_tproxy_br0",
    ),
    "a file that is no namespace": (
        "namespace `one_tproxy_<bridge>`",
        "mkdir /run/netns; echo something >/run/netns/one_tproxy_br0",
        "one_tproxy_br0 in /run/netns is no namespace",
        "namespace one_tproxy_br0",
    ),
    "a chain that serves all bridges": (
        "chains `guard_*`",
        GUARD,
        "chain guard_forward in table bridge one_tproxy belongs to another program",
        "",
    ),
    "a map of another type": (
        "map `ep_<bridge>`",
        "nft add table ip one_tproxy; nft add map ip one_tproxy ep_br0 '{ type ipv4_addr : mark; }'",
        "map ep_br0 is not of type",
        "",
    ),
    "a directory that others can write to": (
        "run directory, lock, `control.sock`",
        "mkdir -m 777 /run/tproxy",
        "others than root can write to /run/tproxy",
        "",
    ),
}

# By case: the row, what another program does, and what `down` says it leaves after `up`.
USED = {
    "a whole pair": (
        "<bridge>b",
        NAMESPACE + PAIR,
        "link br0b, namespace one_tproxy_br0",
    ),
    "everything by hand": (
        "map `ep_<bridge>`",
        NAMESPACE + PAIR + ADDRESS + MAP,
        "link br0b, namespace one_tproxy_br0, map ep_br0",
    ),
    "a map": ("map `ep_<bridge>`", MAP, "map ep_br0"),
    "a namespace": ("namespace `one_tproxy_<bridge>`", NAMESPACE, "namespace one_tproxy_br0"),
    "a chain": ("chain `ch_<bridge>`", CHAIN, "chain ch_br0"),
}

# Rows that tests elsewhere check.
ELSEWHERE = {
    "set `gu_<bridge>`": "tests of several networks on one bridge",
    "map `sv_<bridge>`, set `so_<bridge>`": "tests/unit/bridge/test_service_map.py",
    "map `rt_<bridge>`": "inward/test_routes.py",
    "set `pt_<bridge>`": "tests of several networks on one bridge",
    "set `op_<bridge>`": "worker/test_limits.py: options that do not fit into a comment",
    "elements of `veths`, `uplinks`, `guarded`": "tests/unit/bridge/test_guards.py",
    "table `inet one_tproxy` in the namespace": "bridge/test_wall.py",
    "tables `one_tproxy`": "test_down_of_a_bridge_that_was_never_up_changes_nothing, here",
    "processes": "operations/test_status.py: a process with a borrowed title",
    "relay, as the daemon sees it": "daemon/test_failures.py, tests/unit/daemon/test_admission.py",
    "files that `tproxy install` writes": "tests/unit/platforms/test_install.py",
    "folders that `tproxy install` makes": "tests/unit/platforms/test_install.py",
}


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return furnish(hypervisor)


def state(host: Hypervisor) -> str:
    """Everything that a hook could change, with numbers that change when an object is made again."""
    script = """
        list() { ip "$@" -o link | cut -d' ' -f1,2; ip "$@" -o -4 address; }
        list
        for each in $(ip netns list 2>/dev/null | cut -d' ' -f1); do list -n $each || true; done
        ls -iR /run/netns || true
        nft -a list ruleset
        grep . /sys/class/net/*/address
        ls -l /sys/class/net/*/master || true"""
    return lasting(shell(host, script))


def call(host: Hypervisor, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
    config = ("--config", FILE) if verb == "up" else ()
    return host.tproxy("hook", verb, "--bridge", "br0", *config, *more, check=False)


def test_each_row_of_the_contract_has_a_check() -> None:
    checked = {row for row, *_ in [*REFUSED.values(), *USED.values()]} | ELSEWHERE.keys()
    assert checked - {""} == set(table("Ownership", "object").column("object"))


@pytest.mark.parametrize("dry", [False, True], ids=["up", "dry run"])
@pytest.mark.parametrize("case", REFUSED)
def test_up_fails_and_changes_nothing_when_it_meets(host: Hypervisor, case: str, dry: bool) -> None:
    _, others, reason, _ = REFUSED[case]
    shell(host, others)
    before = state(host)
    if dry and "others than root" in reason:
        pytest.skip("a dry run makes no files")
    done = call(host, "up", *(["--dry-run"] if dry else []))
    assert done.returncode == 1
    assert reason in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert state(host) == before
    assert host.tproxy("status", check=False).stdout == ""


@pytest.mark.parametrize("case", REFUSED)
def test_down_of_a_bridge_that_was_never_up_leaves(host: Hypervisor, case: str) -> None:
    _, others, _, left = REFUSED[case]
    shell(host, others)
    before = state(host)
    done = call(host, "down")
    if left == "a guest":
        assert "bridge br0 is in use by br0b: left alone" in done.stderr
    elif "of another type" not in case and "others can write" not in case:
        assert (done.returncode, done.stderr) == (0, LEFT.format(left) if left else "")
    assert state(host) == before


def test_down_of_a_bridge_that_was_never_up_changes_nothing(host: Hypervisor) -> None:
    """Another program built it, and its guest is served."""
    guest = host.add_guest("guest", "br0")
    shell(host, NAMESPACE + PAIR + ADDRESS + MAP + "\nnft add table bridge one_tproxy")
    host.tproxy("start")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    before, processes = state(host), host.tproxy("status").stdout
    dry = call(host, "down", "--force", "--dry-run")
    done = call(host, "down", "--force")
    said = LEFT.format("link br0b, namespace one_tproxy_br0, map ep_br0")
    assert (dry.returncode, dry.stdout, dry.stderr) == (0, "", said)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said)
    assert (state(host), host.tproxy("status").stdout) == (before, processes)
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"


@pytest.mark.parametrize("case", USED)
def test_up_uses_and_down_leaves_what_another_program_made(host: Hypervisor, case: str) -> None:
    _, others, left = USED[case]
    shell(host, others)
    numbers = "cat /sys/class/net/br0b/ifindex || true; stat -Lc %i /run/netns/one_tproxy_br0 || true"
    before = shell(host, numbers).splitlines()
    guest = host.add_guest("guest", "br0")
    hook(host, "br0", "--network", "vnet1", "--mac", "02:00:00:00:00:01")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert_as_specified(host, "br0")
    assert {*before} <= {*shell(host, numbers).splitlines()}
    assert call(host, "up", "--dry-run").stdout == ""
    done = call(host, "down", "--force")
    assert (done.returncode, done.stderr) == (0, LEFT.format(left))
    assert shell(host, numbers).splitlines() == before
    assert call(host, "down", "--force").stderr == LEFT.format(left)
    if "map" in left:
        listed = shell(host, "nft list table ip one_tproxy")
        assert f"5030 : {ENDPOINT} . 8080" in listed
        assert "comment" not in listed
        assert "gu_br0" not in listed
    else:
        assert host.tproxy("status").stdout == ""
    if "map" in left and "namespace" in left:  # as before the hook came
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    else:
        assert "one_tproxy_br0" not in host.tproxy("status").stdout
    if "chain" in left:
        assert "arp daddr ip 169.254.16.9 oifname" in shell(host, "nft list chain bridge one_tproxy ch_br0")


def test_a_map_that_a_hook_had_to_make_again_is_ours(host: Hypervisor) -> None:
    shell(host, MAP)
    hook(host)
    shell(host, "nft delete map ip one_tproxy ep_br0")
    hook(host)
    assert (call(host, "down").stderr, host.tproxy("status").stdout) == ("", "")
    assert "one_tproxy" not in shell(host, "nft list tables")


@pytest.mark.parametrize(
    "remnant",
    [
        "ip link set br0b netns 1; ip netns del one_tproxy_br0",
        "ip -n one_tproxy_br0 link set br0a name x",
        "ip link set br0b name x; ip link set x nomaster",
    ],
    ids=["namespace deleted", "peer renamed", "port renamed"],
)
def test_a_remnant_of_ours_is_repaired_and_removed(host: Hypervisor, remnant: str) -> None:
    guest = host.add_guest("guest", "br0")
    hook(host)
    shell(host, remnant)
    hook(host)
    assert_as_specified(host, "br0")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    done = call(host, "down", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert "one_tproxy_br0" not in shell(host, "ip netns list")


def test_neither_gc_nor_the_watcher_removes_what_another_program_made(host: Hypervisor) -> None:
    shell(host, NAMESPACE + PAIR)
    hook(host)
    for _ in eventually():
        if "br0" in host.tproxy("gc", "--config", FILE, "--grace", "0").stdout:
            break
    assert "one_tproxy_br0" in shell(host, "ip netns list")
    assert "br0b" in shell(host, "ip link")
    assert host.tproxy("gc", "--config", FILE, "--grace", "0").stdout == ""
