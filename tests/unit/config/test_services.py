"""The configuration file: what is used, what is ignored and why, and that nothing else can happen."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tproxy.config import reader
from tproxy.config.reader import load
from tproxy.config.services import MAX_BYTES, Config, resolve_ipv4, search, services_for
from tproxy.errors import ConfigError
from tproxy.model import DEFAULT_CONNECT_TIMEOUT, Endpoint, Network, Service

SAMPLE = Path(__file__).parents[3] / "etc/tproxy.yaml"
VNET1 = Network("vnet1", "7")
ONE_LINE = re.compile(r"[ -~]+\Z")

Load = Callable[[str | bytes], Config]


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with and without libyaml."""
    monkeypatch.setattr(reader, "_LOADER", getattr(yaml, request.param))


@pytest.fixture
def loaded(tmp_path: Path, loader: None) -> Load:
    """Load a file of this content."""

    def load_content(content: str | bytes) -> Config:
        return load(written(tmp_path / "tproxy.yaml", content))

    return load_content


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def resolve(name: str) -> list[str]:
    known = {"one.example": ["10.0.0.2", "10.0.0.10"], "loop.example": ["169.254.16.9", "0.0.0.0"]}
    if name not in known:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return known[name]


def services(configured: Config, network: Network = VNET1) -> tuple[dict[int, Service], list[str]]:
    return services_for(configured, network, resolve)


def entry(**fields: str) -> str:
    """A file with one valid entry, but for these fields, as they are to be written."""
    fields = {"remote_addr": "10.0.0.1", "remote_port": "80"} | fields
    return f"tproxy: [{{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}]"


# Which file


def test_search_takes_the_option_before_the_environment(tmp_path: Path) -> None:
    option, variable = written(tmp_path / "option", ""), written(tmp_path / "variable", "")
    environ = {"TPROXY_CONFIG": str(variable)}
    assert search(str(option), environ) == str(option)
    assert search(None, environ) == str(variable)


def test_search_takes_the_first_standard_place_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "opennebula", tmp_path / "own"]
    monkeypatch.setattr("tproxy.config.services.SEARCH_PATH", tuple(map(str, places)))
    assert search(None, {}) is None
    written(places[1], "")
    assert search(None, {"TPROXY_CONFIG": ""}) == str(places[1])
    written(places[0], "")
    assert search(None, {}) == str(places[0])


def test_search_does_not_step_over_a_dangling_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, other = tmp_path / "link", written(tmp_path / "other", "")
    link.symlink_to("nowhere")
    monkeypatch.setattr("tproxy.config.services.SEARCH_PATH", (str(link), str(other)))
    assert search(None, {}) == str(link)


