"""YAML merge keys: which values count, the lines of warnings, and files that mean harm."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.config.files import ONE_LINE, Load, said, services
from tproxy.config.merging import MAX_DEPTH
from tproxy.config.reader import parse
from tproxy.config.services import Config, Entry
from tproxy.errors import ConfigError
from tproxy.model import Endpoint, Network, Service, ServiceKey


def only_entry(found: Config) -> Entry:
    """The only entry of a file that no warning is about."""
    assert not said(found)
    (entry,) = found.entries
    return entry


@pytest.mark.parametrize(("own", "merged"), [("", ""), (":", ":"), ("", ":"), (":", "")])
def test_an_entry_gets_the_keys_of_a_merged_mapping_with_and_without_colons(
    loaded: Load, own: str, merged: str
) -> None:
    found = loaded(
        f"defaults: &defaults\n  {merged}remote_addr: 10.0.0.1\n  {merged}networks: vnet2\n"
        f"{own}tproxy:\n- <<: *defaults\n  {own}remote_port: 80\n"
    )
    assert not said(found)
    assert services(found, Network("vnet2")) == (
        {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.1", 80))},
        [],
    )
    assert services(found, Network("vnet1")) == ({}, [])


@pytest.mark.parametrize("colon", ["", ":"])
@pytest.mark.parametrize("first", [True, False])
def test_own_keys_win_wherever_the_merge_key_stands(loaded: Load, first: bool, colon: str) -> None:
    lines = ["<<: *base", f"'{colon}remote_port': 81"]
    entry = ", ".join(lines if first else reversed(lines))
    found = loaded(f"base: &base {{remote_addr: 10.0.0.1, remote_port: 80}}\ntproxy: [{{{entry}}}]")
    assert only_entry(found).remote_port == 81


def test_of_several_merged_mappings_the_earlier_one_wins(loaded: Load) -> None:
    found = loaded(
        "one: &one {remote_port: 81}\n"
        "two: &two {remote_port: 82, remote_addr: 10.0.0.2, name: two}\n"
        "tproxy: [{<<: [*one, *two, {name: three, connect_timeout: 3}]}]"
    )
    entry = only_entry(found)
    assert (entry.remote_port, entry.remote_addr, entry.options["name"]) == (81, ("10.0.0.2",), "two")
    assert entry.options["connect_timeout"] == 3


def test_a_merged_mapping_can_merge_another(loaded: Load) -> None:
    found = loaded(
        "one: &one {remote_addr: 10.0.0.1, remote_port: 81, name: one}\n"
        "two: &two {<<: *one, remote_port: 82}\n"
        "tproxy: [{<<: *two, name: own}]"
    )
    entry = only_entry(found)
    assert (entry.remote_addr, entry.remote_port, entry.options["name"]) == (("10.0.0.1",), 82, "own")


def test_a_mapping_can_be_merged_by_two_ways(loaded: Load) -> None:
    found = loaded(
        "one: &one {remote_addr: 10.0.0.1, remote_port: 80}\n"
        "two: &two {<<: *one, name: two}\n"
        "tproxy: [{<<: [*one, *two, *one]}]"
    )
    assert only_entry(found).options["name"] == "two"


def test_a_null_value_unsets_a_merged_key(loaded: Load) -> None:
    found = loaded(
        "base: &base {remote_addr: 10.0.0.1, remote_port: 80, networks: vnet2, service_port: 1}\n"
        "tproxy: [{<<: *base, networks: ~, service_port: ~}]"
    )
    entry = only_entry(found)
    assert (entry.networks, entry.service_port) == (frozenset(), 80)


def test_entries_of_tproxy_bridges_can_merge(loaded: Load) -> None:
    found = loaded(
        "base: &base {network: blue, uplinks: [eth1]}\n"
        "tproxy_bridges: [{<<: *base, bridge: br0}, {<<: *base, bridge: br1, network: red}]"
    )
    assert not said(found)
    assert [(each.pattern, each.network.name, set(each.uplinks)) for each in found.bridges] == [
        ("br0", "blue", {"eth1"}),
        ("br1", "red", {"eth1"}),
    ]


@pytest.mark.parametrize("colon", ["", ":"])
def test_keys_of_the_file_itself_can_be_merged(loaded: Load, colon: str) -> None:
    found = loaded(
        f"site: &site\n  {colon}tproxy: [{{remote_addr: 10.0.0.1, remote_port: 80}}]\n"
        f"  {colon}tproxy_watch_grace: 7\n  {colon}tproxy_debug_level: 1\n"
        f"<<: *site\ntproxy_debug_level: 3\n"
    )
    assert only_entry(found).remote_port == 80
    assert (found.watch_grace, found.log_level, found.silent) == (7, 10, False)


# Warnings


def test_a_merged_value_is_reported_in_its_own_line_with_the_line_that_merges_it(loaded: Load) -> None:
    found = loaded(
        "defaults: &defaults\n"
        "  remote_addr: 10.0.0.1\n"
        "  remote_port: 70000\n"
        "  networks:\n"
        "  - 0123\n"
        "tproxy:\n"
        "- <<: *defaults\n"
        "  remote_port: 80\n"
        "  networks: vnet1\n"
        "- name: two\n"
        "  <<: *defaults\n"
    )
    assert [each.number for each in found.entries] == [1]
    not_clear = "is not clearly a name or an id: put a name in quotes"
    assert sorted(each[:2] for each in found.warnings) == [
        (3, "entry 2: remote_port '70000' (merged in line 11) is not a port, 1 to 65535: entry skipped"),
        (5, f"entry 2: networks '0123' (merged in line 11) {not_clear}: entry skipped"),
    ]


def test_a_value_that_comes_by_two_merges_names_the_line_in_the_entry(loaded: Load) -> None:
    found = loaded(
        "one: &one {name: ''}\n"
        "two: &two {<<: *one}\n"
        "tproxy:\n"
        "- {remote_addr: 10.0.0.1, remote_port: 80,\n"
        "   <<: *two}\n"
    )
    (warning,) = found.warnings
    assert (warning.line, warning.text[:36]) == (1, "entry 1: name '' (merged in line 5) ")


def test_a_missing_key_is_reported_in_the_line_of_the_entry(loaded: Load) -> None:
    found = loaded("base: &base {remote_port: 80}\ntproxy:\n- <<: *base\n  name: one\n")
    assert [each[:2] for each in found.warnings] == [(3, "entry 1: remote_addr is missing: entry skipped")]


def test_keys_of_a_merged_mapping_are_reported_once_for_all_entries(loaded: Load) -> None:
    found = loaded(
        "base: &base\n"
        "  remote_addr: 10.0.0.1\n"
        "  colour: green\n"
        "  remote_port: 80\n"
        "  :remote_port: 81\n"
        "tproxy:\n"
        "- <<: *base\n"
        "- {<<: *base, service_port: 1}\n"
    )
    assert [each.remote_port for each in found.entries] == [81, 81]
    assert [each[:2] for each in found.warnings] == [
        (3, "entry 1: key 'colour' (merged in line 7) is unknown and ignored"),
        (5, "entry 1: remote_port is there twice: '81' (merged in line 7) is used"),
    ]


def test_an_overridden_value_is_not_judged(loaded: Load) -> None:
    found = loaded(
        "base: &base {remote_addr: 10.1, remote_addr: 10.2, remote_port: 80}\n"
        "tproxy: [{<<: *base, remote_addr: 10.0.0.1}]"
    )
    assert only_entry(found).remote_addr == ("10.0.0.1",)


def test_options_of_the_file_name_the_line_that_merges_them(loaded: Load) -> None:
    found = loaded("site: &site\n  tproxy_debug_level: 9\n  tproxy_watch: maybe\n<<: *site\n")
    assert [each[:2] for each in found.warnings] == [
        (2, "tproxy_debug_level '9' (merged in line 4) is not one of 0 to 3: 2 is used"),
        (3, "tproxy_watch 'maybe' (merged in line 4) is not true or false: false is used"),
    ]


BAD_MERGES = [
    ("<<: 5", 3, "'<<' '5' is not a mapping to merge"),
    ("<<: ", 3, "'<<' '' is not a mapping to merge"),
    ("<<: [*base, [*base]]", 3, "'<<' (a list) is not a mapping to merge"),
    ("<<: *base\n  <<: *base", 4, "'<<' is there twice: write <<: [*first, *second]"),
    (":<<: *base", 3, "'<<' merges only when it is written without quotes and colon"),
    ("'<<': *base", 3, "'<<' merges only when it is written without quotes and colon"),
    ("<<: &self {<<: *self}", 3, "'<<' merges a mapping into itself"),
    ("<<: &self {<<: [{<<: *self}]}", 3, "'<<' merges a mapping into itself"),
]


@pytest.mark.parametrize(("merge", "line", "fault"), BAD_MERGES)
def test_an_entry_with_a_merge_that_cannot_be_followed_is_skipped(
    loaded: Load, merge: str, line: int, fault: str
) -> None:
    # It could apply too widely without what the merge was to bring. Only its other faults are said as well.
    found = loaded(f"base: &base {{networks: vnet2}}\ntproxy:\n- {merge}\n  remote_port: 0\n")
    assert not found.entries
    assert sorted(each[:2] for each in found.warnings) == sorted(
        [
            (line, f"entry 1: {fault}: entry skipped"),
            (
                4 + merge.count("\n"),
                "entry 1: remote_port '0' is not a port, 1 to 65535: entry skipped",
            ),
        ]
    )


@pytest.mark.parametrize(("merge", "line", "fault"), BAD_MERGES)
def test_a_file_with_a_merge_that_cannot_be_followed_is_refused(
    loaded: Load, merge: str, line: int, fault: str
) -> None:
    merge = merge.replace("\n  ", "\n")
    with pytest.raises(ConfigError) as error:
        loaded(f"base: &base {{tproxy: []}}\n\n{merge}\n")
    assert str(error.value).endswith(f"tproxy.yaml:{line}: {fault}")


def test_a_key_that_a_merged_mapping_has_twice_makes_the_file_unusable(loaded: Load) -> None:
    with pytest.raises(ConfigError, match=r"tproxy.yaml:3: tproxy is there already, in line 2"):
        loaded("a: &a\n  tproxy: []\n  :tproxy: []\n<<: *a\n")


# Files that mean harm


def nested(levels: int) -> str:
    """A file whose entry merges so many mappings, each of which merges the one before."""
    mappings = "".join(f"a{n}: &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, levels))
    return (
        "a0: &a0 {remote_addr: 10.0.0.1, remote_port: 80}\n" + mappings + f"tproxy: [{{<<: *a{levels - 1}}}]"
    )


def test_mappings_merge_one_another_to_a_limit(loaded: Load) -> None:
    assert only_entry(loaded(nested(MAX_DEPTH))).remote_port == 80


@pytest.mark.usefixtures("bounded_work")
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 10_000])
def test_an_entry_that_merges_too_deeply_is_skipped(loaded: Load, levels: int) -> None:
    found = loaded(nested(levels))
    assert not found.entries
    (warning,) = said(found)
    assert f"entry 1: '<<' merges mappings nested deeper than {MAX_DEPTH} levels: entry skipped" in warning


LAUGHS = "b0: &b0 {name: x}\n" + "".join(
    f"b{n}: &b{n} {{<<: [{f'*b{n - 1},' * 10}]}}\n" for n in range(1, 40)
)


@pytest.mark.usefixtures("bounded_work")
@pytest.mark.parametrize(
    "last",
    [
        "<<: *b39",
        "tproxy: [{<<: *b39}]",
        "tproxy: [{<<: &a {<<: [*b39]}}]",
        "tproxy: [" + "{<<: *b3}," * 5000 + "]",
        "l: &l [{}" + ", *b0" * 5000 + "]\ntproxy: [" + "{<<: *l}," * 50 + "]",
    ],
)
def test_merges_that_stand_for_more_than_a_file_could_hold_are_refused(loaded: Load, last: str) -> None:
    with pytest.raises(ConfigError, match="too many aliases"):
        loaded(LAUGHS + last)


@pytest.mark.usefixtures("bounded_work")
def test_many_entries_can_merge_the_same_defaults(loaded: Load) -> None:
    entries = "".join(f"- {{<<: *defaults, remote_port: {n}}}\n" for n in range(1, 5001))
    found = loaded(f"defaults: &defaults {{remote_addr: 10.0.0.1, networks: [0, 1]}}\ntproxy:\n{entries}")
    assert not said(found)
    assert len(services(found, Network("", "1"))[0]) == 5000


# Whatever is merged

VALUES = {
    "service_port": ["80", "81", "0", "~"],
    "remote_addr": ["10.0.0.1", "10.0.0.2", "10.1"],
    "remote_port": ["8080", "8081", "'70000'"],
    "networks": ["vnet1", "[0, vnet2]", "~", "{}"],
    "name": ["one", "two", "''"],
}
FIELDS = st.fixed_dictionaries({}, optional={key: st.sampled_from(some) for key, some in VALUES.items()})
# Of each mapping: its fields, the mappings before it that it merges, whether they are a list, and where the
# merge key stands.
MAPPING = st.tuples(FIELDS, st.lists(st.integers(0, 9), max_size=3), st.booleans(), st.integers(0, 5))
Mapping = tuple[dict[str, str], list[int], bool, int]


def mapping(number: int, parts: Mapping, colon: str) -> str:
    """The mapping as text; it merges some of those that come before it."""
    fields, _, several, place = parts
    words = [f"'{colon}{key}': {value}" for key, value in fields.items()]
    aliases = [f"*a{each}" for each in sources(number, parts)]
    if aliases:
        words.insert(place, f"<<: [{', '.join(aliases)}]" if several else f"<<: {aliases[0]}")
    return f"&a{number} {{{', '.join(words)}}}"


def sources(number: int, parts: Mapping) -> list[int]:
    """Which mappings it merges."""
    _, merged, several, _ = parts
    return [each % number for each in (merged if several else merged[:1])] if number else []


def by_hand(number: int, mappings: list[Mapping]) -> dict[str, str]:
    """All fields of a mapping, by the rules of YAML 1.1."""
    fields = dict(mappings[number][0])
    for source in sources(number, mappings[number]):
        fields = by_hand(source, mappings) | fields
    return fields


def outcome(text: str) -> tuple[list[Entry], list[str]]:
    """The entries of a file without their lines, and the warnings without the lines of merges."""
    found = parse("file", text)
    entries = [each._replace(line=0) for each in found.entries]
    return entries, sorted(re.sub(r" \(merged in line \d+\)", "", each.text) for each in found.warnings)


@given(st.lists(MAPPING, min_size=1, max_size=8), st.integers(0, 7), st.sampled_from(["", ":"]))
def test_merged_entries_mean_the_same_as_entries_merged_by_hand(
    mappings: list[Mapping], others: int, colon: str
) -> None:
    # Not compared with PyYAML's own merging: in 6.0.4 a later mapping of a list wins, against the rules.
    texts = [mapping(number, parts, colon) for number, parts in enumerate(mappings)]
    flat = [mapping(number, (by_hand(number, mappings), [], False, 0), "") for number in range(len(mappings))]
    entries, said = outcome(f"others: [{', '.join(texts[:others])}]\ntproxy: [{', '.join(texts[others:])}]")
    assert (entries, said) == outcome(f"tproxy: [{', '.join(flat[others:])}]")


# Mappings within mappings, which merge what is around them or before them.
INNER = st.recursive(
    st.sampled_from(["*a", "*b", "{}", "x", "[]", "{remote_port: 80}"]),
    lambda inner: st.builds(
        lambda anchor, key, values, more: (
            f"&{anchor} {{{more}, {key}: [{', '.join(values)}], <<: {values[0]}}}"
        ),
        st.sampled_from("ab"),
        st.sampled_from(["<<", "name", "tproxy"]),
        st.lists(inner, min_size=1, max_size=3),
        st.sampled_from(["remote_addr: 10.0.0.1", "x: *a", "<<: *b"]),
    ),
    max_leaves=8,
)


@given(INNER, INNER)
def test_mappings_that_merge_what_is_around_them_are_used_or_refused(before: str, entry: str) -> None:
    for top in ("", "<<: *a\n", "<<: [*b, *a]\n"):
        text = f"x: &a {{name: x}}\ny: &b {before}\n{top}tproxy: [{entry}, {{<<: *a}}]\n"
        try:
            lines = said(parse("file", text))
        except ConfigError as error:
            lines = [str(error)]
        assert all(ONE_LINE.match(line) for line in lines)
