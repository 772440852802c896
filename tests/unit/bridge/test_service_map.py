"""Service maps as text for nftables, and back from its listing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.addresses import is_address, is_ipv4
from tproxy.bridge import comments, map_commands, service_map
from tproxy.config import keys
from tproxy.model import DEFAULT_CONNECT_TIMEOUT, Endpoint, Network, Service, ServiceKey, ServiceMap
from tproxy.names import stand_in
from tproxy.options import Text

# Any bytes that a driver may pass, as Python decodes them: surrogates stand for undecodable bytes.
names = st.binary(max_size=40).map(lambda raw: raw.decode(errors="surrogateescape"))
ports = st.integers(1, 65535)
endpoints = st.builds(Endpoint, st.ip_addresses(v=4).map(str), ports)
# As the configuration allows them. Digits beyond those that %g writes would be lost.
timeouts = st.sampled_from([0.1, 1.5, 4.0, DEFAULT_CONNECT_TIMEOUT, 30.0, 300.0])


addresses = st.lists(st.ip_addresses().map(str).filter(is_address), min_size=1, max_size=5, unique=True)


@st.composite
def maps(draw: st.DrawFn) -> ServiceMap:
    services = {}
    for port in draw(st.sets(ports, max_size=6)):
        options: list[Any] = [draw(st.integers(0, 10**6)) for _ in range(7)]
        options += [draw(st.sampled_from(["", "v2"])), draw(st.sampled_from(["first", "least"]))]
        service = Service(ServiceKey(port), draw(endpoints), draw(names), draw(timeouts), *options)
        services[ServiceKey(port)] = service.led_to(draw(addresses)) if draw(st.booleans()) else service
    return ServiceMap("br0", services, Network(draw(names), draw(names)))


def in_map(each: ServiceMap) -> dict[int, Endpoint]:
    """The endpoints that the elements of the map have: a service without an IPv4 address has none."""
    return {key.port: s.endpoint for key, s in each.services.items() if is_ipv4(s.endpoint.address)}


ADD = re.compile(r'(\d+) (?:comment "([^"]*)" )?: ([\d.]+) \. (\d+)')


def elements(command: str) -> list[tuple[int, str, str, int]]:
    """What an element command names: port, comment, address, port."""
    inside = command[command.index("{") + 1 : command.rindex("}")]
    found = [(int(a), b, c, int(d)) for a, b, c, d in ADD.findall(re.sub(" +", " ", inside))]
    assert len(found) == inside.count(",") + 1, f"not understood: {command}"
    return found


def listing(commands: list[str]) -> dict[str, Any]:
    """What ``nft -j list map`` (1.0.6) says of a map that these commands made."""
    (add,) = [each for each in commands if each.startswith("add map")]
    listed: dict[str, Any] = {"family": "ip", "name": add.split()[4], "table": "one_tproxy"}
    listed |= {"type": "inet_service", "map": "ipv4_addr . inet_service"}
    if comment := re.search(r'comment "([^"]*)"', add):
        listed["comment"] = comment[1]
    for command in commands:
        if command.startswith("add element") and " ep_" in command:
            listed["elem"] = [
                [{"elem": {"val": port, "comment": words}} if words else port, {"concat": [address, remote]}]
                for port, words, address, remote in elements(command)
            ]
    return listed


def listed_rest(commands: list[str]) -> dict[tuple[ServiceKey, int], str]:
    """What nft says of the set with the rest of the options, as ``parse_rest`` reads it."""
    listed: dict[str, Any] = {"name": "op_br0", "type": ["inet_service", "mark"], "elem": []}
    for command in commands:
        if command.startswith("add element") and " op_" in command:
            for port, number, comment in re.findall(r'(\d+) \. (\d+) comment "([^"]*)"', command):
                element = {"val": {"concat": [int(port), int(number)]}, "comment": comment}
                listed["elem"].append({"elem": element})
    found = service_map.parse_rest(listed)
    assert found is not None
    return found


@given(maps())
def test_a_loaded_map_reads_as_the_storable_part_of_it(wanted: ServiceMap) -> None:
    commands = map_commands.add_map(wanted)
    found = service_map.parse_map(listing(commands), listed_rest(commands))
    assert found == comments.storable(wanted)
    # Nothing of a service is lost, but what its name cannot be written as.
    assert {p: s._replace(name="") for p, s in found.services.items()} == {
        p: s._replace(name="") for p, s in wanted.services.items()
    }


MANY = Service(ServiceKey(80), Endpoint("10.0.0.1", 80), "n" * 32, 2.5, 1, 2, 3, 4, 5, 6, 7)


def test_options_that_do_not_fit_go_on_in_a_set_that_old_readers_do_not_miss() -> None:
    wanted = ServiceMap(
        "br0", {ServiceKey(80): MANY, ServiceKey(81): MANY._replace(key=ServiceKey(81), drain_timeout=3600)}
    )
    commands = map_commands.add_map(wanted)
    assert "add set ip one_tproxy op_br0 { type inet_service . mark; }" in commands
    rest = listed_rest(commands)
    assert {key.port for key, _ in rest} == {80, 81}
    assert service_map.parse_map(listing(commands), rest) == wanted
    old = service_map.parse_map(listing(commands))  # a reader that does not know the set
    assert old is not None
    assert (old.services[ServiceKey(80)].drain_timeout, old.services[ServiceKey(80)].endpoint) == (
        7,
        MANY.endpoint,
    )


def test_a_set_that_is_damaged_loses_the_words_behind_the_damage_only_and_is_written_anew() -> None:
    wanted = ServiceMap("br0", {ServiceKey(80): MANY._replace(name="%" * 90)})
    commands = map_commands.add_map(wanted)
    rest = listed_rest(commands)
    assert len(rest) > 2
    del rest[ServiceKey(80), 1]
    found = service_map.parse_map(listing(commands), rest)
    assert found is not None
    assert found.services[ServiceKey(80)]._replace(name="") == MANY._replace(
        name="",
        max_connections_per_guest=found.services[ServiceKey(80)].max_connections_per_guest,
        connect_timeout=found.services[ServiceKey(80)].connect_timeout,
    )
    repair = map_commands.change_map(found, wanted)
    assert "flush set ip one_tproxy op_br0" in repair
    assert service_map.parse_map(listing([commands[1], *repair]), listed_rest(repair)) == wanted


def test_a_service_without_ipv4_is_beside_the_map_and_counts_only_where_the_map_has_no_such_port() -> None:
    alone = Service(ServiceKey(80), Endpoint("10.0.0.1", 8080), "web").led_to(["fd00::1", "fd00::2"])
    commands = map_commands.add_map(ServiceMap("br0", {ServiceKey(80): alone}))
    words = "port=8080 endpoints=fd00%3A%3A1%2Cfd00%3A%3A2 name=web"
    assert commands[-1] == f'add element ip one_tproxy op_br0 {{ 80 . 65536 comment "{words}" }}'
    assert not [each for each in commands if each.startswith("add element ip one_tproxy ep_")]
    listed, rest = listing(commands), listed_rest(commands)
    found = service_map.parse_map(listed, rest)
    assert found is not None
    assert found.services == {ServiceKey(80): alone}
    plain = Service(ServiceKey(80), Endpoint("10.0.0.2", 80))
    listed = listing(map_commands.add_map(ServiceMap("br0", {ServiceKey(80): plain})))
    found = service_map.parse_map(listed, rest)
    assert found is not None
    assert found.services == {ServiceKey(80): plain}


def test_a_service_of_unix_sockets_alone_is_beside_the_map_without_a_port() -> None:
    service = Service(ServiceKey(80), Endpoint("unix:/run/x.sock", 0), "web")
    wanted = ServiceMap("br0", {ServiceKey(80): service})
    commands = map_commands.add_map(wanted)
    words = "name=web endpoints=unix%3A%2Frun%2Fx.sock"
    assert commands[-1] == f'add element ip one_tproxy op_br0 {{ 80 . 65536 comment "{words}" }}'
    assert service_map.parse_map(listing(commands), listed_rest(commands)) == wanted
    long = [f"unix:/{'+' * 104}{number}" for number in range(2)]
    wanted = ServiceMap("br0", {ServiceKey(80): service.led_to(long)})
    commands = map_commands.add_map(wanted)
    assert service_map.parse_map(listing(commands), listed_rest(commands)) == wanted
    assert comments.storable(wanted) == wanted


@pytest.mark.parametrize("first", ["10.0.0.1", "fd00::1"])
def test_beside_an_address_a_unix_socket_keeps_its_place_in_the_order(first: str) -> None:
    service = Service(ServiceKey(80), Endpoint(first, 8080)).led_to(["unix:/run/x.sock", first])
    wanted = ServiceMap("br0", {ServiceKey(80): service})
    commands = map_commands.add_map(wanted)
    found = service_map.parse_map(listing(commands), listed_rest(commands))
    assert found == wanted
    assert [str(each) for each in found.services[ServiceKey(80)].candidates] == [
        "unix:/run/x.sock",
        str(Endpoint(first, 8080)),
    ]


def test_datagrams_lead_to_no_unix_socket_whatever_a_map_says() -> None:
    key = ServiceKey(53, "udp")
    words = "endpoints=unix%3A%2Frun%2Fx.sock%2C10.0.0.1%2C10.0.0.2"
    service = comments.parse_service(key, Endpoint("10.0.0.1", 53), words)
    assert service.endpoints == ("10.0.0.1", "10.0.0.2")
    listed = listing(map_commands.add_map(ServiceMap("br0", {})))
    rest = {(ServiceKey(53, "udp"), 1 << 16): "endpoints=unix%3A%2Frun%2Fx.sock"}
    found = service_map.parse_map(listed, rest)
    assert found is not None
    assert not found.services


@pytest.mark.parametrize(
    "words",
    ["", "port=80", "endpoints=fd00%3A%3A1", "port=0 endpoints=fd00%3A%3A1", "port=x endpoints=fd00%3A%3A1",
     "port=80 endpoints=10.0.0.1", "port=80 endpoints=host", "port=70000 endpoints=fd00%3A%3A1",
     "endpoints=unix%3Arun", "endpoints=unix%3A%2Frun%2F", "endpoints=unix%3A%2Frun%2Fx%2Cfd00%3A%3A1"],
)  # fmt: skip
def test_words_beside_the_map_that_are_no_such_service_are_ignored(words: str) -> None:
    found = service_map.parse_map(
        listing(map_commands.add_map(ServiceMap("br0", {}))), {(ServiceKey(80), 1 << 16): words}
    )
    assert found is not None
    assert found.services == {}


def test_an_address_that_another_program_gave_the_element_counts_alone() -> None:
    several = Service(ServiceKey(80), Endpoint("10.0.0.1", 80)).led_to(["10.0.0.1", "fd00::1"])
    listed = listing(map_commands.add_map(ServiceMap("br0", {ServiceKey(80): several})))
    listed["elem"][0][1]["concat"][0] = "10.0.0.9"
    found = service_map.parse_map(listed)
    assert found is not None
    assert found.services == {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.9", 80))}


def test_the_set_goes_with_the_last_service_that_needs_it() -> None:
    before = ServiceMap("br0", {ServiceKey(80): MANY})
    plain = ServiceMap("br0", {ServiceKey(80): Service(ServiceKey(80), MANY.endpoint)})
    assert map_commands.change_map(before, plain)[-1] == "delete set ip one_tproxy op_br0"
    assert not [each for each in map_commands.change_map(plain, plain) if "op_br0" in each]
    assert not [each for each in map_commands.add_map(plain) if "op_br0" in each]
    assert "delete set ip one_tproxy op_br0" in map_commands.delete_map("br0")


@pytest.mark.parametrize(
    "odd",
    [
        {
            "type": ["inet_service", "mark"],
            "elem": [5, {"elem": {"val": 5}}, {"elem": {"val": {"concat": [1]}}}],
        },
        {"type": ["inet_service", "mark"], "elem": [{"elem": {"val": {"concat": [1, 0]}}}]},
    ],
)
def test_elements_of_another_program_in_that_set_are_ignored(odd: dict[str, Any]) -> None:
    assert service_map.parse_rest({"name": "op_br0", **odd}) == {}
    assert service_map.parse_rest({"name": "op_br0", "type": "mark"}) is None


@given(maps())
def test_a_loaded_map_needs_no_change(wanted: ServiceMap) -> None:
    commands = map_commands.add_map(wanted)
    found = service_map.parse_map(listing(commands), listed_rest(commands))
    assert found is not None
    assert map_commands.change_map(found, comments.storable(wanted)) == []


@given(maps())
def test_the_storable_part_of_a_map_keeps_ports_and_endpoints(wanted: ServiceMap) -> None:
    stored = comments.storable(wanted)
    assert comments.storable(stored) == stored
    assert {p: s.endpoint for p, s in stored.services.items()} == {
        p: s.endpoint for p, s in wanted.services.items()
    }
    name = wanted.network.name
    assert stored.network.name in ("", name, stand_in(name))
    if wanted.network.id.isascii() and len(wanted.network.id) < 10:
        assert bool(stored.network.name) == bool(name)


@pytest.mark.parametrize("timeout", [0.001, 1.0, 299.999])
def test_everything_that_a_file_may_say_about_a_service_is_stored(timeout: float) -> None:
    kind = keys.SERVICE["name"].option.kind
    assert isinstance(kind, Text)
    service = Service(ServiceKey(65535), Endpoint("255.255.255.254", 65535), "%" * kind.most, timeout)
    wanted = ServiceMap("br0", {ServiceKey(65535): service})
    assert comments.storable(wanted) == wanted


@given(maps())
def test_no_name_can_end_its_comment_early(wanted: ServiceMap) -> None:
    for command in map_commands.add_map(wanted):
        assert command.isascii()
        assert "\n" not in command
        for comment in re.findall(r'"([^"]*)"', command):
            assert len(comment) <= comments.MAX_COMMENT
            assert re.fullmatch(r"[A-Za-z0-9_.~%= +\-]*", comment), comment
        assert re.sub(r'"[^"]*"', "", command).count('"') == 0


@given(maps())
def test_a_map_in_order_needs_no_command(wanted: ServiceMap) -> None:
    stored = comments.storable(wanted)
    assert map_commands.change_map(stored, stored) == []


@given(maps(), maps())
def test_a_change_deletes_and_adds_exactly_what_differs(observed: ServiceMap, wanted: ServiceMap) -> None:
    wanted = wanted._replace(network=observed.network)
    after: dict[int, Endpoint] = in_map(observed)
    untouched = {key.port for key, s in observed.services.items() if wanted.services.get(key) == s}
    for command in map_commands.change_map(observed, wanted):
        if " op_br0" in command:
            continue
        for port, _, address, remote in elements(command):
            assert port not in untouched
            if command.startswith("delete"):
                assert after.pop(port) == Endpoint(address, remote)
            else:
                assert port not in after, "nft refuses an element that is there with another value"
                after[port] = Endpoint(address, remote)
    assert after == in_map(wanted)


def test_for_another_network_the_map_is_replaced_in_one_transaction() -> None:
    service = Service(ServiceKey(80), Endpoint("10.0.0.1", 80))
    before = ServiceMap("br0", {ServiceKey(80): service}, Network("blue", "1"))
    after = before._replace(network=Network("green", "2"))
    commands = map_commands.change_map(before, after)
    assert commands[0] == "delete map ip one_tproxy ep_br0"
    assert service_map.parse_map(listing(commands[1:]), listed_rest(commands)) == after


def test_the_commands_are_those_of_the_contract() -> None:
    service = Service(ServiceKey(5030), Endpoint("10.11.12.13", 5030))
    table, add, element = map_commands.add_map(ServiceMap("br0", {ServiceKey(5030): service}))
    assert table == "add table ip one_tproxy"
    assert " ".join(add.split()) == (
        "add map ip one_tproxy ep_br0 { type inet_service : ipv4_addr . inet_service; }"
    )
    assert " ".join(element.split()) == "add element ip one_tproxy ep_br0 { 5030 : 10.11.12.13 . 5030 }"
    assert map_commands.delete_map("br0")[0] == "delete map ip one_tproxy ep_br0"


PLAIN: dict[str, Any] = {"name": "ep_br0", "type": "inet_service", "map": "ipv4_addr . inet_service"}


def test_a_map_without_any_comment_is_valid() -> None:
    parsed = service_map.parse_map({**PLAIN, "elem": [[5030, {"concat": ["10.11.12.13", 5031]}]]})
    assert parsed == ServiceMap(
        "br0", {ServiceKey(5030): Service(ServiceKey(5030), Endpoint("10.11.12.13", 5031))}
    )
    assert service_map.parse_map(PLAIN) == ServiceMap("br0", {})


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "other"},
        {"name": "ep_"},
        {"name": "ep_bad name"},
        {"name": "ep_sixteen-bytes-xx"},
        {"type": "ipv4_addr"},
        {"map": "ipv4_addr"},
        {"map": None},
        {"type": ["inet_service", "ipv4_addr"]},
    ],
    ids=str,
)
def test_maps_with_another_name_or_type_are_not_ours(odd: Mapping[str, Any]) -> None:
    assert service_map.parse_map({**PLAIN, **odd}) is None


@pytest.mark.parametrize(
    "odd",
    [
        [{"range": [6000, 6010]}, {"concat": ["10.0.0.1", 80]}],
        [{"elem": {"val": {"range": [6000, 6010]}, "comment": "name=x"}}, {"concat": ["10.0.0.1", 80]}],
        ["*", {"concat": ["10.0.0.1", 80]}],
        [0, {"concat": ["10.0.0.1", 80]}],
        [81, {"concat": [{"prefix": {"addr": "10.0.0.0", "len": 24}}, 80]}],
        [81, "10.0.0.1"],
    ],
    ids=str,
)
def test_an_element_that_is_no_service_port_is_left_out_and_reported(odd: list[Any]) -> None:
    listed = {**PLAIN, "elem": [odd, [80, {"concat": ["10.0.0.1", 80]}]]}
    parsed = service_map.parse_map(listed)
    assert parsed is not None
    assert list(parsed.services) == [ServiceKey(80)]
    (text,) = service_map.unusable_elements(listed)
    assert json.loads(text) == odd


def test_the_type_is_also_read_as_the_list_that_newer_versions_of_nft_print() -> None:
    assert service_map.parse_map({**PLAIN, "map": ["ipv4_addr", "inet_service"]}) == ServiceMap("br0", {})


@given(st.text(max_size=150))
def test_any_text_in_a_comment_is_harmless(comment: str) -> None:
    element = {"elem": {"val": 80, "comment": comment}}
    parsed = service_map.parse_map(
        {**PLAIN, "comment": comment, "elem": [[element, {"concat": ["10.0.0.1", 80]}]]}
    )
    assert parsed is not None
    assert parsed.services[ServiceKey(80)].endpoint == Endpoint("10.0.0.1", 80)
    assert 0 < parsed.services[ServiceKey(80)].connect_timeout < float("inf")


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e400", "five", "1,5"])
def test_an_unusable_timeout_is_read_as_the_default(text: str) -> None:
    element = {"elem": {"val": 80, "comment": f"connect_timeout={text}"}}
    parsed = service_map.parse_map({**PLAIN, "elem": [[element, {"concat": ["10.0.0.1", 80]}]]})
    assert parsed is not None
    assert parsed.services[ServiceKey(80)].connect_timeout == DEFAULT_CONNECT_TIMEOUT


@given(st.dictionaries(st.sampled_from(["id", "network", "name"]), names))
def test_words_read_back_unchanged_or_not_at_all(words: dict[str, str]) -> None:
    text = comments.encode_words(words)
    assert len(text) <= comments.MAX_COMMENT
    assert comments.decode_words(text).items() <= {k: v for k, v in words.items() if v}.items()


def test_a_word_that_does_not_fit_is_left_out_and_the_next_may_still_fit() -> None:
    text = comments.encode_words({"id": "7", "network": "x" * comments.MAX_COMMENT, "name": "web"})
    assert comments.decode_words(text) == {"id": "7", "name": "web"}


def test_comments_may_have_the_full_length_that_nftables_accepts() -> None:
    room = comments.MAX_COMMENT - len("id=7 ") - len("network=")
    for length, fits in ((room, True), (room + 1, False)):
        words = {"id": "7", "network": "x" * length}
        assert (comments.decode_words(comments.encode_words(words)) == words) == fits


DNS = ServiceKey(53, "udp")


def test_what_is_not_plain_stands_in_a_map_of_its_own_which_goes_with_the_last_of_it() -> None:
    plain = Service(ServiceKey(53), Endpoint("10.0.0.53", 53))
    dns = Service(DNS, Endpoint("10.0.0.53", 53), "dns")
    both = ServiceMap("br0", {ServiceKey(53): plain, DNS: dns})
    commands = [" ".join(each.split()) for each in map_commands.add_map(both)]
    assert "add element ip one_tproxy ep_br0 { 53 : 10.0.0.53 . 53 }" in commands
    element = '169.254.16.9 . udp . 53 . 0x0 comment "name=dns" : 10.0.0.53 . 53'
    assert f"add element ip one_tproxy sv_br0 {{ {element} }}" in commands
    after = both._replace(services={ServiceKey(53): plain})
    assert map_commands.change_map(both, after)[-1] == "delete map ip one_tproxy sv_br0"
    assert not [each for each in map_commands.change_map(after, after) if "sv_br0" in each]
    assert not [each for each in map_commands.add_map(after) if "sv_br0" in each]


@pytest.mark.parametrize(
    "concat",
    [
        ["169.254.16.9", "tcp", 80, 0],
        ["169.254.16.9", "sctp", 80, 0],
        ["169.254.16.9", 132, 80, 0],
        ["169.254.16.9", "udp", 0, 0],
        [{"prefix": {"addr": "169.254.0.0", "len": 16}}, "udp", 80, 0],
        ["169.254.16.9", "udp", {"range": [1, 2]}, 0],
        ["169.254.16.9", "udp", 80],
    ],
    ids=str,
)
def test_an_element_that_is_plain_or_no_service_is_left_out(concat: list[Any]) -> None:
    types = ["ipv4_addr", "inet_proto", "inet_service", "mark"]
    listed = {"name": "sv_br0", "type": types, "map": "ipv4_addr . inet_service"}
    element = [{"concat": concat}, {"concat": ["10.0.0.1", 80]}]
    assert service_map.parse_typed({**listed, "elem": [element]}) == {}
    assert service_map.unusable_elements({**listed, "elem": [element]})
    assert service_map.parse_typed({**listed, "type": types[:2]}) is None
