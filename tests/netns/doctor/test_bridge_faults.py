"""Faults of a bridge that `tproxy doctor` names first, and that the command which it prints repairs."""

from __future__ import annotations

import shutil

import pytest

from tests.netns.doctor.patient import Fault, Patient
from tests.netns.program import program

MAC = "06:00:a9:fe:10:09"
OFFLOAD = " ".join(program("offload"))

BRIDGE = {
    "the bridge is down": Fault("ip link set br0 down", "bridge", "bridge br0 is down"),
    "there is no such bridge": Fault(
        ":", "bridge", "bridge nobody does not exist", options="--bridge nobody", repair=":"
    ),
    "that is no bridge": Fault(":", "bridge", "lo is not a bridge", options="--bridge lo", repair=":"),
    "no hook brought the bridge up": Fault(
        "ip link add br7 type bridge; ip link set br7 up",
        *("map", "there is no map ep_br7"),
        options="--bridge br7",
        repair="ip link del br7",
    ),
}

STRANGERS = {
    "a link that is no veth has our port's name": Fault(
        "ip link del br0b; ip link add br0b type bridge",
        *("strangers", "link br0b is not a veth"),
        afterwards="tproxy hook up --bridge br0",
    ),
    "another program's veth has our port's name": Fault(
        "ip link del br0b; ip link add br0b type veth peer name other",
        *("strangers", "link br0b belongs to another program"),
        afterwards="tproxy hook up --bridge br0",
    ),
    "our port's name is an alternative name": Fault(
        "ip link del br0b; ip link property add dev vnet0 altname br0b",
        *("strangers", "br0b is an alternative name of link vnet0"),
        afterwards="tproxy hook up --bridge br0",
    ),
    "the namespace's name is a folder": Fault(
        "ip netns del one_tproxy_br0; mkdir -p /run/netns/one_tproxy_br0/x",
        *("strangers", "one_tproxy_br0 in /run/netns is no namespace"),
        afterwards="tproxy hook up --bridge br0",
    ),
    "another program fills a chain of ours": Fault(
        "nft 'flush chain bridge one_tproxy guard_forward; add rule bridge one_tproxy guard_forward counter'",
        *("strangers", "chain guard_forward in table bridge one_tproxy belongs to another program"),
        repair="nft delete table bridge one_tproxy; tproxy hook up --bridge br0",
    ),
}

MAP = {
    "somebody deleted the map": Fault("nft delete map ip one_tproxy ep_br0", "map", "there is no map ep_br0"),
    "another program's map has its name": Fault(
        "nft 'delete map ip one_tproxy ep_br0;"
        " add map ip one_tproxy ep_br0 { type ipv4_addr : inet_service; }'",
        *("map", "map ep_br0 is not of type"),
        afterwards="tproxy hook up --bridge br0",
    ),
    "another program's set has the name of the members": Fault(
        "nft 'add set ip one_tproxy gu_br0 { type ether_addr; };"
        " delete set ip one_tproxy gu_br0; add set ip one_tproxy gu_br0 { type ipv4_addr; }'",
        *("map", "set gu_br0 is not of type ether_addr"),
        afterwards="tproxy hook up --bridge br0",
    ),
    "an element of the map cannot be used": Fault(
        "nft 'add element ip one_tproxy ep_br0 { 0 : 10.11.12.13 . 8080 }'",
        *("map", "is ignored: it is not one port and its endpoint"),
        repair="nft 'delete element ip one_tproxy ep_br0 { 0 }'",
    ),
    "somebody flushed nftables": Fault("nft flush ruleset", "maps", "table ip one_tproxy is gone"),
}

CHAIN = {
    "somebody deleted the namespace": Fault(
        "ip netns del one_tproxy_br0", "namespace", "namespace one_tproxy_br0 does not exist"
    ),
    "somebody deleted the veth pair": Fault("ip link del br0b", "veth", "link br0b does not exist"),
    "our port left the bridge": Fault(
        "ip link set br0b nomaster", "port", "link br0b is a port of no bridge"
    ),
    "our port is on another bridge": Fault(
        "ip link add br7 type bridge; ip link set br0b master br7",
        *("port", "link br0b is a port of br7, not of br0"),
        afterwards="ip link del br7",
    ),
    "our port is down": Fault("ip link set br0b down", "port", "port br0b is down"),
    "the two ends have different MTUs": Fault(
        "ip -n one_tproxy_br0 link set br0a mtu 1400", "mtu", "the bridge has MTU 1500, br0b 1500, br0a 1400"
    ),
    "the namespace's end is down": Fault(
        "ip -n one_tproxy_br0 link set br0a down", "address", "br0a in namespace one_tproxy_br0 is down"
    ),
    "the address is gone": Fault(
        "ip -n one_tproxy_br0 address flush dev br0a", "address", "has no address, not 169.254.16.9/32"
    ),
    "the address is another one": Fault(
        "ip -n one_tproxy_br0 address flush dev br0a; ip -n one_tproxy_br0 address add 10.0.0.9/24 dev br0a",
        *("address", "has 10.0.0.9/24, not 169.254.16.9/32"),
    ),
    "the namespace's end has another MAC": Fault(
        "ip -n one_tproxy_br0 link set br0a address 02:00:00:00:00:07", "address", "02:00:00:00:00:07"
    ),
    "the route is gone": Fault("ip -n one_tproxy_br0 route del default", "route", "has no default route"),
    "a sysctl was changed": Fault(
        "inside sysctl -qw net.ipv4.conf.br0a.rp_filter=1",
        *("sysctls", "ipv4/conf/br0a/rp_filter is 1, not 0"),
    ),
}