@pytest.mark.parametrize(
    ("option", "environ"), [("", {}), ("no/such", {}), (None, {"TPROXY_CONFIG": "no/such"})]
)
def test_a_named_file_that_is_missing_is_an_error(option: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        search(option, environ)


# Files as a whole


def test_the_sample_is_valid_and_holds_what_it_says(loader: None) -> None:
    sample = load(SAMPLE)
    assert not sample.warnings
    assert [each.service_port for each in sample.entries] == [5030, 80, 80]
    chosen, warnings = services_for(sample, VNET1, lambda asked: ["127.0.0.1"])
    assert chosen == {
        5030: Service(5030, Endpoint("10.11.12.13", 5030)),
        80: Service(80, Endpoint("127.0.0.1", 8080), "packages", 2.5),
    }
    assert not warnings


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
    assert not found.warnings
    assert found.log_level == logging.DEBUG
    assert services(found) == ({5030: Service(5030, Endpoint("10.11.12.13", 5031), "api", 1.5)}, [])


@pytest.mark.parametrize(
    "content",
    ["", "\n", "# nothing\n", "---\n", "~", "{}", "other: 1", "tproxy:", ":tproxy: ~", "tproxy: []"],
)
def test_no_entries_is_not_an_error(loaded: Load, content: str) -> None:
    found = loaded(content)
    assert not found.entries
    assert not found.warnings
    assert found.log_level == logging.INFO


def test_what_belongs_to_others_is_ignored(loaded: Load) -> None:
    found = loaded(
        ":arp_cache_poisoning: true\n"
        "1: !ruby/object:Range {begin: 1}\n"
        "? [a, b]\n: !!python/object/apply:os.abort []\n"
        "twice: 1\ntwice: 2\nbase: &base {mine: 1}\n<<: *base\n" + entry()
    )
    assert not found.warnings
    assert services(found)[0].keys() == {80}


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(loaded: Load) -> None:
    found = loaded("\ufefftproxy:\r\n- remote_addr: 10.0.0.1\r\n  remote_port: 80\r\n")
    assert services(found) == ({80: Service(80, Endpoint("10.0.0.1", 80))}, [])


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
        ("a: &a {tproxy: []}\n<<: *a", 2, "'<<' (merge) is not supported, and brings tproxy"),
        ("a: &a {tproxy_watch: true}\n<<: [{}, *a]", 2, "'<<' (merge) is not supported"),
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


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: {reason}"


def test_a_hostile_file_name_stays_on_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "a\nERROR forged\udc80")
    assert str(error.value) == rf"{tmp_path}/a\nERROR forged\udc80: No such file or directory"


# Files that mean harm


@pytest.mark.usefixtures("bounded_work")
@pytest.mark.parametrize("unit", ["[", "{a: ", "- ", "? ", "[?", "[{"])
def test_deep_nesting_neither_hangs_nor_crashes(loaded: Load, unit: str) -> None:
    with pytest.raises(ConfigError):
        loaded(unit * 100_000)


@pytest.mark.usefixtures("bounded_work")
def test_a_billion_laughs_elsewhere_in_the_file_cost_nothing(loaded: Load) -> None:
    laughs = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 10}]\n" for n in range(1, 40))
    merges = "b0: &b0 {k: v}\n" + "".join(
        f"b{n}: &b{n} {{<<: [{f'*b{n - 1},' * 10}]}}\n" for n in range(1, 40)
    )
    found = loaded(laughs + merges + entry())
    assert services(found)[0].keys() == {80}


@pytest.mark.usefixtures("bounded_work")
@pytest.mark.parametrize(
    "repeated",
    ["{remote_addr: 10.0.0.1, remote_port: 1, networks: [%s]}", "{networks: &n [%s]}", "{%s}"],
)
def test_aliases_cannot_stand_for_more_than_a_file_could_hold(loaded: Load, repeated: str) -> None:
    with pytest.raises(ConfigError, match="too many aliases"):
        loaded(f"tproxy:\n- &a {repeated % ('x, ' * 5_000)}\n" + "- *a\n" * 5_000)


def test_an_entry_can_be_an_alias(loaded: Load) -> None:
    found = loaded("other: &e {remote_addr: 10.0.0.1, remote_port: 80}\ntproxy: [*e]")
    assert services(found)[0].keys() == {80}


def test_many_entries_can_share_a_long_list_of_networks_by_an_alias(loaded: Load) -> None:
    entries = "".join(f"- {{remote_addr: 10.0.0.1, remote_port: {n}, networks: *n}}\n" for n in range(1, 101))
    found = loaded(f"shared: &n {list(range(1000))}\ntproxy:\n{entries}")
    assert not found.warnings
    assert len(services(found, Network("", "999"))[0]) == 100


# Entries


def test_service_port_is_remote_port_when_left_out(loaded: Load) -> None:
    for content in (entry(remote_port="5030"), entry(remote_port="5030", service_port="~")):
        assert services(loaded(content))[0] == {5030: Service(5030, Endpoint("10.0.0.1", 5030))}


