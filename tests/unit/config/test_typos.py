"""Misspelt keys. A key that resembles one of ours never widens what guests get: the entry is skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.keys import keys
from tests.unit.config.files import ONE_LINE, Load, entry, said, services
from tproxy.config import reader
from tproxy.model import Network


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("network", "networks"),
        ("netwroks", "networks"),
        ("Networks", "networks"),
        ("NET_WORKS", "networks"),
        ("'networks:'", "networks"),
        ("'::networks'", "networks"),
        ("!other networks", "networks"),
        ("network_id", "networks"),
        ("nets", "networks"),
        ("service-port", "service_port"),
        ("servicePort", "service_port"),
        ("names", "name"),
        ("timeout", "user_timeout"),
        ("conn_timeout", "connect_timeout"),
        ("idletime", "idle_timeout"),
        ("max_connections_per_guests", "max_connections_per_guest"),
        (":conect_timeout", "connect_timeout"),
    ],
)
def test_an_entry_with_a_misspelt_key_is_skipped_with_a_suggestion(
    loaded: Load, key: str, meant: str
) -> None:
    found = loaded(f"tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n  {key}: vnet2\n")
    assert not found.entries
    (warning,) = said(found)
    assert "tproxy.yaml:4: entry 1: key " in warning
    assert warning.endswith(f"is unknown (did you mean {meant}?): entry skipped")


def test_all_misspelt_keys_and_all_missing_ones_are_named_at_once(loaded: Load) -> None:
    found = loaded(entry(network="a", net="b", remote_addres="10.0.0.2", remote_addr="~", remote_port="~"))
    assert [line.partition("entry 1: ")[2] for line in said(found)] == [
        "key 'network' is unknown (did you mean networks?): entry skipped",
        "key 'net' is unknown (did you mean networks?): entry skipped",
        "key 'remote_addres' is unknown (did you mean remote_addr?): entry skipped",
        "remote_port is missing: entry skipped",
    ]


@pytest.mark.parametrize(
    "key", ["colour", "comment", "description", "remark", "note", "owner", "n", "80", "~", "[networks]", "''"]
)
def test_other_unknown_keys_are_named_and_ignored(loaded: Load, key: str) -> None:
    found = loaded(f"tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n  ? {key}\n  : x\n")
    (warning,) = said(found)
    assert warning.endswith("is unknown and ignored")
    assert services(found)[0].keys() == {*keys(80)}


def test_each_entry_that_merges_a_misspelt_key_is_skipped(loaded: Load) -> None:
    found = loaded(
        "shared: &shared\n  remote_addr: 10.0.0.1\n  network: vnet2\n"
        "more: &more\n  <<: *shared\n"
        "tproxy:\n- {<<: *shared, remote_port: 80}\n- {<<: [*more], remote_port: 81}\n"
        "- {remote_addr: 10.0.0.1, remote_port: 82}\n"
    )
    assert [each.remote_port for each in found.entries] == [82]
    assert [line.partition("tproxy.yaml:")[2] for line in said(found)] == [
        f"3: entry {number}: key 'network' (merged in line {line}) is unknown (did you mean networks?):"
        " entry skipped"
        for number, line in ((1, 7), (2, 8))
    ]


@pytest.mark.parametrize(("key", "meant"), [("networks", "network"), ("uplink", "uplinks")])
def test_an_entry_of_tproxy_bridges_with_a_misspelt_key_is_skipped(
    loaded: Load, key: str, meant: str
) -> None:
    found = loaded(f"tproxy_bridges:\n- {{bridge: br0, {key}: x}}\n- bridge: br1\n")
    assert [each.pattern for each in found.bridges] == ["br1"]
    (warning,) = said(found)
    assert warning.endswith(
        f":2: tproxy_bridges: entry 1: key '{key}' is unknown (did you mean {meant}?): entry skipped"
    )


# The top level


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        (":Tproxy", "tproxy"),
        ("tprox", "tproxy"),
        ("tporxy", "tproxy"),
        ("tproxy_debug_lvl", "tproxy_debug_level"),
        ("tproxy-watch", "tproxy_watch"),
        ("tproxy_level", "tproxy_debug_level"),
        ("TPROXY_BRIDGE", "tproxy_bridges"),
    ],
)
def test_only_a_thorough_reading_names_misspelt_keys_at_the_top_level(
    tmp_path: Path, key: str, meant: str
) -> None:
    text = f"\n{key}: []\n"
    assert not reader.parse("f", text).warnings
    (warning,) = reader.parse("f", text, thorough=True).warnings
    assert warning.at("f") == f"f:2: key '{key}' is ignored: did you mean {meant}?"


def test_keys_of_an_entry_that_are_not_indented_are_named_by_a_thorough_reading() -> None:
    text = "tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\nnetworks: [vnet1]\n"
    assert not reader.parse("f", text).warnings
    (warning,) = reader.parse("f", text, thorough=True).warnings
    assert warning.at("f") == (
        "f:4: key 'networks' is ignored at the top level: it belongs into an entry of tproxy"
    )


# Those of OpenNebulaNetwork.conf, and some that resemble ours.
@pytest.mark.parametrize(
    "key",
    [
        *(":arp_cache_poisoning", ":validate_vlan_id", ":vlan_conf", ":vlan_mtu", ":vxlan_mc", ":vxlan_mode"),
        *(":vxlan_ttl", ":vxlan_tep", ":bridge_conf", ":ip_bridge_conf", ":ip_link_conf", ":ovs_bridge_conf"),
        *(":keep_empty_bridge", ":datastore_location", ":pvxlan_tep", ":fdb_update"),
        *("http_proxy", "name", "bridges", "watch", "debug_level", "[tproxy]", "80", "~", "''"),
    ],
)
def test_keys_of_other_programs_are_not_named(key: str) -> None:
    assert not reader.parse("f", f"? {key}\n: x\n", thorough=True).warnings


def test_merged_keys_at_the_top_level_are_named_too() -> None:
    text = "base: &base\n  tproxi: []\n<<: *base\n"
    (warning,) = reader.parse("f", text, thorough=True).warnings
    assert warning.at("f") == "f:2: key 'tproxi' (merged in line 3) is ignored: did you mean tproxy?"


# Several networks in one string


@pytest.mark.parametrize(
    ("networks", "write"),
    [
        ("0, 1", "0, 1"),
        ("0,1", "0, 1"),
        ("'0, 1'", "0, 1"),
        ("0 1", "0, 1"),
        ("red, blue,", "red, blue"),
        ("red; blue", "red, blue"),
        ("\n  - 0, 1", "0, 1"),
    ],
)
def test_several_networks_in_one_string_are_reported(loaded: Load, networks: str, write: str) -> None:
    found = loaded(f"tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n  networks: {networks}\n")
    assert not found.entries
    (warning,) = said(found)
    assert warning.endswith(f" is one string: write [{write}]: entry skipped")
    assert ONE_LINE.match(warning)


@pytest.mark.parametrize("name", ["sales, inland", "0 1"])
def test_a_name_that_looks_like_several_can_be_quoted_in_a_list(loaded: Load, name: str) -> None:
    found = loaded(entry(networks=f"['{name}']"))
    assert not said(found)
    assert services(found, Network(name))[0].keys() == {*keys(80)}


@pytest.mark.parametrize("name", ["two words", "vnet 10", "7"])
def test_one_name_needs_no_list(loaded: Load, name: str) -> None:
    found = loaded(entry(networks=name))
    assert not said(found)
    assert services(found, Network(name))[0].keys() == {*keys(80)}


# Cost


def test_a_file_without_misspelt_keys_does_not_load_what_compares_keys() -> None:
    program = (
        "import sys; from tproxy.config import reader;"
        f" reader.parse('f', {':vxlan_ttl: 1' + chr(10) + entry()!r});"
        " sys.exit('difflib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("bounded_work")
def test_many_or_long_unknown_keys_are_compared_in_seconds(loaded: Load) -> None:
    many = ", ".join(f"k{number}: 1" for number in range(50_000))
    assert (
        len(said(loaded(f"tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n  ? {'a' * 500_000}\n"))) == 1
    )
    assert len(said(loaded(f"tproxy: [{{remote_addr: 10.0.0.1, remote_port: 80, {many}}}]"))) == 50_000