FORWARDING = {
    "the port waits because of STP": Fault(
        "ip link set br0 type bridge stp_state 1 forward_delay 3000; ip link del br0b;"
        " tproxy hook up --bridge br0 2>/dev/null",
        *("stp", "port br0b does not forward yet (STP state l"),
        afterwards="ip link set br0 type bridge forward_delay 1500",
    ),
    "guests and our port are isolated": Fault(
        "bridge link set dev br0b isolated on; bridge link set dev vnet0 isolated on",
        *("isolation", "port br0b is isolated: guests at isolated ports do not reach it: vnet0"),
        afterwards="bridge link set dev vnet0 isolated off",
    ),
    "our port alone is isolated": Fault(
        "bridge link set dev br0b isolated on", "isolation", "port br0b is isolated", level="warning"
    ),
    "our port gets no broadcasts": Fault(
        "bridge link set dev br0b bcast_flood off", "flooding", "port br0b gets no broadcasts"
    ),
    "the bridge does not find a guest": Fault(
        "bridge link set dev vnet0 learning off flood off",
        *("flooding", "the bridge neither learns at vnet0 nor floods there"),
        afterwards="bridge link set dev vnet0 flood on",
    ),
    "the bridge floods what is for a guest": Fault(
        "bridge link set dev vnet0 learning off",
        *("flooding", "the bridge does not learn at vnet0"),
        level="warning",
    ),
    "the entry for our MAC is gone": Fault(
        f"bridge fdb del {MAC} dev br0b master", "forwarding", f"entry for {MAC} is not fixed at br0b"
    ),
    "a guest's port has our MAC": Fault(
        f"bridge fdb replace {MAC} dev vnet0 master static", "forwarding", f"port vnet0 has our MAC {MAC}"
    ),
    "checksums are computed": Fault(
        f"{OFFLOAD} br0b off",
        *("off-loading", "switched off: tx"),
        repair=f"{OFFLOAD} br0b on",
        level="warning",
    ),
}

RULES = {
    "an uplink does not exist": Fault(
        "tproxy hook up --bridge br0 --uplink eth9 2>/dev/null",
        *("uplinks", "the uplink eth9 is not a port of the bridge"),
        repair="tproxy hook up --bridge br0",
        level="warning",
    ),
    "guards are gone": Fault(
        "nft delete table bridge one_tproxy", "guards", "there are none: others on the bridge can claim"
    ),
    "guards were changed": Fault(
        "nft flush chain bridge one_tproxy guard_prerouting", "guards", "they were changed"
    ),
    "another program drops what bridges forward": Fault(
        "nft 'add table bridge other;"
        " add chain bridge other last { type filter hook forward priority 9; policy drop; }'",
        *("host-firewall", "table bridge other, chain last: policy drop"),
        repair="nft delete table bridge other",
        level="warning",
    ),
    "the wall is gone": Fault("inside nft delete table inet one_tproxy", "wall", "there is none"),
    "the wall was changed": Fault(
        "inside nft flush chain inet one_tproxy wall",
        "wall",
        "the one in namespace one_tproxy_br0 was changed",
    ),
    "the wall lets a port not pass": Fault(
        "inside nft 'delete element inet one_tproxy ports { 5030 }'", "wall", "does not let port 5030 pass"
    ),
    "another program serves the bridge": Fault(
        f"later ready ip netns exec one_tproxy_br0 {' '.join(program('foreign_relay', 'br0', '7777'))}",
        *("agents", "one_tproxy_br0, serves the bridge and is not of this tproxy"),
        repair="kill $(cat /run/later.pid)",
    ),
    "another tproxy runs on the host": Fault(
        f"later ready {' '.join(program('borrowed_title'))}",
        *("agents", "one_tproxy, is another tproxy on this host"),
        repair="kill $(cat /run/later.pid)",
    ),
    "the host has the service address": Fault(
        "ip address add 169.254.16.9/32 dev lo",
        *("agents", "this host has 169.254.16.9 itself"),
        repair="ip address del 169.254.16.9/32 dev lo",
    ),
}

FAULTS = BRIDGE | STRANGERS | MAP | CHAIN | FORWARDING | RULES


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_first_and_its_repair_cures_it(patient: Patient, name: str) -> None:
    patient.suffer(FAULTS[name])


BRIDGED = "sysctl -qw net.bridge.bridge-nf-call-iptables="
FIREWALLS = {
    "nftables": Fault(
        f"{BRIDGED}1; iptables -P FORWARD DROP",
        *("host-firewall", "table ip filter, chain FORWARD: policy drop"),
        afterwards=f"iptables -F; iptables -P FORWARD ACCEPT; {BRIDGED}0",
    ),
    "legacy, and cannot be read": Fault(
        f"{BRIDGED}1; iptables-legacy -P FORWARD ACCEPT;"
        " for each in /usr/sbin /sbin; do"
        " mount --bind /etc/hostname $each/iptables-legacy-save 2>/dev/null || :; done",
        *("host-firewall", "table filter of iptables-legacy, whose rules cannot be read"),
        repair=f"{BRIDGED}0",
        afterwards="while umount /usr/sbin/iptables-legacy-save 2>/dev/null; do :; done",
    ),
}


@pytest.mark.parametrize("name", FIREWALLS)
def test_a_host_firewall_that_could_drop_is_named_and_its_repair_cures_it(
    patient: Patient, name: str
) -> None:
    if not patient.host.path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        pytest.skip("this kernel has no br_netfilter")
    if "legacy" in name and shutil.which("iptables-legacy") is None:
        pytest.skip("iptables-legacy is not installed")
    patient.suffer(FIREWALLS[name])