@pytest.mark.parametrize("port", ["1", "65535", "'5030'", '"5030"', "!!str 5030"])
def test_a_port_is_a_number_or_its_digits_in_quotes(loaded: Load, port: str) -> None:
    found = loaded(entry(service_port=port))
    assert not found.warnings
    assert list(services(found)[0]) == [int(re.sub(r"\D", "", port))]


@pytest.mark.parametrize("key", ["service_port", "remote_port"])
@pytest.mark.parametrize(
    "port",
    [
        "0",
        "-1",
        "65536",
        "9" * 5000,
        "true",
        "yes",
        "0x50",
        "0120",
        "'0120'",
        "5_030",
        "1:20",
        "80.0",
        "8e1",
        "http",
        "''",
        "' 80'",
        '"80\\n"',
        "'٨٠'",
        "[80]",
        "{}",
        "!!int a",
        "!port 80",
        "2026-01-01",
    ],
)
def test_an_entry_with_any_other_port_is_skipped(loaded: Load, key: str, port: str) -> None:
    found = loaded(entry(**{key: port}))
    assert not found.entries
    (warning,) = found.warnings
    assert f"tproxy.yaml:1: entry 1: {key} " in warning
    assert warning.endswith("is not a port, 1 to 65535: entry skipped")


@pytest.mark.parametrize("key", ["remote_addr", "remote_port"])
@pytest.mark.parametrize("null", ["", "~", "null"])
def test_an_entry_without_remote_addr_or_remote_port_is_skipped(loaded: Load, key: str, null: str) -> None:
    found = loaded("tproxy:\n\n- " + entry(**{key: null}).removeprefix("tproxy: [").removesuffix("]"))
    assert not found.entries
    (warning,) = found.warnings
    assert warning.endswith(f"tproxy.yaml:3: entry 1: {key} is missing: entry skipped")


@pytest.mark.parametrize("item", ["", "5030", "[]", "text"])
def test_an_entry_that_is_no_mapping_is_skipped_and_counted(loaded: Load, item: str) -> None:
    found = loaded(f"tproxy:\n- {item}\n- {{remote_addr: 10.0.0.1, remote_port: 80}}")
    assert [each.number for each in found.entries] == [2]
    (warning,) = found.warnings
    assert re.search(
        r"tproxy.yaml:\d: entry 1: .* is not a mapping of keys to values: entry skipped", warning
    )


def test_a_warning_names_file_line_entry_key_and_value(loaded: Load, tmp_path: Path) -> None:
    found = loaded(
        "tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n- remote_addr: 10.0.0.1\n  remote_port: 70000\n"
    )
    place = f"{tmp_path}/tproxy.yaml:5: entry 2"
    assert found.warnings == (f"{place}: remote_port '70000' is not a port, 1 to 65535: entry skipped",)
    assert services(found)[0].keys() == {80}


def test_an_unknown_key_in_an_entry_is_named_and_ignored(loaded: Load) -> None:
    found = loaded(entry(netwroks="vnet2"))
    (warning,) = found.warnings
    assert "entry 1: key 'netwroks' is unknown and ignored" in warning
    assert services(found)[0].keys() == {80}


@pytest.mark.parametrize("again", ["remote_port", ":remote_port"])
def test_of_a_key_that_is_there_twice_the_last_counts_with_a_warning(loaded: Load, again: str) -> None:
    found = loaded(f"tproxy:\n- remote_addr: 10.0.0.1\n  remote_port: 80\n  {again}: 81")
    (warning,) = found.warnings
    assert "entry 1: remote_port is there twice: '81' is used" in warning
    assert services(found)[0].keys() == {81}


