"""What of a file is used, what is ignored with which warning, and what makes a file unusable."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.keys import keys
from tests.unit.config.files import ONE_LINE, SAMPLE, VNET1, Load, entry, said, services
from tproxy.config.file import MAX_BYTES
from tproxy.config.reader import load
from tproxy.config.resolver import services_for
from tproxy.errors import ConfigError
from tproxy.model import Endpoint, Network, Service, ServiceKey


def test_the_sample_is_valid_and_holds_what_it_says(loader: None) -> None:
    sample = load(SAMPLE)
    assert not said(sample)
    assert [each.service_port for each in sample.entries] == [5030, 80, 80]
    chosen, warnings = services_for(sample, VNET1, lambda asked: ["127.0.0.1"])
    assert chosen == {
        ServiceKey(5030): Service(ServiceKey(5030), Endpoint("10.11.12.13", 5030)),
        ServiceKey(80): Service(ServiceKey(80), Endpoint("127.0.0.1", 8080), "packages", 2.5),
    }
    assert not warnings


def test_the_merge_key_that_the_sample_shows_works(loaded: Load) -> None:
    lines = SAMPLE.read_text().partition("#blue:")
    found = loaded("".join(lines[1:]).partition("\n\n")[0].replace("#", ""))
    assert not said(found)
    assert [(each.remote_addr, each.remote_port, set(each.networks)) for each in found.entries] == [
        (("10.11.12.14",), 5031, {"blue"}),
        (("10.11.12.14",), 5032, {"blue"}),
    ]


@pytest.mark.parametrize("colon", ["", ":"])
def test_keys_can_have_a_leading_colon(loaded: Load, colon: str) -> None:
    found = loaded(
        f"{colon}tproxy_debug_level: 3\n"
        f"{colon}tproxy:\n"
        f"- {colon}service_port: 5030\n"
        f"  {colon}remote_addr: 10.11.12.13\n"
        f"  {colon}remote_port: 5031\n"
        f"  {colon}networks: [0, vnet1]\n"
        f"  {colon}name: api\n"
        f"  {colon}connect_timeout: 1.5\n"
    )
    assert not said(found)
    assert found.log_level == logging.DEBUG
    assert services(found) == (
        {ServiceKey(5030): Service(ServiceKey(5030), Endpoint("10.11.12.13", 5031), "api", 1.5)},
        [],
    )


@pytest.mark.parametrize(
    "content",
    ["", "\n", "# nothing\n", "---\n", "~", "{}", "other: 1", "tproxy:", ":tproxy: ~", "tproxy: []"],
)
def test_a_file_without_entries_is_not_an_error(loaded: Load, content: str) -> None:
    found = loaded(content)
    assert not found.entries
    assert not said(found)
    assert found.log_level == logging.INFO


def test_keys_of_other_programs_are_ignored(loaded: Load) -> None:
    found = loaded(
        ":arp_cache_poisoning: true\n"
        "1: !ruby/object:Range {begin: 1}\n"
        "? [a, b]\n: !!python/object/apply:os.abort []\n"
        "twice: 1\ntwice: 2\nbase: &base {mine: 1}\n<<: *base\n" + entry()
    )
    assert not said(found)
    assert services(found)[0].keys() == {*keys(80)}


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(loaded: Load) -> None:
    found = loaded("\ufefftproxy:\r\n- remote_addr: 10.0.0.1\r\n  remote_port: 80\r\n")
    assert services(found) == ({ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.1", 80))}, [])


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("a: 1\nb: ]", 2, "not YAML"),
        ("a: 1\nb: c: d\n", 2, "not YAML: mapping values are not allowed"),
        ("a: *nowhere\n", 1, "not YAML: found undefined alias"),
        ("a: 1\n---\nb: 1\n", 2, "not YAML: but found another document"),
        ("a: \x00", None, "not YAML: "),
        ("a: 1\nb: \x1b[31m", None, "not YAML: "),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        ("tproxy: []".encode("utf-16"), 1, "not UTF-8"),
        ("\n- tproxy\n", 2, "(a list) is not a mapping"),
        ("tproxy", 1, "'tproxy' is not a mapping"),
        ("a: 1\ntproxy: {service_port: 1}", 2, "tproxy is not a list"),
        ("a: 1\ntproxy: none", 2, "tproxy is not a list"),
        ("tproxy: ''", 1, "tproxy is not a list"),
        ("tproxy: []\n:tproxy: []", 2, "tproxy is there already, in line 1"),
        ("tproxy: []\ntproxy: []", 2, "tproxy is there already, in line 1"),
        ("a: &a {tproxy: 5}\n<<: *a", 1, "tproxy (merged in line 2) is not a list"),
        ("#" * (MAX_BYTES + 1), None, f"larger than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_with_line_and_reason(
    loaded: Load, tmp_path: Path, content: str | bytes, line: int | None, reason: str
) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(content)
    place = f"{tmp_path}/tproxy.yaml" + (f":{line}" if line else "")
    assert str(error.value).startswith(f"{place}: {reason}")
    assert ONE_LINE.match(str(error.value))


@pytest.mark.usefixtures("bounded_work")
@pytest.mark.parametrize("unit", ["[", "{a: ", "- ", "? ", "[?", "[{"])
def test_deep_nesting_neither_hangs_nor_crashes(loaded: Load, unit: str) -> None:
    with pytest.raises(ConfigError):
        loaded(unit * 100_000)


@pytest.mark.usefixtures("bounded_work")
def test_a_billion_laughs_under_keys_of_other_programs_cost_nothing(loaded: Load) -> None:
    laughs = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 10}]\n" for n in range(1, 40))
    merges = "b0: &b0 {k: v}\n" + "".join(
        f"b{n}: &b{n} {{<<: [{f'*b{n - 1},' * 10}]}}\n" for n in range(1, 40)
    )
    found = loaded(laughs + merges + entry())
    assert services(found)[0].keys() == {*keys(80)}


@pytest.mark.usefixtures("bounded_work")
@pytest.mark.parametrize(
    "repeated",
    ["{remote_addr: 10.0.0.1, remote_port: 1, networks: [%s]}", "{networks: &n [%s]}", "{%s}"],
)
def test_aliases_that_stand_for_more_than_a_file_could_hold_are_refused(loaded: Load, repeated: str) -> None:
    with pytest.raises(ConfigError, match="too many aliases"):
        loaded(f"tproxy:\n- &a {repeated % ('x, ' * 5_000)}\n" + "- *a\n" * 5_000)


def test_an_entry_can_be_an_alias(loaded: Load) -> None:
    found = loaded("other: &e {remote_addr: 10.0.0.1, remote_port: 80}\ntproxy: [*e]")
    assert services(found)[0].keys() == {*keys(80)}


def test_many_entries_can_share_a_long_list_of_networks_by_an_alias(loaded: Load) -> None:
    entries = "".join(f"- {{remote_addr: 10.0.0.1, remote_port: {n}, networks: *n}}\n" for n in range(1, 101))
    found = loaded(f"shared: &n {list(range(1000))}\ntproxy:\n{entries}")
    assert not said(found)
    assert len(services(found, Network("", "999"))[0]) == 100


@pytest.mark.parametrize("key", ["remote_addr", "remote_port"])
@pytest.mark.parametrize("null", ["", "~", "null"])
def test_an_entry_without_remote_addr_or_remote_port_is_skipped(loaded: Load, key: str, null: str) -> None:
    found = loaded("tproxy:\n\n- " + entry(**{key: null}).removeprefix("tproxy: [").removesuffix("]"))
    assert not found.entries
    (warning,) = said(found)
    assert warning.endswith(f"tproxy.yaml:3: entry 1: {key} is missing: entry skipped")


@pytest.mark.parametrize("item", ["", "5030", "[]", "text"])
def test_an_entry_that_is_not_a_mapping_is_skipped_and_counted(loaded: Load, item: str) -> None:
    found = loaded(f"tproxy:\n- {item}\n- {{remote_addr: 10.0.0.1, remote_port: 80}}")
    assert [each.number for each in found.entries] == [2]
    (warning,) = said(found)
    assert re.search(
        r"tproxy.yaml:\d: entry 1: .* is not a mapping of keys to values: entry skipped", warning
    )


def test_a_warning_names_file_line_entry_key_and_value(loaded: Load, tmp_path: Path) -> None:
    found = loaded(
        "tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n- remote_addr: 10.0.0.1\n  remote_port: 70000\n"
    )
    place = f"{tmp_path}/tproxy.yaml:5: entry 2"
    assert said(found) == [f"{place}: remote_port '70000' is not a port, 1 to 65535: entry skipped"]
    assert services(found)[0].keys() == {*keys(80)}


def test_an_unknown_key_in_an_entry_is_named_and_ignored(loaded: Load) -> None:
    found = loaded(entry(colour="green"))
    (warning,) = said(found)
    assert "entry 1: key 'colour' is unknown and ignored" in warning
    assert services(found)[0].keys() == {*keys(80)}


@pytest.mark.parametrize("again", ["remote_port", ":remote_port"])
def test_a_key_that_is_written_twice_is_warned_of_and_the_last_one_counts(loaded: Load, again: str) -> None:
    found = loaded(f"tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n  {again}: 81")
    (warning,) = said(found)
    assert "entry 1: remote_port is there twice: '81' is used" in warning
    assert services(found)[0].keys() == {*keys(81)}


def test_values_cannot_forge_a_line_of_the_log(loaded: Load) -> None:
    evil = '"x\\n2026 ERROR \\e[31m\\u2028\\u00fc\\U0001F600"'
    found = loaded(
        "tproxy_debug_level: " + evil + "\n"
        f"tproxy:\n- {evil}\n"
        f"- {{{evil}: 1, remote_addr: {evil}, remote_port: 80}}\n"
        f"- {{remote_addr: 10.0.0.1, remote_port: 80, networks: [{evil}, ~]}}\n"
        f"- {{remote_addr: 10.0.0.1, remote_port: {'9' * 9999}}}\n"
    )
    assert len(said(found)) == 6
    assert all(ONE_LINE.match(warning) and len(warning) < 400 for warning in said(found))
