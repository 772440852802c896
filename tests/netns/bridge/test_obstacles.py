"""What keeps guests from services that are in order: `hook up` warns of it, and `status` shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.netns.one_bridge import OneBridge
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def up(lab: OneBridge) -> str:
    """Run the hook, and return what it printed to stderr."""
    return lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config).stderr


def kinds(lab: OneBridge) -> list[str]:
    """The kinds of obstacles of br0 by ``status --json``; ``status --verbose`` has to show the same."""
    status = json.loads(lab.host.tproxy("status", "--json").stdout)
    found: list[dict[str, str]] = status["daemon"]["bridges"]["br0"]["obstacles"]
    table = lab.host.tproxy("status", "--verbose").stdout
    for each in found:
        assert f"\nbr0: {each['text']}\n" in table
    state = f"listening, but: {', '.join(each['kind'] for each in found)}" if found else "listening"
    assert f"  {state}  " in table
    return [each["kind"] for each in found]


def warnings(lab: OneBridge) -> int:
    return lab.log().count(" WARNING ")


def test_a_bridge_in_order_has_no_obstacle(lab: OneBridge) -> None:
    assert up(lab) == ""
    assert kinds(lab) == []


# The host's firewall

NFT_RULE = """table inet firewall {
    chain last { drop; }
    chain forward { type filter hook forward priority 10; policy accept; iifname "lo" accept; jump last; }
}"""


def by_rule(host: Hypervisor) -> None:
    host.run("nft", "-f", "-", input=NFT_RULE)


def by_policy(host: Hypervisor) -> None:
    host.run("iptables", "-P", "FORWARD", "DROP")


def by_legacy_policy(host: Hypervisor) -> None:
    host.run("iptables-legacy", "-P", "FORWARD", "DROP")


def by_legacy_rule(host: Hypervisor) -> None:
    host.run("iptables-legacy", "-A", "FORWARD", "-p", "tcp", "-j", "DROP")


@pytest.fixture
def bridged(lab: OneBridge) -> OneBridge:
    """A bridge whose packets the host's firewall sees."""
    if not lab.host.path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        pytest.skip("this kernel has no br_netfilter")
    lab.host.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    return lab


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (by_rule, "table inet firewall, chain last: a rule drops or rejects"),
        (by_policy, "table ip filter, chain FORWARD: policy drop"),
        (by_legacy_policy, "table filter of iptables-legacy, chain FORWARD: policy drop"),
        (by_legacy_rule, "table filter of iptables-legacy, chain FORWARD: a rule drops or rejects"),
    ],
    ids=["a rule of a chain that is jumped to", "policy", "legacy policy", "legacy rule"],
)
def test_each_up_warns_of_a_host_firewall_that_could_drop(
    bridged: OneBridge, drop: Callable[[Hypervisor], None], words: str
) -> None:
    """Also when the bridge is in order, because the firewall may have come since."""
    if "legacy" in words and shutil.which("iptables-legacy") is None:
        pytest.skip("iptables-legacy is not installed")
    try:
        drop(bridged.host)
    except ProcessError as error:
        pytest.skip(f"not on this kernel: {error}")
    with pytest.raises(ProcessError):
        bridged.guest.get(SERVICE_ADDRESS, 5030, timeout=1)
    for times in (1, 2):
        said = up(bridged)
        assert words in said
        assert said.count("\n") == 1
        assert warnings(bridged) == times
    assert kinds(bridged) == ["host firewall"]
    bridged.host.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    assert up(bridged) == ""
    assert kinds(bridged) == []
    bridged.host.run("ip", "link", "set", "br0", "type", "bridge", "nf_call_iptables", "1")
    assert words in up(bridged), "the bridge's own setting does the same"


def test_a_rule_that_accepts_what_is_bridged_ends_the_warning(bridged: OneBridge) -> None:
    bridged.host.run("iptables", "-P", "FORWARD", "DROP")
    bridged.host.run("iptables", "-A", "FORWARD", "-i", "br0", "-o", "br0", "-j", "ACCEPT")
    assert bridged.ask() == "one"
    assert up(bridged) == ""