def test_an_entry_that_merges_another_is_skipped_since_it_could_apply_too_widely(loaded: Load) -> None:
    found = loaded("base: &base {networks: vnet2}\n" + entry(**{"<<": "*base"}))
    assert not found.entries
    assert "'<<' (merge) is not supported: entry skipped" in found.warnings[0]


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("1", 1.0),
        ("0.5", 0.5),
        ("'2.5'", 2.5),
        ("300", 300.0),
        ("0.001", 0.001),
        ("~", DEFAULT_CONNECT_TIMEOUT),
    ],
)
def test_connect_timeout_is_in_seconds(loaded: Load, timeout: str, seconds: float) -> None:
    found = loaded(entry(connect_timeout=timeout))
    assert not found.warnings
    assert services(found)[0][80].connect_timeout == seconds


@pytest.mark.parametrize(
    "timeout",
    ["0", "0.0", "-1", "300.001", "301", ".inf", ".nan", "1e2", "yes", "soon", "010", "1:30", "[1]", "''"],
)
def test_an_entry_with_any_other_connect_timeout_is_skipped(loaded: Load, timeout: str) -> None:
    found = loaded(entry(connect_timeout=timeout))
    assert not found.entries
    assert "entry 1: connect_timeout" in found.warnings[0]


@pytest.mark.parametrize("name", ["''", "'" + "n" * 33 + "'", '"a\\nb"', "'ü'", "[a]", "1", '"\\e[31m"'])
def test_an_entry_with_a_name_that_logs_or_maps_could_not_hold_is_skipped(loaded: Load, name: str) -> None:
    found = loaded(entry(name=name))
    assert not found.entries
    assert "entry 1: name" in found.warnings[0]


def test_values_cannot_forge_a_line_of_the_log(loaded: Load) -> None:
    evil = '"x\\n2026 ERROR \\e[31m\\u2028\\u00fc\\U0001F600"'
    found = loaded(
        "tproxy_debug_level: " + evil + "\n"
        f"tproxy:\n- {evil}\n"
        f"- {{{evil}: 1, remote_addr: {evil}, remote_port: 80}}\n"
        f"- {{remote_addr: 10.0.0.1, remote_port: 80, networks: [{evil}, ~]}}\n"
        f"- {{remote_addr: 10.0.0.1, remote_port: {'9' * 9999}}}\n"
    )
    assert len(found.warnings) == 6
    assert all(ONE_LINE.match(warning) and len(warning) < 400 for warning in found.warnings)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "10.1",
        "'10.1'",
        "10",
        "'167772161'",
        "0x7f.1",
        "0x7f000001",
        "127.0x1",
        "010.0.0.1",
        "1.2.3.4.",
        "1.2.3.256",
        "1.2.3.4.5",
        "'::1'",
        "'::ffff:10.0.0.1'",
        "'fe80::1%eth0'",
        "'10.0.0.1 '",
        '"10.0.0.1\\n"',
        '"10.0.0.1\\0"',
        r'"\uff11.2.3.4"',
        "10.0.0.1:80",
        "'[10.0.0.1]'",
        "bücher.example",
        "a..b",
        "'.'",
        "'a b'",
        "a/b",
        "a" * 64 + ".example",
        "a." * 127 + "a",
        "yes",
        "''",
        "[10.0.0.1]",
        "http://one.example",
    ],
)
def test_what_is_not_clearly_an_address_or_a_host_name_is_not_guessed(loaded: Load, address: str) -> None:
    found = loaded(entry(remote_addr=address))
    assert not found.entries
    assert "entry 1: remote_addr " in found.warnings[0]
    assert "is not an IPv4 address or a host name: entry skipped" in found.warnings[0]


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "255.255.255.255", "224.0.0.1", "239.255.255.255", "169.254.16.9"]
)
def test_addresses_that_cannot_be_an_endpoint_are_refused(loaded: Load, address: str) -> None:
    found = loaded(entry(remote_addr=address))
    assert not found.entries
    assert f"remote_addr '{address}' is " in found.warnings[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "223.255.255.255", "240.0.0.1"])
