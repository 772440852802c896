"""The report of `tproxy doctor`: its lines, its JSON form, and that it changes nothing."""

from __future__ import annotations

import json

from tests.contract import table
from tests.netns.doctor.patient import CONFIG, CONFIGURED, Patient, findings
from tests.netns.operations.test_preview import state


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


def test_doctor_changes_nothing(patient: Patient) -> None:
    before = state(patient.host)
    patient.doctor()
    patient.doctor("--bridge br0")
    assert state(patient.host) == before


def test_a_bridge_that_another_program_built_is_judged_by_what_it_needs(patient: Patient) -> None:
    """Its links' settings are the other program's choice, and it has no guards."""
    patient.shell("""
        ip link add br8 type bridge; ip link set br8 up
        ip netns add one_tproxy_br8
        ip link add br8b type veth peer name br8a netns one_tproxy_br8
        ip link set br8b master br8 up
        ip -n one_tproxy_br8 address add 169.254.16.9/32 dev br8a
        ip -n one_tproxy_br8 link set br8a up
        ip -n one_tproxy_br8 route add default dev br8a scope link
        nft add map ip one_tproxy ep_br8 '{ type inet_service : ipv4_addr . inet_service; }'
        nft add element ip one_tproxy ep_br8 '{ 5030 : 10.11.12.13 . 8080 }'
        tproxy reload""")
    wrong = [each for each in patient.doctor("--bridge br8") if each.level != "good"]
    assert [(each.check, each.level) for each in wrong] == [("guards", "warning")]
    patient.shell("nft delete map ip one_tproxy ep_br8; tproxy reload")
    patient.shell("ip netns del one_tproxy_br8; ip link del br8")
    patient.await_health()