def test_unreadable_rules_of_iptables_legacy_could_drop(bridged: OneBridge) -> None:
    if shutil.which("iptables-legacy") is None:
        pytest.skip("iptables-legacy is not installed")
    bridged.host.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
    assert up(bridged) == ""
    for folder in ("/usr/sbin", "/sbin"):
        if bridged.host.path(f"{folder}/iptables-legacy-save").exists():
            bridged.host.run(
                "mount", "--bind", "/etc/hostname", f"{folder}/iptables-legacy-save", check=False
            )
    assert "table filter of iptables-legacy, whose rules cannot be read" in up(bridged)


# Ports


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("link set dev br0b nomaster", "port detached"),
        ("link set dev br0b master br1", "port detached"),
        ("link set dev br0b down", "port down"),
        ("link del br0b", "port missing"),
        ("link set dev br0 down", "bridge down"),
        ("-n one_tproxy_br0 link set dev br0a down", "namespace link"),
        ("-n one_tproxy_br0 address flush dev br0a", "namespace link"),
    ],
)
def test_status_names_what_is_broken_until_up_repairs_it(lab: OneBridge, broken: str, kind: str) -> None:
    lab.host.add_bridge("br1")
    lab.host.run("ip", *broken.split())
    assert kinds(lab) == [kind]
    said = up(lab)
    if kind == "bridge down":  # it is not ours to set up
        assert "ip link set br0 up" in said
    else:
        assert said == ""
        assert kinds(lab) == []
        assert lab.ask() == "one"


def test_status_names_a_namespace_that_was_deleted_until_up_makes_another(lab: OneBridge) -> None:
    lab.host.run("ip", "netns", "del", "one_tproxy_br0")
    for _ in eventually():  # the daemon ends the relay, which keeps the namespace alive
        if "  namespace one_tproxy_br0 does not exist  " in lab.host.tproxy("status", "--verbose").stdout:
            break
    status = json.loads(lab.host.tproxy("status", "--json").stdout)
    assert [each["kind"] for each in status["daemon"]["bridges"]["br0"]["obstacles"]] == ["namespace missing"]
    assert up(lab) == ""
    assert kinds(lab) == []
    assert lab.ask() == "one"


# STP


def new_port_with_stp(lab: OneBridge, delay: int) -> str:
    """Run the hook for a bridge with this forward delay, which has lost our port; return what it printed."""
    lab.host.run(
        *("ip", "link", "set", "br0", "type", "bridge", "stp_state", "1", "forward_delay", str(delay * 100))
    )
    lab.host.run("ip", "link", "del", "br0b")
    return up(lab)


def test_up_and_status_say_when_a_new_port_will_forward(lab: OneBridge) -> None:
    """The kernel has no setting by which a port of a bridge with STP forwards at once."""
    said = new_port_with_stp(lab, 30)
    assert "port br0b does not forward yet (STP state listening)" in said
    assert said.count("\n") == 1
    assert 30 < int(said.partition(" in about ")[2].split()[0]) <= 60
    status = json.loads(lab.host.tproxy("status", "--json").stdout)
    assert [each["kind"] for each in status["daemon"]["bridges"]["br0"]["obstacles"]] == ["STP"]
    assert "  listening, but: STP  " in lab.host.tproxy("status", "--verbose").stdout
    assert "STP state listening" in up(lab), "also a hook that changes nothing says so"


def test_the_warning_ends_when_the_port_forwards(lab: OneBridge) -> None:
    assert "STP" in new_port_with_stp(lab, 2)
    for _ in eventually():
        if up(lab) == "":
            break
    assert kinds(lab) == []
    assert lab.ask() == "one"


def test_the_watchers_repair_of_a_port_says_it_too(lab: OneBridge) -> None:
    new_port_with_stp(lab, 30)
    lab.host.write(lab.config, lab.host.path(lab.config).read_text() + "tproxy_watch: true\n")
    lab.host.tproxy("reload", env={"TPROXY_CONFIG": lab.config})
    lab.host.run("ip", "link", "del", "br0b")
    lab.await_in_log("port br0b does not forward yet (STP state", 2)