def test_a_dotted_address_needs_no_resolver(loaded: Load, address: str) -> None:
    resolver = mock.Mock()
    chosen, warnings = services_for(loaded(entry(remote_addr=address)), VNET1, resolver)
    assert chosen[80].endpoint == Endpoint(address, 80)
    assert not warnings
    resolver.assert_not_called()


@pytest.mark.parametrize(
    "name", ["localhost", "Host-1.example.org", "a_b", "example.org.", "1and1.example", "0xyz"]
)
def test_host_names_are_left_to_the_resolver(loaded: Load, name: str) -> None:
    chosen, warnings = services_for(loaded(entry(remote_addr=name)), VNET1, lambda asked: ["10.0.0.5"])
    assert chosen[80].endpoint == Endpoint("10.0.0.5", 80)
    assert not warnings


def test_of_several_addresses_each_hook_takes_the_same(loaded: Load) -> None:
    found = loaded(entry(remote_addr="one.example"))
    for answer in (["10.0.0.10", "10.0.0.2"], ["10.0.0.2", "10.0.0.10"]):
        chosen, _ = services_for(found, VNET1, lambda asked, answer=answer: answer)  # type: ignore[misc]  # mypy: no type
        assert chosen[80].endpoint.address == "10.0.0.2"


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"), True),
        (socket.gaierror(socket.EAI_SYSTEM, "System error"), True),
        (OSError(24, "Too many open files"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (UnicodeError("label too long"), False),
    ],
)
def test_a_name_keeps_its_address_while_nobody_answers_for_it(
    loaded: Load, error: Exception, kept: bool
) -> None:
    def unanswered(name: str) -> list[str]:
        raise error

    found = loaded("tproxy: [{remote_addr: one.example, remote_port: 80, name: api}]")
    before, _ = services(found)
    after, (warning,) = services_for(found, VNET1, unanswered, before.get)
    assert after == (before if kept else {})
    assert warning.endswith(": 10.0.0.2:80 as before" if kept else ": entry skipped")
    # Not what is another service by now.
    assert services_for(found, VNET1, unanswered)[0] == {}
    other = {80: Service(80, Endpoint("10.0.0.2", 81))}
    assert services_for(found, VNET1, unanswered, other.get)[0] == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.example", "does not resolve: Name or service not known"),
        ("loop.example", "resolves to no address that can be used"),
    ],
)
def test_a_name_without_a_usable_address_is_skipped_and_the_others_apply(
    loaded: Load, name: str, reason: str
) -> None:
    found = loaded(
        "tproxy:\n"
        f"- {{remote_addr: {name}, remote_port: 80}}\n"
        "- {remote_addr: one.example, remote_port: 81}\n"
        "- {remote_addr: 10.0.0.1, remote_port: 82}\n"
    )
    before = {80: Service(80, Endpoint("10.0.0.9", 80))}
    chosen, (warning,) = services_for(found, VNET1, resolve, before.get)
    assert chosen.keys() == {81, 82}
    assert warning.endswith(f"tproxy.yaml:2: entry 1: remote_addr '{name}' {reason}: entry skipped")


def test_a_name_is_asked_for_once(loaded: Load) -> None:
    content = "tproxy:\n" + "- {remote_addr: gone.example, remote_port: %d}\n" * 3 % (1, 2, 3)
    resolver = mock.Mock(side_effect=OSError(-3, "Temporary failure in name resolution"))
    chosen, warnings = services_for(loaded(content), VNET1, resolver)
    assert not chosen
    assert len(warnings) == 3
    resolver.assert_called_once_with("gone.example")


def test_the_resolver_answers_with_ipv4_or_fails_with_oserror() -> None:
    # What needs no name server, and not even a hosts file.
    assert resolve_ipv4("10.0.0.1") == ["10.0.0.1"]
    with pytest.raises(socket.gaierror):
        resolve_ipv4("::1")


# Networks


