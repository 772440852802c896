"""`tproxy doctor` names each fault in its first line that is not good, and the command that repairs it."""

from __future__ import annotations

import json

import pytest

from tests.contract import table
from tests.netns.doctor.patient import CONFIG, CONFIGURED, Fault, Patient, findings

FAULTS = {
    # The bridge and what is ours on it
    "the bridge is down": Fault("ip link set br0 down", "bridge", "bridge br0 is down"),
    "somebody deleted the map": Fault("nft delete map ip one_tproxy ep_br0", "map", "there is no map ep_br0"),
    "somebody flushed nftables": Fault("nft flush ruleset", "maps", "table ip one_tproxy is gone"),
    "somebody deleted the namespace": Fault(
        "ip netns del one_tproxy_br0", "namespace", "namespace one_tproxy_br0 does not exist"
    ),
    "somebody deleted the veth pair": Fault("ip link del br0b", "veth", "link br0b does not exist"),
    "our port left the bridge": Fault(
        "ip link set br0b nomaster", "port", "link br0b is a port of no bridge"
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
    "the namespace's end has another MAC": Fault(
        "ip -n one_tproxy_br0 link set br0a address 02:00:00:00:00:07", "address", "02:00:00:00:00:07"
    ),
    "the route is gone": Fault("ip -n one_tproxy_br0 route del default", "route", "has no default route"),
    "a sysctl was changed": Fault(
        "ip netns exec one_tproxy_br0 sysctl -qw net.ipv4.conf.br0a.rp_filter=1",
        "sysctls",
        "ipv4/conf/br0a/rp_filter is 1, not 0",
    ),
    "guards are gone": Fault(
        "nft delete table bridge one_tproxy", "guards", "there are none: others on the bridge can claim"
    ),
    "guards were changed": Fault(
        "nft flush chain bridge one_tproxy guard_prerouting", "guards", "they were changed"
    ),
    "the wall is gone": Fault(
        "ip netns exec one_tproxy_br0 nft delete table inet one_tproxy", "wall", "there is none"
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_first_and_its_repair_cures_it(patient: Patient, name: str) -> None:
    patient.suffer(FAULTS[name])


def test_a_host_in_order_has_only_good_lines(patient: Patient) -> None:
    patient.await_health()
    lines = patient.doctor()
    assert {each.level for each in lines} == {"good"}
    document = patient.host.tproxy("doctor", "--json", env=CONFIGURED).stdout
    assert [each[:3] for each in findings(document)] == [each[:3] for each in lines]
    assert CONFIG in next(each.text for each in lines if each.check == "configuration")


def test_the_json_form_has_the_keys_of_the_contract_and_no_other(patient: Patient) -> None:
    document = json.loads(patient.host.tproxy("doctor", "--json", check=False, env=CONFIGURED).stdout)
    keys = table("Output of `doctor`", "key").column("key")
    assert {*document} == {each for each in keys if "." not in each}
    for each in document["findings"]:
        assert {f"findings[].{key}" for key in each} == {key for key in keys if "." in key}
