"""OpenNebula's hook: the NICs in a VM's XML, the calls for them, and input that is refused."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drivers.opennebula import tproxy_hook as hook
from tests.opennebula_vm import alias, line, nic, pci, vm, xml
from tproxy.kernel import kinds as tproxy_kinds

FIRST, SECOND = "02:00:0a:00:00:05", "02:00:0a:00:00:06"  # the MACs of NICs 0 and 1


def bridges(text: str, driver: str = "bridge") -> list[str]:
    return [each.bridge for each in hook.concerned(hook.parse(text.encode()), driver)]


def only_call(phase: str, element: str, driver: str) -> list[str]:
    (arguments,) = hook.calls(phase, hook.concerned(hook.parse(vm(element).encode()), driver))
    assert arguments[0] == arguments[1][2].removeprefix("--bridge=")
    return arguments[1]


def test_nics_come_from_the_templates_of_the_vm_not_from_its_history_or_its_user() -> None:
    assert bridges(vm(nic(BRIDGE="onebr0"))) == ["onebr0"]


def test_nics_of_all_templates_count() -> None:
    second = f"<TEMPLATE>{nic(1, BRIDGE='onebr1')}</TEMPLATE>"
    assert bridges(line(xml(nic(), templates=second))) == ["onebr0", "onebr1"]


def test_a_driver_handles_only_its_own_nics() -> None:
    mixed = vm(nic(0), nic(1, BRIDGE="onebr.7", VN_MAD="vxlan"))
    assert bridges(mixed, "bridge") == ["onebr0"]
    assert bridges(mixed, "vxlan") == ["onebr.7"]
    assert bridges(mixed, "fw") == []


def test_on_attach_and_detach_only_the_marked_nic_counts() -> None:
    assert bridges(vm(nic(0), nic(1, BRIDGE="onebr1", attach=True))) == ["onebr1"]


@pytest.mark.parametrize("device", [alias(1, 0, attach=True), pci(1, attach=True)])
def test_attaching_a_device_without_a_port_concerns_no_bridge(device: str) -> None:
    assert bridges(vm(nic(0), device)) == []


def test_aliases_and_passed_through_cards_have_no_port() -> None:
    assert bridges(vm(nic(0), alias(1, 0, BRIDGE="other"), pci(2, BRIDGE="another"))) == ["onebr0"]


def test_a_nic_without_a_bridge_is_left_out() -> None:
    assert bridges(vm(nic(0, BRIDGE=""), nic(1, BRIDGE="onebr1"))) == ["onebr1"]


@pytest.mark.parametrize(
    ("driver", "uplink"),
    [("bridge", "eth1"), ("fw", "eth1"), ("802.1Q", "eth1.100"), ("vxlan", "eth1.100")],
)
def test_the_uplink_has_the_name_that_the_driver_gives_it(driver: str, uplink: str) -> None:
    element = nic(VN_MAD=driver, PHYDEV="eth1", VLAN_ID="100")
    assert only_call("pre", element, driver)[-1] == f"--uplink={uplink}"
    assert only_call("clean", element, driver)[-1] == f"--uplink={uplink}"


def test_pre_and_post_bring_the_bridge_up_and_clean_takes_it_down() -> None:
    come = ["hook", "up", "--bridge=onebr0", "--network=blue", "--network-id=0", *CARD]
    assert only_call("pre", nic(), "bridge") == come
    assert only_call("post", nic(), "bridge") == come
    assert only_call("clean", nic(), "bridge") == ["hook", "down", "--bridge=onebr0", *CARD]


def test_several_nics_on_a_bridge_make_one_call_with_all_uplinks() -> None:
    both = vm(nic(0, PHYDEV="eth1"), nic(1, PHYDEV="eth2"))
    calls = hook.calls("clean", hook.concerned(hook.parse(both.encode()), "bridge"))
    macs = [*CARD, f"--mac={SECOND}", "--port=one-7-1"]
    assert calls == [("onebr0", ["hook", "down", "--bridge=onebr0", *macs, "--uplink=eth1", "--uplink=eth2"])]


def test_each_network_of_a_bridge_gets_a_call_with_its_own_nics() -> None:
    reserved = nic(1, NETWORK="blue-reserved", NETWORK_ID="7", PHYDEV="eth2")
    nics = hook.parse(vm(nic(0, PHYDEV="eth1"), reserved, nic(2)).encode())
    first, second = hook.calls("pre", nics)
    uplinks = ["--uplink=eth1", "--uplink=eth2"]
    up = ["hook", "up", "--bridge=onebr0"]
    own = ["--network=blue", "--network-id=0", *CARD, "--mac=02:00:0a:00:00:07", "--port=one-7-2"]
    assert first == ("onebr0", [*up, *own, *uplinks])
    own = ["--network=blue-reserved", "--network-id=7", f"--mac={SECOND}", "--port=one-7-1"]
    assert second == ("onebr0", [*up, *own, *uplinks])
    ((_, down),) = hook.calls("clean", nics)
    assert [word for word in down if word.startswith("--mac")] == [
        f"--mac={FIRST}",
        f"--mac={SECOND}",
        "--mac=02:00:0a:00:00:07",
    ]


def test_on_detach_only_the_marked_nic_goes() -> None:
    nics = hook.concerned(hook.parse(vm(nic(0), nic(1, attach=True)).encode()), "bridge")
    card = [f"--mac={SECOND}", "--port=one-7-1"]
    assert hook.calls("clean", nics) == [("onebr0", ["hook", "down", "--bridge=onebr0", *card])]


@pytest.mark.parametrize("port", ["", "..", "one 7", "a/b", "x" * 16])
def test_what_is_no_port_is_not_passed_on(port: str) -> None:
    down = ["hook", "down", "--bridge=onebr0", f"--mac={FIRST}"]
    assert only_call("clean", nic(TARGET=port), "bridge") == down


# What a call says of the first NIC.
CARD = [f"--mac={FIRST}", "--port=one-7-0"]


@pytest.mark.parametrize("mac", ["", "02:00", "--force", "02:00:0a:00:00:05 --force"])
def test_what_is_no_mac_is_not_passed_on(mac: str) -> None:
    assert only_call("clean", nic(MAC=mac), "bridge") == ["hook", "down", "--bridge=onebr0"]


def test_the_configuration_file_of_the_settings_is_passed_on() -> None:
    calls = hook.calls("pre", hook.parse(vm(nic()).encode()), "/etc/tproxy/tproxy.yaml")
    assert "--config=/etc/tproxy/tproxy.yaml" in calls[0][1]


@pytest.mark.parametrize("element", [nic(VN_MAD="ovswitch"), nic(BRIDGE_TYPE="openvswitch_dpdk")])
def test_open_vswitch_is_known_by_its_driver_or_its_type(element: str) -> None:
    virtual, linux = hook.parse(vm(element, nic(1)).encode())
    assert virtual.on_open_vswitch
    assert not linux.on_open_vswitch


def test_uplinks_are_known_by_their_kind(tmp_path: Path) -> None:
    types = {"vnet0": "", "tap0": "", "gre1": "", "l2tp1": "DEVTYPE=l2tpeth\n", "one-7-0": "DEVTYPE=bridge\n"}
    kinds = {"vnet0": "tun", "gre1": "gretap", "one-7-0": "new"}
    for port, uevent in {**types, "eth1": ""}.items():
        (tmp_path / "onebr0/brif" / port).mkdir(parents=True)
        (tmp_path / port).mkdir()
        (tmp_path / port / "uevent").write_text(f"INTERFACE={port}\n{uevent}")
    (tmp_path / "eth1/device").mkdir()
    assert hook.uplinks("onebr0", tmp_path, kinds) == ["eth1", "gre1", "l2tp1"]
    for bridge in ("onebr1", "../" + tmp_path.name + "/onebr0", "", "..", "a" * 300):
        assert hook.uplinks(bridge, tmp_path, kinds) == []


def test_the_hook_and_tproxy_have_the_same_tables_of_kinds() -> None:
    for table in ("UPLINK_KINDS", "GUEST_KINDS", "UPLINK_TYPES"):
        assert getattr(hook, table) == getattr(tproxy_kinds, table)


LAUGHS = '<!DOCTYPE VM [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + xml(nic(NETWORK="]]>&b;<![CDATA["))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not base64 <VM>", "not base64"),
        (vm(nic())[:-3], "not base64"),
        (line(xml(nic())[:-100]), "not XML"),
        (line(""), "empty"),
        (" \n", "empty"),
        (line(b"\0\1\2\xff"), "not XML"),
        (line('<?xml version="1.0" encoding="none"?>' + xml()), "not XML"),
        (line('<?xml version="1.0" encoding="utf-7"?>' + xml()), "not XML"),
        (line(xml(nic(), root="HOST")), "not of a VM"),
        (line(LAUGHS), "document type"),
        (line(LAUGHS.encode("utf-16")), "document type"),
        (line('<!DOCTYPE VM SYSTEM "file:///etc/shadow">' + xml()), "document type"),
    ],
)
def test_input_that_is_not_a_vm_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(hook.Problem, match=reason):
        hook.parse(hook.read(io.BytesIO(text.encode())))


def test_input_that_is_too_large_is_not_read_to_its_end() -> None:
    stream = io.BytesIO(b"A" * (hook.LIMIT + 1000))
    with pytest.raises(hook.Problem, match="larger than"):
        hook.read(stream)
    assert stream.tell() == hook.LIMIT + 1


def test_deep_xml_takes_no_more_work_than_its_length() -> None:
    deep = b"<VM>" + b"<TEMPLATE>" * 100_000
    with pytest.raises(hook.Problem, match="not XML"):
        hook.parse(line(deep).encode())
    assert hook.parse(line(deep + b"</TEMPLATE>" * 100_000 + b"</VM>").encode()) == []


def test_a_value_of_many_lines_takes_no_more_work_than_its_length() -> None:
    lines = "\n" * 2_000_000  # with quadratic work this would take minutes
    (device,) = hook.parse(line(xml(nic(NETWORK=f"a{lines}b", MODEL=lines))).encode())
    assert device.network == f"a{lines}b"


def test_the_hook_is_valid_in_python_3_8() -> None:
    ast.parse(Path(hook.__file__).read_text(), feature_version=(3, 8))


@given(st.binary(max_size=300))
def test_any_input_is_a_vm_or_a_problem(data: bytes) -> None:
    for text in (data, line(data).encode(), line(b"<VM>" + data + b"</VM>").encode()):
        try:
            assert isinstance(hook.parse(text), list)
        except hook.Problem as problem:
            assert str(problem)  # noqa: PT017 - both outcomes are right, nothing else is


def test_settings_can_have_comments_and_indentation(tmp_path: Path) -> None:
    file = tmp_path / "tproxy.conf"
    assert hook.settings(file) == hook.Settings()
    file.write_text("[hooks]\n  strict = yes    # so that\nconfig = /etc/tproxy/tproxy.yaml   # instead\n")
    assert hook.settings(file) == hook.Settings(strict=True, config="/etc/tproxy/tproxy.yaml")


@pytest.mark.parametrize(
    "text", ["strict = yes", "[hooks]\nstrict = perhaps", "[hooks]\nstrict", "\0[", "[hooks]\n[hooks]"]
)
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tproxy.conf"
    file.write_text(text)
    with pytest.raises(hook.Problem, match=str(file)):
        hook.settings(file)


@pytest.mark.parametrize(
    "conf",
    [
        ":tproxy:\n- :service_port: 5030\n",
        ":tproxy:\n\n# OneGate\n- :service_port: 5030\n:vxlan_ttl: 1\n",
        "tproxy: [{remote_port: 1}]  # all\n",
        '":tproxy": [{remote_port: 1}]\n',
        ":vxlan_ttl: 1\n:tproxy:\n  - :remote_port: 1",
        ":tproxy: []\n",
        ":tproxy:\n",
        ":tproxy: # none\n:vlan_mtu: 1500\n",
        ":tproxy:\n# - :service_port: 5030\n#   :remote_port: 1\n:vlan_mtu: 1500\n",
        "# :tproxy:\n# - :service_port: 5030\n",
        ":tproxy_debug_level: 2\n",
        ":other:\n- :tproxy: [1]\n",
        ":tproxy: ~\n",
        "",
    ],
)
def test_services_in_opennebulas_own_file_are_found_as_yaml_finds_them(conf: str) -> None:
    read = yaml.safe_load(conf) or {}
    assert hook.wants_own_service(conf) == bool(read.get(":tproxy") or read.get("tproxy"))