@pytest.mark.parametrize(
    "networks", ["0", "'0'", "[0]", "['0']", "[1, 0]", "storage", "[9, 'storage']", "!!str 0"]
)
def test_a_network_matches_by_name_or_id(loaded: Load, networks: str) -> None:
    found = loaded(entry(networks=networks))
    assert not found.warnings
    assert services(found, Network("storage", "0"))[0].keys() == {80}
    assert not services(found, Network("other", "5"))[0]


@pytest.mark.parametrize("networks", ["", "~", "[]", "''"])
def test_missing_or_empty_networks_are_every_network(loaded: Load, networks: str) -> None:
    found = loaded(entry(networks=networks))
    assert not found.warnings
    for network in (VNET1, Network()):
        assert services(found, network)[0].keys() == {80}


def test_a_network_without_name_and_id_gets_only_what_is_for_every_network(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: [0, vnet1]}\n"
        "- {remote_addr: 10.0.0.1, remote_port: 81}\n"
    )
    assert services(found, Network())[0].keys() == {81}


@pytest.mark.parametrize(
    "network",
    [
        "0123",
        "1_000",
        "0x10",
        "1:30",
        "-1",
        "+1",
        "yes",
        "on",
        "1.5",
        "1.0e+3",
        "~",
        "''",
        "2026-01-01",
        "{}",
        "[a]",
    ],
)
def test_an_entry_with_a_network_that_yaml_reads_as_something_else_is_skipped(
    loaded: Load, network: str
) -> None:
    found = loaded(entry(networks=f"[vnet1, {network}]"))
    assert not found.entries
    (warning,) = found.warnings
    assert "entry 1: networks " in warning
    assert "is not clearly a name or an id: put a name in quotes: entry skipped" in warning


@pytest.mark.parametrize("network", ["0123", "1_000", "yes", "1.5", "2026-01-01"])
def test_in_quotes_a_network_is_what_is_written(loaded: Load, network: str) -> None:
    found = loaded(entry(networks=f"'{network}'"))
    assert services(found, Network(network))[0].keys() == {80}


def test_networks_that_are_a_mapping_skip_the_entry(loaded: Load) -> None:
    found = loaded(entry(networks="{vnet1: 0}"))
    assert not found.entries
    assert "networks (a mapping) is not a list of names or ids" in found.warnings[0]


# One service port, several entries


def test_the_first_of_two_entries_with_one_service_port_wins(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 8080, service_port: 80}\n"
        "- {remote_addr: gone.example, remote_port: 80}\n"
    )
    chosen, warnings = services(found)
    assert chosen == {80: Service(80, Endpoint("10.0.0.1", 80))}
    assert [warning.partition("tproxy.yaml:")[2] for warning in warnings] == [
        "3: entry 2: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
        "4: entry 3: service_port 80: entry 1 (line 2) has it on this network: entry ignored",
    ]


def test_entries_for_other_networks_do_not_take_a_port(loaded: Load) -> None:
    found = loaded(
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: vnet2}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80, networks: vnet1}\n"
    )
    for network, address in (("vnet2", "10.0.0.1"), ("vnet1", "10.0.0.2")):
        assert services(found, Network(network)) == ({80: Service(80, Endpoint(address, 80))}, [])


@pytest.mark.parametrize("unusable", ["10.1", "gone.example", "169.254.16.9"])
def test_an_entry_that_is_skipped_does_not_take_a_port(loaded: Load, unusable: str) -> None:
    found = loaded(
        "tproxy:\n"
        f"- {{remote_addr: {unusable}, remote_port: 80}}\n"
        "- {remote_addr: 10.0.0.2, remote_port: 80}\n"
    )
    chosen, warnings = services(found)
    assert chosen == {80: Service(80, Endpoint("10.0.0.2", 80))}
    assert len([*found.warnings, *warnings]) == 1


# Log level


