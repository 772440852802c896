"""Options are declared once: what reads the file, nftables' words, the schema and the pages follow."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.unit.config.files import SAMPLE, Load, entry, said, services
from tproxy.bridge import comments
from tproxy.config import keys, reference
from tproxy.config.schema import schema
from tproxy.errors import ConfigError
from tproxy.model import Endpoint, Service, ServiceKey, ServiceMap
from tproxy.options import Choice, Flag, Number, Seconds, Text, written

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    Draft7Validator.check_schema(schema())
    return Draft7Validator(schema())


def test_the_files_that_are_made_of_the_declarations_are_current() -> None:
    """If this fails: make options."""
    stale = [name for name, text in reference.files().items() if (ROOT / name).read_text() != text]
    assert not stale


@pytest.mark.parametrize("known", [keys.FILE, keys.ENTRY, keys.BRIDGE], ids=["top level", "entry", "bridge"])
def test_each_key_has_a_help_text_and_says_what_it_means_when_it_is_missing(known: keys.Keys) -> None:
    for each in known.values():
        option = each.option
        assert option.help
        assert option.required or option.unset or each.default_as_written(), each.key


@pytest.mark.parametrize("key", [key for key, each in keys.FILE.items() if each.default_as_written()])
def test_the_default_of_an_option_can_be_written_and_means_the_same(loaded: Load, key: str) -> None:
    declared = keys.FILE[key]
    found = loaded(f"{key}: {declared.default_as_written()}\n{entry()}")
    assert not said(found)
    if key in keys.GENERAL:
        assert services(found)[0] == {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.1", 80))}
    else:
        assert found == loaded(entry())._replace(path=found.path, entries=found.entries, said=found.said)


# An option for all entries


def test_an_option_at_the_top_level_counts_for_all_entries_that_do_not_have_it(loaded: Load) -> None:
    base = "remote_addr: 10.0.0.1, remote_port"
    found = loaded(
        f":tproxy_connect_timeout: 2.5\ntproxy: [{{{base}: 80}}, {{{base}: 81, connect_timeout: 5}}, "
        f"{{{base}: 82, connect_timeout: ~}}]"
    )
    times = {key.port: each.connect_timeout for key, each in services(found)[0].items()}
    assert times == {80: 2.5, 81: 5.0, 82: 2.5}
    assert not said(found)


def test_a_bad_option_for_all_entries_is_one_warning_and_the_default(loaded: Load) -> None:
    found = loaded(f"tproxy_connect_timeout: 301\n{entry()}")
    (warning,) = found.warnings
    assert warning.at("f") == (
        "f:1: tproxy_connect_timeout '301' is not a time of 0.001 to 300 seconds: 5 is used"
    )
    assert services(found)[0][ServiceKey(80)].connect_timeout == 5


# The comment of an element


LONGEST = [f"'fd00:{each:x}:2222:3333:4444:5555:6666:7777'" for each in range(1, 16)]


def test_all_options_of_an_entry_at_once_are_stored(loaded: Load) -> None:
    options = {
        "name": "n" * 32,
        "connect_timeout": "299.999",
        "max_connections_per_guest": "1000000",
        "max_connections_per_bridge": "1000000",
        "max_connections_to_endpoint": "1000000",
        "idle_timeout": "2592000",
        "half_closed_timeout": "2592000",
        "user_timeout": "86400",
        "drain_timeout": "2592000",
        "proxy_protocol": "v2",
        "spread": "least",
        "udp_idle_timeout": "86400",
        "remote_addr": "["
        + ", ".join(f"'fd00:{each:x}:2222:3333:4444:5555:6666:7777'" for each in range(15))
        + ", 10.0.0.1]",
    }
    assert options.keys() == keys.SERVICE.keys() | {"remote_addr"}
    found = loaded(entry(**options))
    assert not said(found)
    wanted = ServiceMap("br0", services(found)[0])
    assert wanted.services[ServiceKey(80)].drain_timeout == 2592000
    assert comments.storable(wanted) == wanted


# The schema

# An option of a service that can also stand at the top level has two keys.
TOPS = ("", "tproxy_")

BAD_VALUES: dict[str, list[str]] = {
    "tproxy": ["5", "{}", "[5]", "['x']", "[[]]"],
    "tproxy_debug_level": ["4", "-1", "debug", "1.5", "[2]"],
    "tproxy_workers": ["0", "65", "all", "-1", "true", "[2]"],
    "tproxy_ipv6": ["maybe", "1", "[]"],
    "tproxy_gateway_ranges": ["5", "everything", "[10.0.0.0/16/3]", "{}", "[[]]"],
    "tproxy_gateway_domains": ["5", "a b", "[a..b]", "{}", "[[]]"],
    "tproxy_watch": ["maybe", "1", "[]"],
    "tproxy_watch_grace": ["-1", "86401", "soon", "[]"],
    "tproxy_connect_timeout": ["0", "301", "soon"],
    "tproxy_max_connections": ["0", "1000001", "all", "-1", "true", "[2]"],
    **{f"{top}max_connections_per_guest": ["1000001", "-1", "auto", "1.5", "[]"] for top in TOPS},
    **{f"{top}max_connections_per_bridge": ["0", "1000001", "-1", "many"] for top in TOPS},
    **{f"{top}max_connections_to_endpoint": ["0", "1000001", "-1", "many"] for top in TOPS},
    **{f"{top}idle_timeout": ["-1", "2592001", "0.5", "never"] for top in TOPS},
    **{f"{top}half_closed_timeout": ["-1", "2592001", "0.5", "never"] for top in TOPS},
    **{f"{top}user_timeout": ["-1", "86401", "0.5", "never"] for top in TOPS},
    **{f"{top}drain_timeout": ["-1", "2592001", "0.5", "never"] for top in TOPS},
    **{f"{top}proxy_protocol": ["v1", "2", "true", "[v2]"] for top in TOPS},
    "tproxy_log_format": ["xml", "''", "1", "true", "[json]", "JSON"],
    "tproxy_hypervisor_name": ["''", "5", "é", f"{'n' * 65}", "[a]"],
    **{f"{top}udp_idle_timeout": ["0", "86401", "-1", "never", "0.5"] for top in TOPS},
    **{f"{top}spread": ["last", "0", "[first]", "true"] for top in TOPS},
    "tproxy_bridges": ["br0", "[br0]", "[{network: blue}]"],
    "tproxy_routes": ["web", "[web]", "[{id: web}]", "[{id: 'a/b', network: n, port: 1}]"],
    "tproxy_tunnels": ["web", "[{nodes: a}]", "[{nodes: a, offer: [in:5]}]", "[{nodes: A, offer: in}]"],
    "service_port": ["0", "65536", "http", "-5", "1.5", "[80]"],
    "service_addr": [
        "5", "''", "host", "10.0.0", "10.0.0.256", "0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "'fe80::1'", "[169.254.169.254]", "169.254.169.254/32",
    ],
    "remote_addr": [
        "5", "''", "a b", "169.254.16.9", "0.0.0.0", "255.255.255.255", "224.0.0.1", "10.0.0.256",
        "[]", "[[a]]",
        "[10.0.0.1, 10.0.0.256]", "'fe80::1'", "'ff02::1'", "'::'", "'::ffff:10.0.0.1'",
        "unix:x.sock", "'unix:'", "unix:/", "unix:/run/", "'unix:/run/x y'", "'unix:/a,b'", "unix:/é",
        f"unix:/{'n' * 107}", "[10.0.0.1, unix:x]", "unix:@abstract", "'fd00::1%eth0'",
        f"[{', '.join(17 * ['a'])}]",
    ],
    "remote_port": ["0", "65536", "http", "{}"],
    "networks": ["true", "{}", "'0, 1'", "a;b", "'1 2'", "[true]", "[[a]]", "-1", "1.5"],
    "protocol": ["sctp", "17", "[]", "[tcp, sctp]", "[[udp]]", "TCP", "true"],
    "name": ["''", "5", "é", f"{'n' * 33}", "[a]"],
    "connect_timeout": ["0", "301", "-1", "soon", "[]"],
    "colour": ["red"],
    "network_of": ["blue"],
    "bridge": ["'a;b'", "''", "[br0]", f"{'b' * 65}"],
    "network": ["true", "''", "[a]", "1.5"],
    "network_id": ["true", "''", "[1]"],
    "uplinks": ["'x y'", "[eth0, 'x y']", "{}", "sixteen-bytes-xx", "true"],
}  # fmt: skip


def with_value(key: str, value: str, colon: str = "") -> str:
    """A file that is in order but for this value."""
    if key in keys.FILE:
        return f"{colon}{key}: {value}\n"
    bridges = key in keys.BRIDGE
    fields = {"bridge": "br0"} if bridges else {"remote_addr": "10.0.0.1", "remote_port": "80"}
    fields.pop(key, None)
    lines = [f"{colon}{key}: {value}", *(f"{name}: {each}" for name, each in fields.items())]
    return ("tproxy_bridges:\n- " if bridges else "tproxy:\n- ") + "\n  ".join(lines) + "\n"


def test_bad_values_of_each_key_are_tried() -> None:
    assert {*keys.FILE, *keys.ENTRY, *keys.BRIDGE} <= BAD_VALUES.keys()


@pytest.mark.parametrize("key", BAD_VALUES)
def test_what_the_schema_refuses_is_reported_by_the_reader_too(
    validator: Draft7Validator, loaded: Load, key: str
) -> None:
    for value, colon in itertools.product(BAD_VALUES[key], ("", ":")):
        text = with_value(key, value, colon)
        assert not validator.is_valid(yaml.safe_load(text)), text
        assert reported(loaded, text), text


def reported(loaded: Load, text: str) -> list[str]:
    """The warnings, or the error that makes the file unusable: only because of a value, not of YAML."""
    try:
        return said(loaded(text))
    except ConfigError as error:
        return [str(error)] if "is not a list" in str(error) else []


@pytest.mark.parametrize("key", ["remote_addr", "remote_port"])
def test_the_schema_refuses_an_entry_without_a_required_key(validator: Draft7Validator, key: str) -> None:
    document = yaml.safe_load(entry())
    assert validator.is_valid(document)
    del document["tproxy"][0][key]
    assert not validator.is_valid(document)


GOOD_VALUES: dict[str, list[str]] = {
    "tproxy": ["", "[]"],
    "tproxy_debug_level": ["", "0", "'3'"],
    "tproxy_workers": ["", "auto", "1", "64", "'8'"],
    "tproxy_watch": ["", "true", "False"],
    "tproxy_ipv6": ["", "true", "False"],
    "tproxy_gateway_ranges": ["10.0.0.0/16", "[10.0.0.0/16, 'fd00::/8']", "[10.0.0.1]"],
    "tproxy_gateway_domains": ["example.com", "[example.com, example.org]"],
    "tproxy_watch_grace": ["", "0", "0.5", "86400", "'30'", "'1.125'"],
    "tproxy_bridges": ["", "[]"],
    "service_port": ["", "1", "65535", "'80'"],
    "remote_addr": [
        "10.0.0.1",
        "localhost",
        "a-b.example.",
        "x_1",
        "1.example",
        "0xfg",
        "'fd00::1'",
        "'::1'",
        "[10.0.0.1, a, 'fd00::1']",
        "'64:ff9b::10.0.0.1'",
        "unix:/run/x.sock",
        f"unix:/{'n' * 106}",
        "['unix:/run/a:b+c%', 10.0.0.1, a, 'fd00::1']",
    ],
    "networks": ["", "''", "0", "a", "'a b'", "[0, a]", "[]", "['a,b']", "!!str 7"],
    "udp_idle_timeout": ["", "auto", "1", "86400", "'5'"],
    "service_addr": ["", "169.254.169.254", "169.254.16.9", "1.0.0.1", "'10.0.0.53'", "223.255.255.254"],
    "protocol": ["", "tcp", "udp", "[udp]", "[tcp, udp]", "[udp, tcp, udp]"],
    "name": ["", "n", "'a b'", "'0'"],
    "connect_timeout": ["", "0.001", "300", "'2.5'"],
    "tproxy_max_connections": ["", "auto", "1", "1000000"],
    "max_connections_per_guest": ["", "0", "1", "1000000"],
    "max_connections_per_bridge": ["", "auto", "1", "1000000"],
    "max_connections_to_endpoint": ["", "auto", "1", "1000000"],
    "idle_timeout": ["", "0", "2592000", "'60'"],
    "half_closed_timeout": ["", "0", "2592000"],
    "user_timeout": ["", "0", "86400"],
    "drain_timeout": ["", "0", "2592000"],
    "proxy_protocol": ["", "none", "v2", "'v2'"],
    "tproxy_proxy_protocol": ["", "none", "v2"],
    "tproxy_log_format": ["text", "json", "'json'"],
    "tproxy_hypervisor_name": ["", "node7", "'node 7'", f"{'n' * 64}"],
    "spread": ["", "first", "'least'"],
    "bridge": ["br0", "'onebr*'", "br[0-9]", "5"],
    "uplinks": ["", "''", "eth0", "[eth0, eth1.100]", "[]"],
    "network": ["", "blue", "7"],
}


@pytest.mark.parametrize("key", GOOD_VALUES)
def test_what_the_reader_takes_the_schema_takes_too(
    validator: Draft7Validator, loaded: Load, key: str
) -> None:
    for value, colon in itertools.product(GOOD_VALUES[key], ("", ":")):
        text = with_value(key, value, colon)
        assert not said(loaded(text)), text
        validator.validate(yaml.safe_load(text))


def examples() -> Iterator[tuple[str, str]]:
    """Yield the configuration files that are shown somewhere: the place, and the text."""
    yield "etc/tproxy.yaml", SAMPLE.read_text()
    # Its commented lines are examples too: those without a space behind the mark.
    for number, block in enumerate(
        re.findall(r"(?:^#[^ \n].*\n(?:^#.*\n)*)", SAMPLE.read_text(), re.MULTILINE)
    ):
        yield f"etc/tproxy.yaml, comment {number}", re.sub(r"^#", "", block, flags=re.MULTILINE)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
        blocks += re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for number, block in enumerate(blocks):
            if re.search(r"^ *:?tproxy(_\w+)?:( |$)", block, re.MULTILINE):
                name = f"{page.relative_to(ROOT)}, example {number}"
                yield name, re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


@pytest.mark.parametrize(("place", "text"), [*examples()], ids=[place for place, _ in examples()])
def test_every_example_is_in_order(validator: Draft7Validator, loaded: Load, place: str, text: str) -> None:
    validator.validate(yaml.safe_load(text))
    assert not said(loaded(text))


def test_examples_are_found() -> None:
    places = {place.partition(",")[0] for place, _ in examples()}
    assert {"etc/tproxy.yaml", "docs/contract.md"} <= places


# Kinds that options will have


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Number(1, 64, words={"auto": 0}), 0, "auto"),
        (Number(0, 3600, "seconds"), 3600, "3600"),
        (Seconds(0.001, 300), 2.5, "2.5"),
        (Flag(), True, "true"),
        (Choice({"first": "first", "least": "least"}), "least", "least"),
        (Text(5), "", ""),
    ],
    ids=str,
)
def test_a_value_is_written_as_it_would_be_read(kind: Any, value: object, text: str) -> None:
    assert written(kind, value) == text


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("yes", False, True),
        ("no", True, False),
        ("maybe", True, True),
        ("0", 3600, 0),
        ("12", 3600, 12),
        ("-1", 3600, 3600),
        ("1e3", 3600, 3600),
        ("9" * 5000, 3600, 3600),
        ("0", 5.0, 5.0),
        ("0.25", 5.0, 0.25),
        ("v2", "", "v2"),
    ],
)
def test_a_word_of_a_comment_is_read_by_the_type_of_the_default(
    text: str, default: object, value: object
) -> None:
    found = comments._value(text, default)
    assert (found, type(found)) == (value, type(value))
    if text not in ("maybe", "-1") and found != default:
        assert comments._word(found) == text


def test_the_schema_is_readable() -> None:
    text = (ROOT / reference.SCHEMA).read_text()
    assert json.loads(text)["properties"]["tproxy_workers"]["default"] == "auto"