@pytest.mark.parametrize(
    ("level", "meaning"),
    [
        ("0", logging.ERROR),
        ("1", logging.WARNING),
        ("2", logging.INFO),
        ("'3'", logging.DEBUG),
        ("~", logging.INFO),
    ],
)
def test_the_log_level_goes_from_error_to_debug(loaded: Load, level: str, meaning: int) -> None:
    found = loaded(f":tproxy_debug_level: {level}")
    assert found.log_level == meaning
    assert not found.warnings


@pytest.mark.parametrize("level", ["4", "-1", "03", "DEBUG", "true", "[1]", "''", "2.0"])
def test_any_other_log_level_is_a_warning_and_the_default(loaded: Load, level: str) -> None:
    found = loaded(f"\ntproxy_debug_level: {level}")
    assert found.log_level == logging.INFO
    (warning,) = found.warnings
    assert "tproxy.yaml:2: tproxy_debug_level " in warning


# Whatever the file holds

# A machine that is busy with other tests is slow, and no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORDS = st.sampled_from(
    [
        *("tproxy:", ":tproxy:", "tproxy_debug_level:", "service_port:", "remote_addr:", "remote_port:"),
        *(
            ":networks:",
            "name:",
            "connect_timeout:",
            "- ",
            "\n- ",
            "\n  ",
            "\n",
            " ",
            "? ",
            ": ",
            ", ",
            "[",
            "]",
        ),
        *(
            "{",
            "}",
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "!!int ",
            "!x ",
            "|\n",
            ">-\n",
            "'",
            '"',
            "\\",
            "#",
            "---\n",
        ),
        *(
            "...\n",
            "%YAML 1.1\n",
            "%TAG ! x\n",
            "10.0.0.1",
            "one.example",
            "80",
            "0123",
            "yes",
            "~",
            "\t",
            "\r",
        ),
        *("\x00", "\x85", "\u2028", "\ufeff", "ü", "\U0001f600", "\\ud800", "\\0"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner), max_leaves=10)
PORTS = st.integers(-1, 70000) | st.integers(1, 65535).map(str) | VALUES
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "service_port": PORTS,
        "remote_addr": st.sampled_from(["10.0.0.1", "one.example", "gone.example", "169.254.16.9"]) | VALUES,
        ":remote_port": PORTS,
        "networks": st.lists(st.integers(0, 9) | st.sampled_from(["vnet1", "vnet2"])) | VALUES,
        "name": VALUES,
        "connect_timeout": st.floats() | VALUES,
        "unknown": VALUES,
    },
)
DOCUMENTS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={"tproxy": st.lists(ENTRIES | VALUES) | VALUES, "tproxy_debug_level": VALUES, "other": VALUES},
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "tproxy.yaml"


def check(file: Path, content: str | bytes) -> None:
    """The file can be used or is a ConfigError; what is said of it is one line each."""
    written(file, content)
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        chosen: dict[int, Service] = {}
        with mock.patch.object(reader, "_LOADER", loader):
            try:
                found = load(file)
                chosen, warnings = services(found)
                said = [*found.warnings, *warnings]
            except ConfigError as error:
                said = [str(error)]
        assert all(ONE_LINE.match(line) for line in said)
        assert all(0 < port < 65536 and 0 < service.endpoint.port < 65536 for port, service in chosen.items())
        assert all(port == service.port for port, service in chosen.items())
        assert "169.254.16.9" not in {service.endpoint.address for service in chosen.values()}


@unhurried
@given(st.binary())
def test_any_bytes_are_used_or_refused(file: Path, content: bytes) -> None:
    check(file, content)


@unhurried
@given(st.lists(WORDS).map("".join))
def test_anything_that_looks_like_yaml_is_used_or_refused(file: Path, content: str) -> None:
    check(file, content)


@unhurried
@given(DOCUMENTS)
def test_any_values_are_used_or_refused(file: Path, document: dict[str, Any]) -> None:
    check(file, yaml.safe_dump(document, allow_unicode=True))
